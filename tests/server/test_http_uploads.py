"""Uploads over HTTP: names, encodings, and those that are refused, broken off or slow."""

from __future__ import annotations

import gzip
import os
import random
import threading

import pytest

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http import inflate
from tests.server.calls import UPLOAD, upload


def test_an_upload(make_front, http, services, media):
    front = make_front(services)
    body = random.Random(1).randbytes(3_000_000)
    reply = front.ask(upload(http, body))
    assert (reply.status, reply.body) == (200, b"")
    assert media.received == {"known/upload": body}
    assert front.frontend.in_flight == 0


@pytest.mark.parametrize("size", [0, 10, 100_000, 5_000_000])
@pytest.mark.parametrize("sort", ["noise", "zeros"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_gzipped_upload(make_front, http, services, media, size, sort, chunked):
    front = make_front(services)
    body = random.Random(size).randbytes(size) if sort == "noise" else bytes(size)
    data = gzip.compress(body, 1)
    if chunked:
        pieces = [data[i : i + 77_777] for i in range(0, len(data), 77_777)]
        header = http.head(UPLOAD, Content_Encoding="gzip", Transfer_Encoding="chunked")
        reply = front.ask(header, http.chunks(*pieces))
    else:
        reply = front.ask(upload(http, data, Content_Encoding="gzip"))
    assert reply.status == 200
    assert media.received == {"known/upload": body}
    assert front.frontend.in_flight == 0


def test_a_chunked_upload(make_front, http, services, media):
    body = random.Random(2).randbytes(200_000)
    header = http.head(UPLOAD, Transfer_Encoding="chunked")
    assert make_front(services).ask(header, http.chunks(body, b"end")).status == 200
    assert media.received == {"known/upload": body + b"end"}


def test_names_are_unescaped(make_front, http, services, media):
    media.names.add("a b/ü/%")
    reply = make_front(services).ask(upload(http, b"x", "/upload/v1/media/a%20b/%C3%BC/%25"))
    assert reply.status == 200
    assert media.received == {"a b/ü/%": b"x"}


def test_an_unknown_name_is_refused_before_the_body(make_front, http, services, media):
    front = make_front(services)
    with front.connect() as connection:
        path = "/upload/v1/media/unknown?upload_protocol=raw"
        connection.send(http.head(path, Content_Length=100_000_000))
        reply = connection.reply()
        assert (reply.status, reply.error[0]) == (401, Code.UNAUTHENTICATED)
    assert front.ask(upload(http, b"x")).status == 200
    # The bytes are there: what is sent again is dropped, and answered the same.
    assert front.ask(upload(http, b"y")).status == 200
    assert media.received == {"known/upload": b"x"}
    assert front.frontend.in_flight == 0


@pytest.mark.parametrize(
    ("headers", "body", "status", "said"),
    [
        ({"Content_Encoding": "br"}, b"x", 400, "'br'"),
        ({"Content_Encoding": "gzip"}, gzip.compress(bytes(9), mtime=0)[:-1], 400, "truncated"),
        ({"Content_Encoding": "gzip"}, gzip.compress(bytes(9), mtime=0)[:5], 400, "truncated"),
        ({"Content_Encoding": "gzip"}, bytes(400_000), 400, "not valid gzip"),
        ({}, bytes(500_001), 413, "500001"),
        ({"Content_Encoding": "gzip"}, gzip.compress(bytes(2_000_000), mtime=0), 413, "1000000"),
    ],
)
def test_a_bad_upload_can_be_repeated(
    make_front, http, services, media, headers, body, status, said
):
    front = make_front(services, max_body=500_000, max_decompressed=1_000_000)
    reply = front.ask(upload(http, body, **headers))
    assert reply.status == status
    assert said in reply.error[1]
    assert front.frontend.in_flight == 0
    if media.started.acquire(blocking=False):
        assert media.abandoned.acquire(timeout=http.WAIT)
    assert media.received == {}
    assert front.ask(upload(http, b"good")).status == 200
    assert media.received == {"known/upload": b"good"}


def test_a_chunked_upload_over_the_limit(make_front, http, services, media):
    front = make_front(services, max_body=500_000)
    header = http.head(UPLOAD, Transfer_Encoding="chunked")
    reply = front.ask(header, http.chunks(bytes(300_000), bytes(300_000))[:-5])
    assert reply.status == 413
    assert media.abandoned.acquire(timeout=http.WAIT)
    assert front.frontend.in_flight == 0


def test_an_upload_that_waits_for_100(make_front, http, services, media):
    with make_front(services).connect() as connection:
        connection.send(http.head(UPLOAD, Content_Length=4, Expect="100-continue"))
        assert connection.socket.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.send(b"body")
        assert connection.reply().status == 200
    assert media.received == {"known/upload": b"body"}


def test_a_method_or_a_protocol_that_is_not(make_front, http, services, media):
    front = make_front(services)
    reply = front.ask(http.head(UPLOAD, "GET"))
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    reply = front.ask(upload(http, b"x", UPLOAD.replace("raw", "resumable")))
    assert reply.status == 400
    assert "'resumable'" in reply.error[1]
    assert media.begun == set()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_broken_connection_gives_the_name_back(make_front, http, services, media, encoding):
    front = make_front(services)
    body = gzip.compress(random.Random(3).randbytes(2_000_000))
    with front.connect() as connection:
        connection.send(
            http.head(UPLOAD, Content_Length=len(body), Content_Encoding=encoding),
            body[: len(body) // 2],
        )
        assert media.started.acquire(timeout=http.WAIT)
        connection.reset()
    assert media.abandoned.acquire(timeout=http.WAIT)
    assert media.received == {}
    assert front.frontend.in_flight == 0
    assert front.ask(upload(http, body, Content_Encoding=encoding)).status == 200


def test_a_slow_upload_ends(make_front, http, services, media):
    front = make_front(services, body_timeout=0.2)
    with front.connect() as connection:
        connection.send(http.head(UPLOAD, Content_Length=10), b"12345")
        assert connection.is_closed()
    assert media.abandoned.acquire(timeout=http.WAIT)
    assert front.frontend.in_flight == 0


def test_an_upload_outlives_the_idle_timeout_of_calls(make_front, http, services, media):
    front = make_front(services, idle_timeout=1.0)
    elapsed = threading.Event()
    with front.connect() as connection:
        connection.send(http.head(UPLOAD, Content_Length=10), b"12345")
        assert media.started.acquire(timeout=http.WAIT)
        front.loop.call_soon_threadsafe(front.loop.call_later, 1.3, elapsed.set)
        assert elapsed.wait(http.WAIT)
        connection.send(b"67890")
        assert connection.reply().status == 200


def test_an_error_at_the_end_of_an_upload_is_answered(make_front, http, services, media):
    async def finish_upload(name, body, sender=None):
        raise StatusError(Code.ABORTED, "the round is over")

    media.finish_upload = finish_upload
    front = make_front(services)
    reply = front.ask(upload(http, b"x"))
    assert (reply.status, reply.error) == (409, (Code.ABORTED, "the round is over"))
    assert not media.abandoned.acquire(blocking=False)


def test_no_more_bodies_are_decompressed_at_once_than_there_are_processors(
    make_front, http, services, monkeypatch
):
    threads, step = set(), inflate.Inflater.step

    def watched(self, room, output):
        threads.add(threading.current_thread().name)
        return step(self, room, output)

    monkeypatch.setattr(inflate.Inflater, "step", watched)
    front = make_front(services)
    body = gzip.compress(random.Random(0).randbytes(200_000), 1)
    assert front.ask(upload(http, body, Content_Encoding="gzip")).status == 200
    assert threads
    assert all(name.startswith("fcp-inflate") for name in threads)
    assert front.frontend._context.inflating._max_workers == os.cpu_count()
