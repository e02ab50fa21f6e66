"""The servers of a run, their storage and their network: killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any

from benchmarks.crashing.disk import Disk
from benchmarks.crashing.faults import Fault, Plan
from benchmarks.crashing.member import PATIENCE, Member
from benchmarks.crashing.virtual import LostError, VirtualLoop
from benchmarks.crashing.wires import Wires
from fcp_core.client.steps import Reply, Request
from fcp_core.errors import UsageError
from fcp_core.protocol import routes
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.token_parts import mark_of
from fcp_core.server.http.passing import mark_of_call
from fcp_core.server.services import Services

PAUSE = 0.5
#: How long a member may take to stop, in virtual seconds, before whoever runs it kills it.
STOP = 90.0


class World:
    """All members, their storage, and what is wrong with what lies between."""

    def __init__(self, plan: Plan, loop: VirtualLoop) -> None:
        self.plan, self.loop = plan, loop
        self.rng = random.Random(plan.seed)
        self.disk = Disk(loop, random.Random(plan.seed + 1))
        self.disk.releases.extend(plan.releases)
        self.wires = Wires(loop, random.Random(plan.seed + 2), self.disk.effects)
        self.members: list[Member | None] = [None] * plan.members
        self.offsets = [0.0] * plan.members
        #: What becomes of the next calls.
        self.calls: deque[str] = deque()
        self.effects: Counter[str] = self.disk.effects
        self.restarting: set[asyncio.Task[None]] = set()
        #: Of faults of the product, which nothing explains.
        self.broken: list[str] = []
        loop.spawned = self._spawned

    @staticmethod
    def _spawned(task: asyncio.Task[Any], member: Member | None) -> None:
        if member is not None:
            if len(member.tasks) > 1000:
                member.tasks = [task for task in member.tasks if not task.done()]
            member.tasks.append(task)
            if member.dead.done():
                task.cancel()

    # Life and death.

    def start(self, number: int) -> None:
        """Start a member."""
        member = self.members[number] = Member(self, number)
        member.offset = self.offsets[number]
        member.spawn(member.start())

    def kill(self, number: int, seconds: float, *, counts: bool = True) -> None:
        """Kill a member without another word, and start it again later."""
        member = self.members[number]
        if member is None:
            return
        self.members[number] = None
        self.effects["kill"] += counts
        member.handle.dead = True
        member.dead.set_result(None)
        self.wires.dies(member)
        if hasattr(member, "services"):
            member.services.ticker.stop()
        for task in member.tasks:
            task.cancel()

        async def again() -> None:
            await asyncio.sleep(seconds)
            self.start(number)

        self._later(again())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what no member does."""
        task = Context().run(self.loop.create_task, work)
        self.restarting.add(task)
        task.add_done_callback(self.restarting.discard)

    def stop(self, number: int, seconds: float) -> None:
        """Stop a member as SIGTERM does; kill it if it has not stopped in time."""
        member = self.members[number]
        if member is None or not member.ready:
            return
        self.effects["stop"] += 1
        stopping = member.spawn(member.stop())

        async def end() -> None:
            await asyncio.wait((stopping, member.dead), timeout=STOP)
            if not stopping.done():
                self.effects["stop: killed at last"] += 1
            elif not (stopping.cancelled() or stopping.exception() is None):
                self.broken.append(f"a stop failed: {stopping.exception()!r}")
            if self.members[number] is member:
                self.kill(number, seconds, counts=False)

        self._later(end())

    def inflict(self, fault: Fault) -> None:
        """Have something go wrong now."""
        details = fault.details
        if fault.kind == "kill":
            self.kill(details["member"], details["seconds"])
        elif fault.kind == "stop":
            self.stop(details["member"], details["seconds"])
        elif fault.kind == "call":
            self.calls.extend([details["fate"]] * details["count"])
        elif fault.kind == "disk full":
            self.disk.full_until = self.loop.time() + details["seconds"]
        elif fault.kind == "clock" and details["member"] < 0:
            self.effects["clock step of the storage"] += 1
            self.disk.offset += details["by"]
        elif fault.kind == "clock":
            self.effects["clock step"] += 1
            self.offsets[details["member"]] += details["by"]
            member = self.members[details["member"]]
            if member is not None:
                member.offset = self.offsets[details["member"]]
        else:
            member = self.members[details["member"]]
            if member is None:
                return
            if fault.kind == "pause":
                self.effects["pause"] += 1
                member.wakes, member.turns = self.loop.time() + details["seconds"], 0
            elif fault.kind == "link":
                other = (details["member"] + details["other"]) % self.plan.members
                after, seconds = details["after"], details["seconds"]
                self.wires.break_soon(details["member"], other, after, seconds)
            elif fault.kind == "transaction":
                member.handle.fates.extend([details["fate"]] * details["count"])
            else:
                member.handle.cut_until = self.loop.time() + details["seconds"]

    # Calls.

    async def deliver(self, request: Request) -> Reply:
        """Carry a device's call to a member, as often as the network does.

        :raises LostError: if there is no answer.
        :raises StatusError: as the server answers.
        """
        fate = self.calls.popleft() if self.calls else ""
        if fate:
            self.effects[f"call: {fate}"] += 1
        await asyncio.sleep(self.rng.uniform(0.001, 0.05))
        if fate == "lost":
            raise LostError
        path = request.url.partition("//")[2].partition("/")[2]
        mark, begins = mark_of_call(request.method, "/" + path.partition("?")[0])
        carry = partial(self._at_owner, mark, begins)
        if request.name == "upload" and self.plan.members > 1:
            carry = self._at_any
        if fate == "twice":
            twin = Context().run(self.loop.create_task, carry(lambda one: _serve(one, request)))
            twin.add_done_callback(lambda done: done.cancelled() or done.exception())
        answer = await carry(lambda one: _serve(one, request))
        await asyncio.sleep(self.rng.uniform(0.001, 0.05))
        if fate == "answer lost":
            raise LostError
        return answer

    async def at_owner(self, population: str, work: Callable[[Services], Any]) -> Any:
        """Have the owner of a population do something for a program.

        :raises LostError: if there is no answer.
        """
        await asyncio.sleep(self.rng.uniform(0.001, 0.05))
        return await self._at_owner(mark_of(population), True, work)

    async def _at_any(self, work: Callable[[Services], Any]) -> Any:
        """Have any member receive an upload, whoever owns its population."""
        living = [each for each in self.members if each is not None and each.ready]
        if not living:
            raise LostError
        entry = self.rng.choice(living)
        return await entry.call(lambda: work(entry.services))

    async def _at_owner(
        self, mark: bytes | None, begins: bool, work: Callable[[Services], Any]
    ) -> Any:
        """Pass on what comes to any member, as the HTTP server does."""
        living = [each for each in self.members if each is not None and each.ready]
        if not living:
            raise LostError
        entry = self.rng.choice(living)
        if entry.services.members is None or mark is None:
            return await entry.call(lambda: work(entry.services))
        end = self.loop.time() + PATIENCE
        while self.loop.time() < end and not entry.dead.done():
            member = self._owner(entry, mark, begins)
            if member is not None and member is not entry:
                member = self._owner(member, mark, begins, passed=True)
            if member is not None:
                return await member.call(partial(work, member.services))
            await entry.call(lambda: _look(entry.services))
            await asyncio.sleep(PAUSE)
        raise StatusError(Code.UNAVAILABLE, "no member of the server owns this population now")

    def _owner(
        self, entry: Member, mark: bytes, begins: bool, *, passed: bool = False
    ) -> Member | None:
        members = entry.services.members
        assert members is not None  # there are several
        owner = members.table.owner(mark, members.clock)
        if owner is None:
            return None
        if not owner.url:
            return None if owner.giving and begins else entry
        found = (each for each in self.members if each is not None and each.url == owner.url)
        return None if passed else next((each for each in found if each.ready), None)


async def _look(services: Services) -> None:
    assert services.members is not None  # there are several
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(services.members.look(), 3.0)


async def _serve(services: Services, request: Request) -> Reply:
    """Answer a device's call, as a handler does."""
    if request.name == "upload":
        name = request.message.resource_name
        if await services.media.begin_upload(name, None):
            await asyncio.sleep(0.01)
            await services.media.finish_upload(name, request.data, None)
        return Reply(b"")
    if request.message is None:
        found = await services.media.download(request.url.partition("/data/")[2])
        return Reply(bytes(found.data), found.content_type)
    serve = services.method(routes.named(request.name))
    assert serve is not None  # a device calls what the server told it of
    return Reply((await serve(request.message, None)).SerializeToString())


class FaultLog(logging.Handler):
    """Keeps the errors of a run that no fault of ours explains."""

    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record with an exception that is nobody's answer."""
        told = record.args if isinstance(record.args, tuple) else ()
        mistakes = (each for each in told if isinstance(each, UsageError))
        error = record.exc_info[1] if record.exc_info else next(mistakes, None)
        if error is not None and not isinstance(error, StatusError | asyncio.CancelledError):
            self._found.append(f"{record.getMessage()}: {type(error).__name__}: {error}")
