"""Many uploads at once: the room that they share, and what others notice of them."""

from __future__ import annotations

import asyncio
import gzip
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fcp_core.protocol.status import Code
from fcp_core.server.http.body_queue import PART
from tests.server.calls import UPLOAD, upload


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


@pytest.mark.slow
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
