"""One virtual device: the client's session, over connections that cost little."""

from __future__ import annotations

import asyncio
import functools
import gzip
import random
import time
from collections.abc import Callable
from typing import Any

from fcp_core.bench.connections import Connections, split
from fcp_core.bench.report import Recorder
from fcp_core.bench.settings import Load
from fcp_core.client.asynchronous import drive
from fcp_core.client.eligibility import MULTIPLE, Eligibility
from fcp_core.client.protocols import PlanResults
from fcp_core.client.results import Outcome
from fcp_core.client.retry import RetrySchedule
from fcp_core.client.session import DeviceSettings, SessionEnd, device_session
from fcp_core.client.steps import Compute, Computed, Evaluate, Reply, Request, SessionStep, Sleep

#: What the report calls the requests of a session.
_STEPS = {
    "EligibilityEvalTasks.RequestEligibilityEvalTask": "check-in",
    "EligibilityEvalTasks.ReportEligibilityEvalTaskResult": "eligibility",
    "TaskAssignments.StartTaskAssignment": "start",
    "TaskAssignments.PerformMultipleTaskAssignments": "start",
    "TaskAssignments.ReportTaskResult": "report",
    "Operations.GetOperation": "poll",
    "Aggregations.StartAggregationDataUpload": "begin upload",
    "Aggregations.SubmitAggregationResult": "submit",
}
#: A request that is answered so is sent again.
_AGAIN = (429, 503)


class SessionError(Exception):
    """A session that ended early; its text is what the report counts it as."""


class World:
    """What the virtual devices of a run share."""

    def __init__(self, url: str, load: Load, recorder: Recorder, rng: random.Random) -> None:
        self.load = load
        self.recorder = recorder
        self.rng = rng
        #: How many devices may talk at a time; one that waits for its next poll does not.
        self.turns = asyncio.Semaphore(load.connections)
        self.settings = DeviceSettings(
            entry_point=url,
            population=load.population,
            api_key=load.api_key,
            client_version="fcp-bench",
            encode=_encoder(load) if load.gzip else None,
            any_address=True,
        )


def _encoder(load: Load) -> Callable[[bytes], bytes]:
    """Return what compresses bodies; the contributions are compressed already."""
    ready = {body: body for body in load.bodies}
    ready[b""] = gzip.compress(b"", 1, mtime=0)

    def encode(body: bytes) -> bytes:
        return ready.get(body) or gzip.compress(body, 1, mtime=0)

    return encode


class VirtualDevice:
    """Goes through one session.

    :param connections: its own, which are closed with the session, or those of all.
    :param body: what it contributes, as it is sent.
    """

    def __init__(self, world: World, connections: Connections, body: bytes) -> None:
        self._world = world
        self._connections = connections
        self._body = body
        self._step = ""
        self._asked: float | None = None

    async def run(self) -> str:
        """Check in, take a task, contribute; return how that ended.

        The device has its turn when this is called, and has given it back when this returns.

        :returns: ``contributed``, ``rejected`` (at check-in), ``no task``, or what failed.
        """
        world = self._world
        began = time.perf_counter()
        schedule = RetrySchedule(time.time, world.rng)
        try:
            end = await drive(device_session(world.settings, schedule), self._perform)
        except SessionError as error:
            return str(error)
        except OSError as error:
            return f"connection: {error.strerror or error}"
        finally:
            if not world.load.keep:
                self._connections.close()
            world.turns.release()
        outcome = self._outcome(end)
        if outcome == "contributed":
            world.recorder.step("session", time.perf_counter() - began)
        return outcome

    def _outcome(self, end: SessionEnd) -> str:
        if end.outcome is Outcome.CONTRIBUTED:
            return "contributed"
        if end.outcome is Outcome.FAILED:
            error = end.error or next((task.error for task in end.tasks if task.error), None)
            return f"{self._step}: {'failed' if error is None else error.code.name}"
        if end.outcome is Outcome.REJECTED and self._step == "check-in":
            return "rejected"
        self._assigned()
        return "no task"

    async def _perform(self, step: SessionStep) -> Any:
        if isinstance(step, Request):
            return await self._request(step)
        if isinstance(step, Sleep):
            return await self._pause(step.seconds)
        if isinstance(step, Evaluate):
            return self._evaluate(step.spec)
        if isinstance(step, Compute):
            wanted = self._world.load.task
            if wanted not in (None, step.assignment.task_name):
                raise SessionError(f"start: another task ({step.assignment.task_name})")
            return Computed(PlanResults(self._body), seconds=1e-9)
        return None

    def _evaluate(self, spec: Any) -> Eligibility:
        """Return what the device says of its eligibility: all it wants is what it was sent for."""
        wanted = self._world.load.task
        tasks = () if spec is None else spec.task_info
        multiple = [task.task_name for task in tasks if task.task_assignment_mode == MULTIPLE]
        named = tuple(name for name in multiple if name == wanted)
        weights = None
        if spec is not None and spec.eligibility_policies:
            weights = {
                task.task_name: 1.0 if wanted in (None, task.task_name) else 0.0
                for task in tasks
                if task.task_name in named or task.task_name not in multiple
            }
        return Eligibility(weights, named, not named and (not tasks or len(multiple) < len(tasks)))

    async def _request(self, request: Request) -> Reply:
        step = _STEPS.get(request.name, request.name)
        if step == "start":
            self._asked = time.perf_counter()
        elif step != "poll":
            self._assigned()
        self._step = "start" if step == "poll" else step
        try:
            origin, path = split(request.url)
        except ValueError:
            raise SessionError(f"{step}: an address that is none") from None
        headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        body = request.body or b""
        length = "" if request.body is None else f"Content-Length: {len(body)}\r\n"
        head = (
            f"{request.method} {path or '/'} HTTP/1.1\r\n{origin.header}{headers}{length}\r\n"
        ).encode()
        return await self._send(step, functools.partial(
            self._connections.exchange, origin, head, body
        ), len(head) + len(body))  # fmt: skip

    def _assigned(self) -> None:
        """Note how long the device waited for the answer to its request for a task."""
        if self._asked is not None:
            self._world.recorder.step("assignment", time.perf_counter() - self._asked)
            self._asked = None

    async def _send(self, step: str, send: Callable[[], Any], size: int) -> Reply:
        """Send a request, again if the server has no room, and return the answer."""
        world = self._world
        recorder = world.recorder
        for attempt in range(world.load.retries + 1):
            began = time.perf_counter()
            answer = await send()
            recorder.request(step, time.perf_counter() - began, size)
            if 200 <= answer.status < 300:
                # What else is downloaded is of no use here, and stays as it came.
                return Reply(answer.body, answer.content_type if step == "specification" else "")
            if answer.status not in _AGAIN or attempt == world.load.retries:
                break
            recorder.retries += 1
            await self._pause(world.load.retry_delay * (0.4 + world.rng.uniform(0.6, 1.0)))
        raise SessionError(f"{step}: HTTP {answer.status}")

    async def _pause(self, seconds: float) -> None:
        """Wait, and let others talk meanwhile."""
        if not seconds:
            return
        turns = self._world.turns
        turns.release()
        await asyncio.sleep(seconds)
        # If the run ends meanwhile, a turn too many is given back, and nobody takes it.
        await turns.acquire()
