"""No call stops the server: calls are small, and wait neither for uploads nor for promises."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import time

import pytest
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets

from fcp_core.protocol import routes
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility
from fcp_core.server.http.connections import BoundedHTTPServer
from fcp_core.server.http.limits import (
    CALLS_AT_ONCE,
    FREE_OF_CALL,
    SMALL_CALLS,
    Limits,
    limits_of_call,
)
from tests.server.calls import UPLOAD

CHECK_IN = "/v1/eligibilityevaltasks/p:request"
ABORT = "/v1/aggregations/a/clients/t:abort"


class EligibilityEvalTasks:
    async def request_eligibility_eval_task(self, request, caller):
        return eligibility.EligibilityEvalTaskResponse(session_id="s")


class Aggregations:
    async def abort_aggregation(self, request, caller):
        return eligibility.EligibilityEvalTaskResponse()


@pytest.fixture
def services(http):
    services = http.Services()
    services.eligibility_eval_tasks = EligibilityEvalTasks()
    services.aggregations = Aggregations()
    return services


def wait_for(condition):
    while not condition():
        time.sleep(0.001)


def test_every_method_has_a_small_limit():
    limits = Limits()
    for route in routes.ROUTES:
        small = limits_of_call(limits, route.method)
        assert small.max_body == small.max_decompressed <= 1 << 20
    assert set(SMALL_CALLS) <= {route.method for route in routes.ROUTES}
    assert limits_of_call(Limits(max_call=1000), "StartTaskAssignment").max_body == 1000
    assert limits_of_call(Limits(max_body=1000), "StartTaskAssignment").max_body == 1000


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_large_check_in_is_refused_before_it_is_parsed(make_front, http, services, encoding):
    """The larger of these took gibibytes and a minute to parse."""
    front = make_front(services)
    for size in (70_000, 30_000_000):
        # A field with nothing in it, again and again: two bytes each, an object each.
        body = b"\x12\x00" * (size // 2)
        if encoding == "gzip":
            body = gzip.compress(body)
        header = http.head(CHECK_IN, Content_Length=len(body), Content_Encoding=encoding)
        reply = front.ask(header, body[: 1 << 16])
        assert reply.status == 413
        assert "65536" in reply.error[1]
    assert front.frontend.in_flight == 0


def test_what_is_announced_holds_nothing(make_front, http, services):
    front = make_front(services, max_body=1000, max_decompressed=1000, max_in_flight=1000)
    services.media.names |= {"second"}
    with contextlib.ExitStack() as stack:
        for name in ("known/upload", "second"):
            connection = stack.enter_context(front.connect())
            path = UPLOAD.replace("known/upload", name)
            connection.send(http.head(path, Content_Length=1000))
            assert services.media.started.acquire(timeout=http.WAIT)
        assert front.frontend.in_flight == 0
        services.media.names.add("third")
        path = UPLOAD.replace("known/upload", "third")
        reply = front.ask(http.head(path, Content_Length=900), bytes(900))
        assert reply.status == 200


def test_large_bodies_are_counted_as_they_come(make_front, http, services):
    front = make_front(services, max_in_flight=1 << 30)
    packed = gzip.compress(bytes(100))[:10]
    for encoding in ("identity", "gzip"):
        with front.connect() as connection:
            header = http.head(UPLOAD, Content_Length=1 << 29, Content_Encoding=encoding)
            connection.send(header, packed, b"" if encoding == "gzip" else bytes(200_000))
            wait_for(lambda: front.frontend.in_flight >= 10)
            assert front.frontend.in_flight <= 200_010
        assert services.media.abandoned.acquire(timeout=http.WAIT)
        assert front.frontend.in_flight == 0


def test_uploads_leave_room_for_calls(make_front, http, services):
    front = make_front(services, max_body=1000, max_decompressed=1000, max_in_flight=1000)
    with front.connect() as connection:
        connection.send(http.head(UPLOAD, Content_Length=1000), bytes(999))
        wait_for(lambda: front.frontend.in_flight == 999)
        reply = front.ask(http.head(CHECK_IN, Content_Length=300), b"\x1a\x00" * 150)
        assert reply.status == 200


def test_large_calls_leave_room_for_small_ones(make_front, http, services):
    size = 20_000
    front = make_front(services, max_call=size)
    room = CALLS_AT_ONCE * size
    each = size - 1 - FREE_OF_CALL
    with contextlib.ExitStack() as stack:
        for _ in range(room // each + 1):
            connection = stack.enter_context(front.connect())
            connection.send(http.head(ABORT, Transfer_Encoding="chunked"))
            connection.send(b"%x\r\n" % size, bytes(size - 1))
        wait_for(lambda: front.frontend.in_flight > room - each)
        # As many as there is room for; the next large one is turned away.
        header = http.head(ABORT, Content_Length=size)
        assert front.ask(header, bytes(size)).status == 429
        # What devices send goes on.
        assert front.ask(http.head(CHECK_IN, Content_Length=300), b"\x1a\x00" * 150).status == 200
    wait_for(lambda: front.frontend.in_flight == 0)


def test_a_small_upload_is_taken_uncounted_while_there_is_room(make_front, http, services):
    front = make_front(services, body_timeout=0.5, max_body=1 << 20)
    context = front.frontend._context
    assert context.always_taken == FREE_OF_CALL
    body = bytes(FREE_OF_CALL)
    with front.connect() as connection:
        connection.send(http.head(UPLOAD, Content_Length=len(body)), body[:100])
        assert services.media.started.acquire(timeout=http.WAIT)
        assert front.frontend.in_flight == 0
    assert services.media.abandoned.acquire(timeout=http.WAIT)
    assert front.ask(http.head(UPLOAD, Content_Length=len(body)), body).status == 200
    assert services.media.received["known/upload"] == body
    # Where much waits to be accumulated, it waits like any other, and is turned away in the end.
    services.media.names.add("second")
    services.media.held = context.limits.max_in_flight
    header = http.head(UPLOAD.replace("known/upload", "second"), Content_Length=len(body))
    assert front.ask(header, body).status == 429
    services.media.held = 0
    assert front.ask(header, body).status == 200


def test_the_connections_of_one_address_are_bounded():
    async def main():
        limits = Limits(max_connections_per_address=2)
        server = BoundedHTTPServer(lambda *request: None, limits)
        (listener,) = bind_sockets(0, "127.0.0.1")
        clients = []

        async def connect(address):
            client = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            clients.append(client)
            stream = IOStream(accepted)
            server.handle_stream(stream, (address, 1))
            await asyncio.sleep(0)
            return stream

        first = await connect("203.0.113.7")
        assert not first.closed()
        assert not (await connect("203.0.113.7")).closed()
        assert (await connect("203.0.113.7")).closed()
        # Others have places of their own, and so has each network of IPv6.
        assert not (await connect("203.0.113.8")).closed()
        assert not (await connect("2001:db8::1")).closed()
        assert not (await connect("2001:db8::2")).closed()
        assert (await connect("2001:db8::3")).closed()
        # This machine may have any number.
        for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            for _ in range(3):
                assert not (await connect(address)).closed()
        # A place is free again once its connection is gone.
        first.close()
        while server.connections > 13:
            await asyncio.sleep(0)
        assert not (await connect("203.0.113.7")).closed()
        await server.close_all_connections()
        assert server.connections == 0
        assert not server._of_address
        for client in clients:
            client.close()
        listener.close()

    asyncio.run(main())
