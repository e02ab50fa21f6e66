"""Where requests begin and end: what is malformed gets one answer or none, and nothing after it.

``tests/data/framing.json`` has the tricks of the public lists: bytes that two readers may cut into
requests in two ways. ``PATH`` stands for an address, a list of a text and a number for the text so
many times.
"""

from __future__ import annotations

import json
import logging
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders

from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility
from fcp_core.server.http.handler import check_header, parse_header

TABLE = json.loads((Path(__file__).parents[1] / "data/framing.json").read_text())
NEXT = b"GET /healthz HTTP/1.1\r\nHost: next\r\nConnection: close\r\n\r\n"

#: One that is served, one that is refused from its header, an upload, and one of these refused.
PATHS = (
    "/v1/eligibilityevaltasks/p:request",
    "/nowhere",
    "/upload/v1/media/known/upload",
    "/upload/v1/media/unknown",
)


class EligibilityEvalTasks:
    async def request_eligibility_eval_task(self, request, caller):
        return eligibility.EligibilityEvalTaskResponse(session_id="s")


@pytest.fixture
def front(make_front, http):
    services = http.Services()
    services.eligibility_eval_tasks = EligibilityEvalTasks()
    return make_front(services)


def exchange(front, data, *, end=True):
    """Send bytes; return the statuses of all answers and everything that came back."""
    with front.connect() as connection:
        came = b""
        try:
            connection.send(data)
            if end:
                connection.socket.shutdown(socket.SHUT_WR)
            while piece := connection.socket.recv(1 << 16):
                came += piece
        except (ConnectionError, BrokenPipeError):  # it closed while bytes were on their way
            pass
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", came)]
    return [status for status in statuses if status != 100], came


def bytes_of(row, path):
    parts = (part if isinstance(part, str) else part[0] * part[1] for part in row["sent"])
    return "".join(parts).replace("PATH", path).encode("latin-1")


def assert_quiet(caplog):
    """Nothing is logged but that somebody is turned away, which is said once a minute."""
    logged = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [line for line in logged if not line.startswith("a device is turned away: ")] == []


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["name"])
def test_each_trick(front, row, caplog):
    for path in PATHS:
        statuses, came = exchange(front, bytes_of(row, path) + NEXT, end=row["valid"])
        if row["valid"]:
            assert len(statuses) == 2, (path, came)
            assert came.endswith(b"\r\n\r\nok\n")
        else:
            # One answer or none, and what follows is not taken for a request.
            assert len(statuses) <= 1, (path, came)
            assert all(400 <= status < 500 for status in statuses)
            assert b"ok\n" not in came
    assert front.frontend.in_flight == 0
    assert_quiet(caplog)


def test_a_chunked_body_of_a_client_that_waits_for_100(front):
    head = b"POST /v1/eligibilityevaltasks/p:request HTTP/1.1\r\nHost: h\r\n"
    head += b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    with front.connect() as connection:
        connection.send(head)
        told = b""
        while not told.endswith(b"\r\n\r\n"):
            told += connection.socket.recv(1)
        assert told.startswith(b"HTTP/1.1 100 ")
        connection.send(b"0\r\n\r\n")
        assert connection.reply().status == 200
    with front.connect() as connection:  # refused: it need not send its body
        connection.send(head.replace(b"p:request", b"p:nothing"))
        assert connection.reply().status == 404
        assert connection.is_closed()


def test_a_client_that_breaks_off_in_a_chunk(front, http, caplog):
    head = b"POST /upload/v1/media/known/upload HTTP/1.1\r\nHost: h\r\n"
    media = front.services.media
    for rest in (b"", b"5", b"5\r\nab", b"5\r\nabcde", b"5\r\nabcde\r\n", b"0\r\n"):
        statuses, _ = exchange(front, head + b"Transfer-Encoding: chunked\r\n\r\n" + rest)
        assert statuses == []
        assert media.abandoned.acquire(timeout=http.WAIT)
    assert media.received == {}
    assert_quiet(caplog)


# Any bytes: not more answers than requests that a strict reader sees.

PIECES = st.sampled_from(
    [
        b"POST /v1/eligibilityevaltasks/p:request HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.0\r\n",
        b"Host: h\r\n",
        b"Host: h\r\nContent-Length: 4\r\n\r\n",
        b"Host: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Content-Length: 4\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length : 4\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\n",
        b"Transfer-Encoding: x\r\n",
        b"Connection: keep-alive\r\n",
        b"Expect: 100-continue\r\n",
        b" folded\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"4\r\nabcd\r\n",
        b"4\r\nGET \r\n",
        b"4;x\r\nabcd\r\n",
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"abcd",
        NEXT.replace(b"Connection: close\r\n", b""),
    ]
)


