"""Parts of what is downloaded, and what a device has already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.server.http import downloads
from fcp_core.server.http.downloads import parse_range
from fcp_core.server.services import spool

DATA = bytes(range(256)) * 4
FILE = "/data/group/plan"


# Ranges.


@pytest.fixture
def front(make_front, http):
    services = http.Services()
    services.media.files["group/plan"] = http.Download(DATA, "application/x+gzip", "tag", 60.0)
    return make_front(services)


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-9", 5, 9),
        ("bytes=1000-", 1000, 1023),
        ("bytes=-24", 1000, 1023),
        ("bytes=-5000", 0, 1023),
        ("bytes=1000-99999999", 1000, 1023),
        ("Bytes = 7-8", 7, 8),
    ],
)
def test_a_range(front, http, header, first, last):
    with front.connect() as connection:
        reply = connection.send(http.head(FILE, "GET", Range=header)).reply("GET")
        assert (reply.status, reply.body) == (206, DATA[first : last + 1])
        assert reply.headers["Content-Range"] == f"bytes {first}-{last}/1024"
        assert reply.headers["ETag"] == '"tag"'
        assert reply.headers["Content-Type"] == "application/x+gzip"
        # The connection is good for more.
        assert connection.send(http.head(FILE, "GET")).reply("GET").body == DATA


@pytest.mark.parametrize("header", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_that_is_not_there(front, http, header):
    reply = front.ask(http.head(FILE, "GET", Range=header), method="GET")
    assert reply.status == 416
    assert reply.headers["Content-Range"] == "bytes */1024"
    assert "1024 bytes" in reply.error[1]


@pytest.mark.parametrize(
    "header", ["bytes=9-5", "bytes=-", "bytes=1-2,5-6", "lines=1-2", "bytes=x-", "1-2", "bytes"]
)
def test_a_range_that_is_none_is_ignored(front, http, header):
    reply = front.ask(http.head(FILE, "GET", Range=header), method="GET")
    assert (reply.status, reply.body) == (200, DATA)
    assert reply.headers["Accept-Ranges"] == "bytes"


def test_a_range_of_what_the_client_has(front, http):
    def ask(method="GET", **headers):
        return front.ask(http.head(FILE, method, Range="bytes=4-", **headers), method=method)

    assert ask(If_Range='"tag"').status == 206
    for other in ('"old"', 'W/"tag"', "Sun, 22 Nov 2026 00:00:00 GMT"):
        assert ask(If_Range=other).body == DATA
    assert ask(If_None_Match='"tag"').status == 304
    reply = ask("HEAD")
    assert (reply.status, reply.headers["Content-Length"]) == (200, "1024")


@given(st.text("bytes=-,0123456789 "), st.integers(0, 30))
def test_any_range_header_is_within_the_data(header, size):
    wanted = parse_range(header, size)
    if wanted:
        assert 0 <= wanted.start < wanted.stop <= size


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * 4096, 50_001])
def test_what_is_written_in_parts_is_whole(make_front, http, monkeypatch, size):
    monkeypatch.setattr(downloads, "PART", 4096)
    data = np.random.default_rng(1).bytes(size)
    services = http.Services()
    services.media.files["group/plan"] = http.Download(data, "application/x", "tag", 60.0)
    front = make_front(services)
    with front.connect() as connection:
        for _ in range(2):
            assert connection.send(http.head(FILE, "GET")).reply("GET").body == data
        if size > 9:
            ask = http.head(FILE, "GET", Range="bytes=9-")
            assert connection.send(ask).reply("GET").body == data[9:]


class Watched(spool.Spooled):
    """Remembers how much was read at a time."""

    def read(self, start, stop):
        self.sizes.add(stop - start)
        return super().read(start, stop)


@pytest.mark.parametrize("header", [{}, {"Range": "bytes=100-299999"}, {"Range": "bytes=-5"}])
def test_what_lies_in_a_file_is_sent_like_anything_else(make_front, http, tmp_path, header):
    data = np.random.default_rng(1).bytes(3 * downloads.PART // 2)
    services = http.Services()
    kept, sizes = Watched([data], tmp_path), set()
    kept.sizes = sizes
    services.media.files["group/plan"] = http.Download(kept, "application/x", "tag", 60.0)
    wanted = parse_range(header["Range"], len(data)) if header else range(len(data))
    with make_front(services).connect() as connection:
        for _ in range(2):
            reply = connection.send(http.head(FILE, "GET", **header)).reply("GET")
            assert reply.status == (206 if header else 200)
            assert reply.body == data[wanted.start : wanted.stop]
    # Each device that is slow has as much of it in memory.
    assert max(sizes) <= downloads.READ <= 1 << 17
