"""The shell around one task: carries out what its machines ask for.

Two machines meet here: the task with its assignments (who is in progress, when it ends) and the
aggregation protocol (how contributions come in). The engine's fold does the arithmetic, in threads
of its own; its outcomes come back to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from fcp_core.aggregation.engine import Engine, Fold, HeldBody
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.clock import Clock
from fcp_core.rounds.events import Assigned, Contributed, Dropped, Event, TaskClosed, TaskOpened
from fcp_core.rounds.protocols import Body, Tickets, Work
from fcp_core.rounds.session import DeviceSession, assignment_id
from fcp_core.rounds.task import (
    AccumulateEffect,
    CompleteEffect,
    DroppedEffect,
    EndEffect,
    Group,
    TaskMachine,
)
from fcp_core.rounds.tasks import TaskSpec, TaskState, TaskStatus
from fcp_core.server.services.device_tokens import label
from fcp_core.server.services.downloads import Published
from fcp_core.server.services.engine_status import outcome_of
from fcp_core.server.services.protocol_host import ProtocolHost, ShellEffect
from fcp_core.server.services.ticker import Ticker
from fcp_core.server.services.upload_memory import UploadMemory

logger = logging.getLogger("fcp.services")


@dataclass(frozen=True)
class TaskParts:
    """The machines of a task; a restart makes them again.

    :param begun: what the protocol wanted when it began.
    """

    machine: TaskMachine
    protocol: ProtocolHost
    fold: Fold
    begun: Sequence[ShellEffect] = ()


class Places(Protocol):
    """What a task tells its population."""

    def left(self, task: TaskRunner, *, contributed: bool, now: float) -> None:
        """Let other devices have the places of those that left."""
        ...


class Keeper(Protocol):
    """What a task tells whoever keeps it."""

    async def ended(self, task: TaskRunner, result: bytes | None) -> TaskStatus:
        """Store how a task ended; return the status that counts."""
        ...

    def lost(self, task: TaskRunner, why: str) -> None:
        """Restart a task that has lost contributions."""
        ...


@dataclass(frozen=True)
class Surroundings:
    """What all tasks of a server work with.

    :param notify: called with each event.
    """

    clock: Clock
    ticker: Ticker
    engine: Engine
    memory: UploadMemory
    notify: Callable[[Event], None]


class TaskRunner:
    """One task that is offered, until it has ended.

    :param spec: the specification without its large parts.
    """

    def __init__(
        self,
        spec: TaskSpec,
        aggregation_id: str,
        parts: TaskParts,
        published: Published,
        assignment_timeout: float,
        surroundings: Surroundings,
        places: Places,
        keeper: Keeper,
    ) -> None:
        self.spec = spec
        self.aggregation_id = aggregation_id
        self.machine = parts.machine
        self.protocol = parts.protocol
        self.published = published
        self.assignment_timeout = assignment_timeout
        self._parts = parts
        self._fold = parts.fold
        self._with = surroundings
        self._places = places
        self._keeper = keeper
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        #: How many had contributed and how many were dropped when the population was last told.
        self._seen = (0, 0)
        self._result: bytes | None = None
        self._ended: TaskStatus | None = None
        self._stopped = False
        self._done = asyncio.Event()
        self._finishing: asyncio.Task[None] | None = None

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.machine.task_id

    def status(self) -> TaskStatus:
        """Return the task's status; it is final only once the end has been stored."""
        if self._ended is not None:
            return self._ended
        status = self.machine.status()
        if status.state.is_final:
            return replace(status, state=TaskState.CLOSING, finished=None, error=None)
        return status

    def open(self, now: float) -> None:
        """Begin: from now on the task takes devices and keeps its times."""
        self._begin(now)
        machine = self.machine
        self._with.notify(
            TaskOpened(now, machine.population, self.task_id, machine.name, machine.goal_count)
        )
        self._schedule()

    def restart(self, parts: TaskParts, now: float) -> None:
        """Begin again with nothing, as after a restart of the server.

        Those who are in progress are answered ABORTED; those who have contributed hear nothing.
        """
        for effect in self.machine.cancel(Code.ABORTED, "the task was restarted", now):
            if isinstance(effect, DroppedEffect):
                self._dropped(effect, now)
        self.protocol.end()
        self._fold.abort()
        self._parts = parts
        self.machine, self.protocol, self._fold = parts.machine, parts.protocol, parts.fold
        self._seen = (0, 0)
        self._begin(now)
        self._schedule()
        self._places.left(self, contributed=False, now=now)

    async def wait(self) -> bytes:
        """Return the result as soon as it is stored.

        :raises StatusError: why there is none; UNAVAILABLE if the server stops before the end.
        """
        await self._done.wait()
        if self._ended is None:
            raise StatusError(
                Code.UNAVAILABLE, f"the server stopped before task {self.machine.name} had ended"
            )
        if self._ended.error is not None:
            raise StatusError(*self._ended.error)
        assert self._result is not None  # a task that ended without an error has a result
        return self._result

    async def stop(self) -> None:
        """Let go of everything without ending the task: it may go on after a restart."""
        self._stopped = True
        self._with.ticker.at(self._key, None, self.tick)
        if self._finishing is not None:
            await self._finishing
        else:
            self._fold.abort()
        stopping = StatusError(Code.UNAVAILABLE, "the server is stopping")
        for assignment in self.machine.all():
            for call in assignment.calls.values():
                if call.waiter is not None and not call.waiter.done():
                    call.waiter.set_exception(stopping)
                    # Nobody may wait for it.
                    call.waiter.exception()
        self._done.set()

    # What devices do.

    def assign(self, session: DeviceSession, now: float) -> Assignment:
        """Give a device session this task."""
        id_ = assignment_id(session.key, self.aggregation_id)
        assignment = self._assign(id_, session.session_id, now)
        session.assigned_any = True
        return assignment

    def assignment_of(self, session: DeviceSession) -> Assignment | None:
        """Return a session's assignment of this task, whether it has ended or not, or None."""
        return self.machine.get(assignment_id(session.key, self.aggregation_id))

    def find(self, id_: str, now: float, *, begins: bool) -> Assignment:
        """Return the assignment that a token names.

        A server that was restarted does not know it: the device goes on all the same if there is
        room, and if its protocol needs nothing of what it did before.

        :param begins: whether the device begins to contribute only now.
        :raises StatusError: ABORTED if the task cannot take the device.
        """
        assignment = self.machine.get(id_)
        if assignment is not None:
            return assignment
        if self.machine.capacity < 1 or not (begins or self.protocol.resumable):
            raise StatusError(
                Code.ABORTED,
                "the server was restarted and this assignment is lost; check in again",
            )
        assignment = self._assign(id_, "", now)
        if not begins:
            assignment.move(Stage.STARTED)
        return assignment

    def call(
        self, assignment: Assignment, method: str, request: Any, tickets: Tickets, now: float
    ) -> Any:
        """Have the protocol take a call; return its :class:`ProtocolCall`.

        :raises StatusError: what the device is told.
        """
        call, effects = self.protocol.receive(assignment, method, request, tickets, now)
        self._perform(effects, now)
        return call

    def begin_upload(self, assignment: Assignment, slot: str, now: float) -> bool:
        """Let bytes come; return whether they are wanted: a second time they are not.

        :raises StatusError: ABORTED if the assignment was dropped, UNAUTHENTICATED if it has not
            begun to contribute.
        """
        if assignment.error is not None:
            raise StatusError(Code.ABORTED, assignment.error.message)
        if assignment.state is Stage.ASSIGNED:
            raise StatusError(
                Code.UNAUTHENTICATED, "this upload was not started with an authorization token"
            )
        return assignment.begin_upload(slot, now)

    def finish_upload(self, assignment: Assignment, slot: str, body: Body, now: float) -> None:
        """Take the bytes of an upload; of two of one slot the first counts.

        :raises StatusError: ABORTED if the assignment was dropped meanwhile.
        """
        if assignment.error is not None:
            raise StatusError(Code.ABORTED, assignment.error.message)
        size = len(body)
        if not assignment.finish_upload(slot, body, now):
            if isinstance(body, HeldBody):
                body.drop()
            return
        self._with.memory.hold(size)
        read = body if self.protocol.reads else None
        self._perform(self.protocol.uploaded(assignment, slot, size, read, now), now)

    def drop(self, id_: str, phase: str, code: Code, message: str) -> None:
        """Release a device that will not contribute."""
        now = self._with.clock.now()
        self._perform(self.machine.drop(id_, phase, code, message, now), now)

    # What the server does.

    def cancel(self, code: Code, message: str) -> None:
        """End the task without a result, if it has not ended."""
        now = self._with.clock.now()
        self._perform(self.machine.cancel(code, message, now), now)

    def tick(self, now: float) -> None:
        """Let time pass."""
        self._perform([*self.machine.tick(now), *self.protocol.tick(now)], now)

    # Inside.

    def _begin(self, now: float) -> None:
        fold, loop = self._fold, self._loop

        def lost(why: str) -> None:
            if fold is self._fold and not self._stopped and not self.machine.state.is_final:
                self._keeper.lost(self, why)

        def from_engine(why: str) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lost, why)

        fold.on_loss(from_engine)
        self._perform(self._parts.begun, now)

    @property
    def _key(self) -> str:
        return f"task:{self.task_id}"

    def _schedule(self) -> None:
        ticks = (self.machine.next_tick(), self.protocol.next_tick())
        when = min((tick for tick in ticks if tick is not None), default=None)
        self._with.ticker.at(self._key, when, self.tick)

    def _assign(self, id_: str, session_id: str, now: float) -> Assignment:
        session = label(session_id) if session_id else ""
        assignment = self.machine.assign(id_, session, now)
        machine = self.machine
        self._with.notify(Assigned(now, machine.population, session, self.task_id, machine.name))
        self._schedule()
        return assignment

    def _perform(self, effects: Sequence[ShellEffect], now: float) -> None:
        """Carry out effects, in order."""
        queue = deque(effects)
        while queue:
            effect = queue.popleft()
            if isinstance(effect, AccumulateEffect):
                self._accumulate(effect.group)
            elif isinstance(effect, DroppedEffect):
                queue.extend(self._dropped(effect, now))
            elif isinstance(effect, CompleteEffect):
                self._when_done(self._fold.report(self.spec.result_format), self._reported)
            elif isinstance(effect, Work):
                work = self._with.engine.run(effect.function, effect.arguments)
                self._when_done(work, partial(self._worked, effect.key))
            else:
                self._end(effect, now)
        self._schedule()
        seen, self._seen = self._seen, (self.machine.contributed, self.machine.dropped)
        if seen != self._seen:
            self._places.left(self, contributed=seen[1] == self._seen[1], now=now)

    def _accumulate(self, group: Group) -> None:
        ids = [assignment.id for assignment in group.assignments]
        if group.slot is None:
            assert group.checkpoint is not None  # the protocol's host saw to it
            future = self._fold.add_group(ids, group.checkpoint)
        else:
            body = group.assignments[0].take(group.slot)
            if isinstance(body, HeldBody):
                future = self._fold.add_held(ids[0], body)
            else:
                future = self._fold.add(ids[0], body)
        self._when_done(future, partial(self._accumulated, group))

    def _accumulated(self, group: Group, future: Future[None]) -> None:
        now = self._with.clock.now()
        code, message = outcome_of(future)
        ended = self.machine.state.is_final
        effects: list[ShellEffect] = [*self.machine.accumulated(group, code, message, now)]
        if ended:
            return
        error = None if code is Code.OK else StatusError(code, message)
        answers = self.protocol.accumulated(group, error, now)
        if error is None:
            for assignment in group.assignments:
                self._contributed(assignment, now)
        self._perform([*answers, *effects], now)

    def _contributed(self, assignment: Assignment, now: float) -> None:
        self._with.memory.release(assignment.release())
        machine = self.machine
        self._with.notify(
            Contributed(
                now,
                machine.population,
                assignment.session_id,
                self.task_id,
                machine.name,
                assignment.size,
                now - assignment.assigned,
                assignment.upload_seconds,
                now - assignment.queued,
            )
        )

    def _worked(self, key: str, future: Future[bytes]) -> None:
        now = self._with.clock.now()
        code, message = outcome_of(future)
        result = future.result() if code is Code.OK else StatusError(code, message)
        self._perform(self.protocol.worked(key, result, now), now)

    def _dropped(self, effect: DroppedEffect, now: float) -> list[ShellEffect]:
        assignment, machine = effect.assignment, self.machine
        self._with.memory.release(assignment.release())
        effects = self.protocol.left(effect, now)
        self._with.notify(
            Dropped(
                now,
                machine.population,
                assignment.session_id,
                self.task_id,
                machine.name,
                effect.phase,
                effect.code,
                effect.message,
            )
        )
        return effects

    def _reported(self, future: Future[bytes]) -> None:
        now = self._with.clock.now()
        code, message = outcome_of(future)
        if code is Code.OK:
            self._result = future.result()
        self._perform(self.machine.reported(code, message, now), now)

    def _end(self, effect: EndEffect, now: float) -> None:
        if effect.code is not Code.OK:
            self._result = None
            self._fold.abort()
        self.protocol.end()
        self._finishing = self._loop.create_task(self._finish())

    async def _finish(self) -> None:
        status = await self._keeper.ended(self, self._result)
        if status.error is not None:
            self._result = None
        self._ended = status
        self._done.set()
        code, message = status.error or (Code.OK, "")
        self._with.notify(
            TaskClosed(
                self._with.clock.now(),
                status.population,
                status.task_id,
                status.name,
                status.contributed,
                code,
                message,
            )
        )

    def _when_done(self, future: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        """Call *then* on the event loop once the engine is done."""
        fold = self._fold

        def on_loop(done: Future[Any]) -> None:
            if self._stopped or fold is not self._fold:
                return
            try:
                then(done)
            except Exception:
                # Nothing must wait for ever for a machine that broke.
                logger.exception("task %s failed", self.machine.name)
                now = self._with.clock.now()
                message = "the server failed; its log says why"
                self._perform(self.machine.fail(Code.INTERNAL, message, now), now)

        def from_engine(done: Future[Any]) -> None:
            # A loop's own thread need not wake it; one that is closed has nobody left who waits.
            here = threading.get_ident() == self._thread
            if not self._loop.is_closed():
                (self._loop.call_soon if here else self._loop.call_soon_threadsafe)(on_loop, done)

        future.add_done_callback(from_engine)