def count_requests(data):
    """Say how many requests a strict proxy sees; after one that is malformed it sees no more."""
    count = 0
    while data:
        data = data.removeprefix(b"\r\n")
        count += bool(data)
        head, empty, data = data.partition(b"\r\n\r\n")
        first, *fields = head.split(b"\r\n")
        words = first.split(b" ")
        if not empty or re.search(rb"[\r\n\0]", head.replace(b"\r\n", b"")) or len(words) != 3:
            return count
        names = [field.partition(b":")[0].lower() for field in fields]
        values = [field.partition(b":")[2].strip(b" ") for field in fields]
        if not all(re.fullmatch(rb"[a-z-]+", name) for name in names):
            return count
        framing = {b"content-length", b"transfer-encoding"} & set(names)
        if sum(names.count(name) for name in framing) > 1:
            return count
        given = dict(zip(names, values, strict=True))
        if b"transfer-encoding" in framing:
            if given[b"transfer-encoding"] != b"chunked" or words[2] == b"HTTP/1.0":
                return count
            left = _after_chunks(data)
            if left is None:
                return count
            data = left
        elif framing:
            length = given[b"content-length"]
            if not length.isdigit() or len(data) < int(length):
                return count
            data = data[int(length) :]
    return count


def _after_chunks(data):
    while True:
        size, _, data = data.partition(b"\r\n")
        if not re.fullmatch(rb"[0-9a-f]+", size):
            return None
        left = int(size, 16)
        if data[left : left + 2] != b"\r\n":
            return None
        data = data[left + 2 :]
        if left == 0:
            return data


def test_not_more_answers_than_requests(front, caplog):
    @settings(max_examples=200, deadline=None)
    @given(st.lists(PIECES, max_size=14).map(b"".join))
    def check(data):
        statuses, came = exchange(front, data)
        assert len(statuses) <= count_requests(data), came
        assert all(status < 500 for status in statuses)

    check()
    assert front.frontend.in_flight == 0
    assert_quiet(caplog)


def test_long_headers_are_checked_in_one_pass():
    """256 KiB may come; a check that goes back would not end within this test's time."""
    check_header(b"GET / HTTP/1.1\r\nX:" + b" " * (256 << 10) + b"y\r\n\r\n")
    check_header(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (40 << 10) + b"\r\n")


def test_a_connection_that_begins_with_tls_is_answered_and_closed_at_once(front):
    """Its header has no end: whoever waits for one keeps the client waiting, without a word."""
    client_hello = bytes.fromhex("16030100f1010000ed0303") + bytes(100)
    statuses, _ = exchange(front, client_hello, end=False)
    assert statuses == [400]
    # The same bytes later in a header are no beginning of anything.
    inside = b"GET /healthz HTTP/1.1\r\nHost: next\r\n\x16\x03: x\r\n\r\n"
    assert exchange(front, inside)[0] == [400]
    assert exchange(front, NEXT)[0] == [200]


TOKEN = st.text("abcXYZ019-_!~", min_size=1, max_size=8)
VALUE = st.text([*'abc ,:;=\t/"', "\x80", "\xe9", "\xff"], max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TOKEN | st.sampled_from(["Host", "hOST", "Content-Length"]), VALUE)))
def test_a_header_is_parsed_as_tornado_does(fields):
    lines = "".join(f"{name}:{value}\r\n" for name, value in fields)
    data = f"GET /a?b HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
    line, headers = parse_header(data)
    assert line == "GET /a?b HTTP/1.1"
    assert list(headers.get_all()) == list(HTTPHeaders.parse(lines).get_all())


@pytest.mark.parametrize(
    ("line", "host", "expected"),
    [
        ("POST http://any:80/v1/x?y=/z HTTP/1.1", "h", ("POST /v1/x?y=/z HTTP/1.1", "any:80")),
        ("GET HTTPS://[::1] HTTP/1.1", "h", ("GET / HTTP/1.1", "[::1]")),
        ("GET http://any?a HTTP/1.1", "h", ("GET /?a HTTP/1.1", "any")),
        ("GET http://any/a HTTP/1.1", "h,i", ("GET /a HTTP/1.1", "h,i")),
        ("GET http://any/a HTTP/1.1", None, ("GET /a HTTP/1.1", None)),
        ("GET http://user@any/a HTTP/1.1", "h", ("GET http://user@any/a HTTP/1.1", "h")),
        ("PROPFINDER /http://any/a HTTP/1.1", "h", ("PROPFINDER /http://any/a HTTP/1.1", "h")),
        ("OPTIONS * HTTP/1.1", "h", ("OPTIONS * HTTP/1.1", "h")),
    ],
)
def test_a_line_may_name_the_host(line, host, expected):
    field = "" if host is None else f"Host: {host}\r\n"
    found, headers = parse_header(f"{line}\r\n{field}\r\n".encode())
    assert (found, headers.get("Host")) == expected


def test_a_request_in_absolute_form_is_served(front):
    request = NEXT.replace(b"GET /", b"GET http://elsewhere/")
    assert exchange(front, request)[0] == [200]
    assert exchange(front, request.replace(b"Host: next\r\n", b""))[0] == [400]
