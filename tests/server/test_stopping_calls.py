"""What becomes of calls whose server stops or whose client leaves."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading

import pytest

from fcp_core.protocol.protos import (
    eligibility_eval_tasks_pb2 as eligibility,
)
from fcp_core.protocol.protos import (
    google_longrunning_operations_pb2 as operations,
)
from fcp_core.protocol.status import Code
from tests.server.calls import CHECK_IN, post


def test_logs_are_quiet_and_carry_no_token(make_front, http, services, caplog):
    caplog.set_level(logging.DEBUG)

    class TaskAssignments:
        async def start_task_assignment(self, request, caller):
            return operations.Operation(name="operations/secret")

    services.task_assignments = TaskAssignments()
    front = make_front(services)
    front.ask(post(http, path="/v1/populations/p/taskassignments/session-7:start"))
    front.ask(post(http, path="/v1/aggregations/a/clients/secret:submit", X_Device="secret"))
    front.ask(post(http, path="/upload/v1/media/secret"))
    stop_in_background(front).result(http.WAIT)  # then everything is logged
    lines = [r.getMessage() for r in caplog.records if r.name != "asyncio"]
    # A session's id is a capability: logs name it by a hash.
    session = hashlib.sha256(b"session-7").hexdigest()[:16]
    assert any(f"StartTaskAssignment {session} -> 200" in line for line in lines)
    assert not any("session-7" in line for line in lines)
    assert any("upload" in line and "-> 401" in line for line in lines)
    assert not any("-> 4" in r.getMessage() for r in caplog.records if r.levelno > logging.DEBUG)
    assert not any("secret" in line for line in lines if "no such upload" not in line)


class Slow:
    """A service that answers when the test says so."""

    def __init__(self):
        self.entered = threading.Event()
        self.release = asyncio.Event()

    async def request_eligibility_eval_task(self, request, caller):
        self.entered.set()
        await self.release.wait()
        return eligibility.EligibilityEvalTaskResponse(session_id="late")


def stop_in_background(front):
    return asyncio.run_coroutine_threadsafe(front.frontend.stop(), front.loop)


def test_a_stop_lets_requests_end(make_front, http, services):
    services.eligibility_eval_tasks = slow = Slow()
    front = make_front(services)
    with front.connect() as connection, front.connect() as idle:
        connection.send(post(http))
        idle.send(http.head("/readyz", "GET"))
        assert idle.reply().status == 200
        assert slow.entered.wait(http.WAIT)
        stopped = stop_in_background(front)
        # The stop begins on another thread: until it has, the server is ready.
        while idle.send(http.head("/readyz", "GET")).reply().status == 200:
            pass
        with pytest.raises(ConnectionError):
            http.Connection(front.port)
        front.loop.call_soon_threadsafe(slow.release.set)
        assert connection.reply().status == 200
        stopped.result(http.WAIT)
        assert connection.is_closed()
        assert idle.is_closed()


def test_a_stop_lets_requests_end_that_came_after_it_began(make_front, http, services):
    """Seen in a rolling restart: a check-in got the header of its answer, and no more."""

    class InTurn:
        def __init__(self):
            self.entered = [threading.Event(), threading.Event()]
            self.release = [asyncio.Event(), asyncio.Event()]
            self.calls = 0

        async def request_eligibility_eval_task(self, request, caller):
            turn, self.calls = self.calls, self.calls + 1
            self.entered[turn].set()
            await self.release[turn].wait()
            return eligibility.EligibilityEvalTaskResponse(session_id="late")

    services.eligibility_eval_tasks = slow = InTurn()
    front = make_front(services)
    with front.connect() as first, front.connect() as second:
        first.send(post(http))
        assert slow.entered[0].wait(http.WAIT)
        second.send(http.head("/readyz", "GET"))
        assert second.reply().status == 200
        stopped = stop_in_background(front)
        front.run(asyncio.sleep(0))  # now it has begun
        second.send(post(http))
        assert slow.entered[1].wait(http.WAIT)
        front.loop.call_soon_threadsafe(slow.release[0].set)
        assert first.reply().status == 200
        front.run(asyncio.sleep(0.1))  # for the stop to go on, if it does
        front.loop.call_soon_threadsafe(slow.release[1].set)
        answer = second.reply()
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert second.is_closed()
        stopped.result(http.WAIT)


@pytest.mark.slow
def test_a_stop_cuts_off_a_request_that_hangs(make_front, http, services):
    services.eligibility_eval_tasks = slow = Slow()
    front = make_front(services, drain_timeout=0.1)
    with front.connect() as connection, front.connect() as sender:
        connection.send(post(http))
        assert slow.entered.wait(http.WAIT)
        sender.send(http.head(CHECK_IN, Content_Length=10))
        stop_in_background(front).result(http.WAIT)
        reply = connection.reply()
        assert (reply.status, reply.error[0]) == (429, Code.UNAVAILABLE)
        assert sender.is_closed()


def test_a_service_call_goes_on_without_its_client(make_front, http, services):
    services.eligibility_eval_tasks = slow = Slow()
    done = threading.Event()
    wait = slow.request_eligibility_eval_task

    async def call(request, caller):
        await wait(request, caller)
        done.set()
        return eligibility.EligibilityEvalTaskResponse()

    slow.request_eligibility_eval_task = call
    front = make_front(services)
    with front.connect() as connection:
        connection.send(post(http))
        assert slow.entered.wait(http.WAIT)
        connection.reset()
    front.loop.call_soon_threadsafe(slow.release.set)
    assert done.wait(http.WAIT)
