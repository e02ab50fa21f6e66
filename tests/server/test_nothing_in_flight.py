"""However a body ends, nothing of it is counted any more: no byte, no reader, no request."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import threading
import time

import pytest

from fcp_core.protocol.checkpoint.wire import varint
from fcp_core.protocol.status import Code, StatusError

UPLOAD = "/upload/v1/media/{}?upload_protocol=raw"
SIZE = 1_000_000
NOISE = random.Random(5).randbytes(SIZE)
PACKED = gzip.compress(NOISE, 1)
LIMITS = {"max_body": 2_000_000, "max_decompressed": 2_000_000, "max_in_flight": 2_500_000}


#: A field that nobody knows, of a hundred thousand bytes.
LITTLE = b"\xfa\x7f" + varint(100_000) + bytes(100_000)


class Refuses:
    """A service that is asked, and says no."""

    async def start_task_assignment(self, request, sender):
        raise StatusError(Code.ABORTED, "enough")


class Counts:
    """What a server counts of the bodies that it receives."""

    def __init__(self, front):
        self.front = front
        self.context = front.frontend._context

    def now(self):
        async def look():
            context = self.context
            return (
                context.in_flight.held + context.calls.held,
                context.in_flight.readers + context.uploads.readers,
                len(context.busy),
            )

        return self.front.run(look())

    def until(self, what, condition):
        """Wait for what the server does after its answer, or without one."""
        end = time.monotonic() + 30
        while not condition(now := self.now()):
            assert time.monotonic() < end, f"it never came to {what}: {now}"
            time.sleep(0.005)


@pytest.fixture
def services(http):
    services = http.Services()
    services.media.names |= {f"n{number}" for number in range(9)}
    return services


def head(http, body, name="n0", **headers):
    return http.head(UPLOAD.format(name), Content_Length=len(body), **headers)


# What a client does, in the order in which it is sent, and what it is answered.


def succeeds(http, front, **encoding):
    body = PACKED if encoding else NOISE
    assert front.ask(head(http, body, **encoding), body).status == 200


def succeeds_chunked(http, front):
    request = http.head(UPLOAD.format("n0"), Transfer_Encoding="chunked")
    assert front.ask(request, http.chunks(NOISE[:500_000], NOISE[500_000:])).status == 200


def is_refused_by_name(http, front):
    assert front.ask(head(http, NOISE, "unknown"), NOISE).status == 401


def is_too_large(http, front):
    with front.connect() as connection:
        connection.send(http.head(UPLOAD.format("n0"), Content_Length=2_000_001))
        assert connection.reply().status == 413


def is_too_large_chunked(http, front):
    with front.connect() as connection:
        connection.send(http.head(UPLOAD.format("n0"), Transfer_Encoding="chunked"))
        connection.send(b"%x\r\n" % 2_000_001, bytes(2_000_001))
        assert connection.reply().status == 413


def unpacks_to_too_much(http, front):
    body = gzip.compress(bytes(2_000_001))
    assert front.ask(head(http, body, Content_Encoding="gzip"), body).status == 413


def is_no_gzip(http, front):
    assert front.ask(head(http, NOISE, Content_Encoding="gzip"), NOISE).status == 400


def breaks_off_as_gzip(http, front):
    body = PACKED[:-1000]
    assert front.ask(head(http, body, Content_Encoding="gzip"), body).status == 400


def has_an_unknown_encoding(http, front):
    assert front.ask(head(http, NOISE, Content_Encoding="br"), NOISE).status == 400


def finds_no_room(http, front):
    with front.connect() as other:
        body = bytes(1_900_000)
        other.send(head(http, body, "n1"), body[:-1])
        assert front.services.media.started.acquire(timeout=http.WAIT)
        counts = Counts(front)
        counts.until("what was sent", lambda now: now[0] == len(body) - 1)
        assert front.ask(head(http, NOISE), NOISE).status == 429
        assert counts.now()[0] == len(body) - 1
        other.send(b"x")
        assert other.reply().status == 200


def fails_in_the_service(http, front):
    async def finish_upload(name, body, sender=None):
        raise StatusError(Code.ABORTED, "the round is over")

    front.services.media.finish_upload = finish_upload
    assert front.ask(head(http, NOISE), NOISE).status == 409


def meets_a_fault_of_the_service(http, front):
    async def finish_upload(name, body, sender=None):
        raise ZeroDivisionError

    front.services.media.finish_upload = finish_upload
    assert front.ask(head(http, NOISE), NOISE).status == 500


def breaks(http, front, **encoding):
    body = PACKED if encoding else NOISE
    with front.connect() as connection:
        connection.send(head(http, body, **encoding), body[: SIZE // 2])
        assert front.services.media.started.acquire(timeout=http.WAIT)
        counts = Counts(front)
        counts.until("a body that is read", lambda now: now[0] > 0 and (encoding or now[1] == 1))
        connection.reset()


def breaks_chunked(http, front):
    with front.connect() as connection:
        connection.send(http.head(UPLOAD.format("n0"), Transfer_Encoding="chunked"))
        connection.send(b"%x\r\n" % SIZE, NOISE[: SIZE // 2])
        Counts(front).until("a body that is read", lambda now: now[0] > 0)
        connection.reset()


ENDS = {
    "plain": succeeds,
    "gzip": lambda http, front: succeeds(http, front, Content_Encoding="gzip"),
    "chunked": succeeds_chunked,
    "unknown name": is_refused_by_name,
    "too large": is_too_large,
    "too large, chunked": is_too_large_chunked,
    "too large unpacked": unpacks_to_too_much,
    "no gzip": is_no_gzip,
    "truncated gzip": breaks_off_as_gzip,
    "unknown encoding": has_an_unknown_encoding,
    "no room": finds_no_room,
    "refused by the service": fails_in_the_service,
    "fault of the service": meets_a_fault_of_the_service,
    "broken": breaks,
    "broken gzip": lambda http, front: breaks(http, front, Content_Encoding="gzip"),
    "broken chunked": breaks_chunked,
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_nothing_is_counted_after_the_end(make_front, http, services, end):
    front = make_front(services, body_timeout=2, **LIMITS)
    end(http, front)
    Counts(front).until("nothing in flight", lambda now: now == (0, 0, 0))
    # All the room is there again: a body of the largest size fits beside one that comes.
    body = bytes(1_900_000)
    assert front.ask(head(http, body, "n2"), body).status in (200, 409, 500)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_nothing_is_counted_after_a_time_out(make_front, http, services, encoding):
    front = make_front(services, body_timeout=0.5, **LIMITS)
    body = PACKED if encoding == "gzip" else NOISE
    with front.connect() as connection:
        with contextlib.suppress(ConnectionError):  # the time may be over before all is sent
            connection.send(head(http, body, Content_Encoding=encoding), body[: SIZE // 2])
        assert connection.is_closed()
    Counts(front).until("nothing in flight", lambda now: now == (0, 0, 0))


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_nothing_is_counted_after_a_stop_that_cuts_a_body_off(make_front, http, services, encoding):
    front = make_front(services, drain_timeout=0.1, **LIMITS)
    body = PACKED if encoding == "gzip" else NOISE
    counts = Counts(front)
    with front.connect() as connection:
        connection.send(head(http, body, Content_Encoding=encoding), body[: SIZE // 2])
        assert services.media.started.acquire(timeout=http.WAIT)
        counts.until("a body that is read", lambda now: now[0] > 0)
        front.run(front.frontend.stop())
        assert connection.is_closed()
    counts.until("nothing in flight", lambda now: now == (0, 0, 0))


def test_bodies_that_are_read_at_the_same_time_are_counted_one_by_one(make_front, http, services):
    front = make_front(services)
    counts = Counts(front)
    connections = [front.connect() for _ in range(4)]
    for number, connection in enumerate(connections):
        connection.send(head(http, NOISE, f"n{number}"), NOISE[: SIZE // 2])
        counts.until(
            "one reader more",
            lambda now, number=number: now[:2] == (SIZE // 2 * (number + 1), number + 1),
        )
    for number, connection in enumerate(connections):
        if number % 2:
            connection.reset()
        else:
            connection.send(NOISE[SIZE // 2 :])
            assert connection.reply().status == 200
            connection.socket.close()
        left = 3 - number
        counts.until(
            "one reader less", lambda now, left=left: now == (SIZE // 2 * left, left, left)
        )


def test_a_calls_body_is_no_longer_counted_while_its_service_answers(make_front, http, services):
    """Whoever waits for long, in a held check-in say, takes no room with what it sent."""
    entered, leave = threading.Event(), threading.Event()

    class Assignments:
        async def start_task_assignment(self, request, sender):
            entered.set()
            await asyncio.get_running_loop().run_in_executor(None, leave.wait, http.WAIT)
            raise StatusError(Code.ABORTED, "enough")

    services.task_assignments = Assignments()
    front = make_front(services)
    with front.connect() as connection:
        path = "/v1/populations/p/taskassignments/s:start"
        connection.send(http.head(path, Content_Length=len(LITTLE)), LITTLE)
        assert entered.wait(http.WAIT)
        assert Counts(front).now()[:2] == (0, 0)
        leave.set()
        assert connection.reply().status == 409
    Counts(front).until("nothing in flight", lambda now: now == (0, 0, 0))
