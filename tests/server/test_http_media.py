"""Uploads and downloads over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import ManualClock
from fcp_core.server.http.metrics import ServerMetrics
from fcp_core.server.http.turns import PART

UPLOAD = "/upload/v1/media/known/upload?upload_protocol=raw"


@pytest.fixture
def services(http):
    return http.Services()


@pytest.fixture
def media(services):
    return services.media


def upload(http, body, path=UPLOAD, **headers):
    return http.head(path, Content_Length=len(body), **headers) + body


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


def test_uploads_leave_room_for_those_that_wait_and_calls_need_not(
    make_front, http, services, media
):
    media.held = 900
    limits = {"max_in_flight": 1000, "max_body": 1000, "max_decompressed": 1000}
    front = make_front(services, body_timeout=1, **limits)
    # There is none for it within half of the time that an upload may take.
    reply = front.ask(upload(http, bytes(101)))
    assert (reply.status, reply.error[0]) == (429, Code.UNAVAILABLE)
    packed = gzip.compress(bytes(500))
    assert front.ask(upload(http, packed, Content_Encoding="gzip")).status == 429
    # A call's body is taken all the same: this route is one that these services lack.
    lacking = "/v1/populations/p/taskassignments/s:start"
    assert front.ask(http.head(lacking, Content_Length=200), bytes(200)).status == 501
    assert front.ask(upload(http, bytes(100))).status == 200
    assert front.frontend.in_flight == 0


def test_what_is_in_flight_is_bounded(make_front, http, services, media):
    media.names |= {"second", "third"}
    limits = {"max_in_flight": 1000, "max_body": 1000, "max_decompressed": 1000}
    front = make_front(services, body_timeout=2, **limits)
    second = UPLOAD.replace("known/upload", "second")
    third = UPLOAD.replace("known/upload", "third")
    with front.connect() as first:
        first.send(http.head(UPLOAD, Content_Length=800), bytes(799))
        assert media.started.acquire(timeout=http.WAIT)
        while front.frontend.in_flight < 799:
            time.sleep(0.001)
        # Announced, chunked, and growing while it is decompressed.
        packed = gzip.compress(bytes(300))
        for request in (
            upload(http, bytes(300), second),
            http.head(second, Transfer_Encoding="chunked") + http.chunks(bytes(300)),
            upload(http, packed, second, Content_Encoding="gzip"),
        ):
            reply = front.ask(request)
            assert (reply.status, reply.error[0]) == (429, Code.UNAVAILABLE)
            assert reply.headers["Retry-After"]
            assert front.frontend.in_flight == 799  # what came, not what was announced
        assert front.ask(upload(http, bytes(200), third)).status == 200
        first.send(b"x")
        assert first.reply().status == 200
    assert front.frontend.in_flight == 0
    assert front.ask(upload(http, bytes(300), second)).status == 200


def test_an_upload_waits_for_room(make_front, http, services, media):
    """Two wait, in order: the second would fit, and does not go first."""
    media.names |= {"second", "third"}
    front = make_front(services, max_in_flight=1000, max_body=1000, max_decompressed=1000)
    paths = [UPLOAD, *(UPLOAD.replace("known/upload", name) for name in ("second", "third"))]
    with front.connect() as first, front.connect() as second, front.connect() as third:
        first.send(http.head(paths[0], Content_Length=800), bytes(799))
        assert media.started.acquire(timeout=http.WAIT)
        second.send(http.head(paths[1], Content_Length=900), bytes(900))
        assert media.started.acquire(timeout=http.WAIT)
        third.send(http.head(paths[2], Content_Length=200), bytes(200))
        assert media.started.acquire(timeout=http.WAIT)
        # What came counts, and not what was announced.
        assert front.frontend.in_flight == 799
        first.send(b"x")
        for connection in (first, second, third):
            assert connection.reply().status == 200
    assert front.frontend.in_flight == 0


def test_large_uploads_that_come_at_once_take_turns_and_none_is_refused(
    make_front, http, services, media
):
    """Together they are more than may be held; each alone is not."""
    size = 10 * PART
    media.names |= {"second", "third"}
    front = make_front(services, max_in_flight=size, max_body=size, max_decompressed=size)
    paths = [UPLOAD, *(UPLOAD.replace("known/upload", name) for name in ("second", "third"))]
    with front.connect() as first, front.connect() as second, front.connect() as third:
        connections = (first, second, third)
        for connection, path in zip(connections, paths, strict=True):
            # All are admitted: what is announced does not count.
            connection.send(http.head(path, Content_Length=size))
            assert media.started.acquire(timeout=http.WAIT)
        most = [0]
        with ThreadPoolExecutor(3) as pool:
            sent = [pool.submit(connection.send, bytes(size)) for connection in connections]
            while not all(future.done() for future in sent):
                most.append(front.frontend.in_flight)
                time.sleep(0.001)
        for connection in connections:
            assert connection.reply().status == 200
    # One part for each that comes may be there before it is counted.
    assert max(most) <= size + 3 * PART
    assert front.frontend.in_flight == 0


def test_one_that_stalls_keeps_nobody_out(make_front, http, services, media):
    size = 10 * PART
    media.names |= {"second"}
    front = make_front(services, max_in_flight=size, max_body=size, max_decompressed=size)
    with front.connect() as first, front.connect() as second:
        first.send(http.head(UPLOAD, Content_Length=size), bytes(100))
        assert media.started.acquire(timeout=http.WAIT)
        path = UPLOAD.replace("known/upload", "second")
        body = bytes(size - 2 * PART)
        assert second.send(http.head(path, Content_Length=len(body)), body).reply().status == 200
        assert first.send(bytes(size - 100)).reply().status == 200
    assert front.frontend.in_flight == 0


def test_an_error_at_the_end_of_an_upload_is_answered(make_front, http, services, media):
    async def finish_upload(name, body, sender=None):
        raise StatusError(Code.ABORTED, "the round is over")

    media.finish_upload = finish_upload
    front = make_front(services)
    reply = front.ask(upload(http, b"x"))
    assert (reply.status, reply.error) == (409, (Code.ABORTED, "the round is over"))
    assert not media.abandoned.acquire(blocking=False)


def test_uploads_in_parallel_are_not_mixed_up(make_front, http, services, media):
    front = make_front(services)
    bodies = {f"n{i}": bytes([i]) * (100_000 + i) for i in range(8)}
    media.names |= set(bodies)
    packed = {
        name: gzip.compress(body) if int(name[1]) % 2 else body for name, body in bodies.items()
    }
    connections = {name: front.connect() for name in bodies}
    for name, connection in connections.items():
        encoding = "gzip" if int(name[1]) % 2 else "identity"
        path = UPLOAD.replace("known/upload", name)
        length = len(packed[name])
        connection.send(http.head(path, Content_Length=length, Content_Encoding=encoding))
    for start in range(0, 110_000, 10_000):
        for name, connection in connections.items():
            connection.send(packed[name][start : start + 10_000])
    for connection in connections.values():
        assert connection.reply().status == 200
        connection.socket.close()
    assert media.received == bodies


def test_decompression_does_not_hold_up_other_requests(make_front, http, services, media):
    """The event loop turns between the steps of a body that unpacks to much more."""
    front = make_front(services)
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.run_coroutine_threadsafe(count(), front.loop)
    packed = gzip.compress(bytes(64 << 20))
    with front.connect() as connection:
        connection.send(http.head(UPLOAD, Content_Length=len(packed), Content_Encoding="gzip"))
        assert media.started.acquire(timeout=http.WAIT)
        before = turns
        connection.send(packed)
        assert connection.reply().status == 200
    assert turns - before > 64
    counter.cancel()
    assert media.received["known/upload"] == bytes(64 << 20)


@pytest.fixture
def plan(http, media):
    data = gzip.compress(random.Random(4).randbytes(3_000_000))
    plan = http.Download(data, "application/x-protobuf+gzip", "tag", 60.5)
    media.files["group/plan"] = plan
    return plan


def test_a_download(make_front, http, services, media, plan):
    front = make_front(services)
    reply = front.ask(http.head("/data/group/plan", "GET", Accept_Encoding="gzip"))
    assert (reply.status, reply.body) == (200, plan.data)
    assert reply.headers["Content-Type"] == "application/x-protobuf+gzip"
    assert reply.headers["Content-Length"] == str(len(plan.data))
    assert reply.headers["Cache-Control"] == "max-age=60"
    assert reply.headers["Content-Encoding"] is None
    assert reply.headers["ETag"] == '"tag"'

    reply = front.ask(http.head("/data/group/plan", "HEAD"), method="HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Length"] == str(len(plan.data))


def test_a_download_that_the_client_has_already(make_front, http, services, media, plan):
    front = make_front(services)
    for known in ('"tag"', 'W/"tag"', '"other", "tag"', "*"):
        reply = front.ask(http.head("/data/group/plan", "GET", If_None_Match=known))
        assert (reply.status, reply.body, reply.headers["ETag"]) == (304, b"", '"tag"')
    reply = front.ask(http.head("/data/group/plan", "GET", If_None_Match='"other"'))
    assert (reply.status, reply.body) == (200, plan.data)


def test_what_may_not_be_kept_says_so(make_front, http, services, media):
    media.files["a b/slices_3"] = http.Download(b"", "application/octet-stream+gzip", "t", 0.0)
    reply = make_front(services).ask(http.head("/data/a%20b/slices_3", "GET"))
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Cache-Control"] == "no-cache"


def test_downloads_need_no_key_and_end(make_front, http, services, media, plan):
    def authenticate(**request):
        raise StatusError(Code.UNAUTHENTICATED, "no key")

    front = make_front(services, authenticate)
    assert front.ask(http.head("/data/group/plan", "GET")).status == 200
    del media.files["group/plan"]
    reply = front.ask(http.head("/data/group/plan", "GET"))
    assert (reply.status, reply.error) == (404, (Code.NOT_FOUND, "nothing here"))
    reply = front.ask(http.head("/data/group/plan", Content_Length=0))
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")


def test_a_client_that_leaves_before_its_download_is_no_error(
    make_front, http, services, media, caplog
):
    metrics = ServerMetrics(ManualClock(), dict)
    file = http.Download(b"data", "application/x", "tag", 0.0)
    began = threading.Event()

    async def download(name):
        began.set()
        while metrics.requests.get("download", "499") == 0:
            await asyncio.sleep(0)
        return file

    media.download = download
    front = make_front(services, metrics=metrics)
    with front.connect() as connection:
        connection.send(http.head("/data/group/plan", "GET"))
        assert began.wait(http.WAIT)
        connection.reset()
    front.stop()  # waits for the request
    front.stop = lambda: None
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_client_that_does_not_read_is_let_go(make_front, http, services, media):
    media.files["g/large"] = http.Download(bytes(64 << 20), "application/octet-stream", "t", 0.0)
    front = make_front(services, body_timeout=0.2)
    with front.connect() as connection:
        connection.send(http.head("/data/g/large", "GET"))
        assert connection.socket.recv(8) == b"HTTP/1.1"
        assert front.run(front.frontend._context.settle(http.WAIT))
        left = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.socket.recv(1 << 20):
                left += len(piece)
        assert left < 64 << 20
