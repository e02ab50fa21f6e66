"""The shell around one task: carries out what its machines ask for.

Two machines meet here: the task with its assignments (who is in progress, when it ends) and the
aggregation protocol (how contributions come in). The engine's fold does the arithmetic, in threads
of its own; its outcomes come back to the event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from fcp_core.aggregation.engine import HeldBody
from fcp_core.plugins.settings import TaskSettings
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.effects import (
    AccumulateEffect,
    CompleteEffect,
    DroppedEffect,
    EndEffect,
    Group,
    KeptEffect,
)
from fcp_core.rounds.events import (
    Assigned,
    Contributed,
    Dropped,
    Event,
    Surplus,
    TaskClosed,
    TaskOpened,
)
from fcp_core.rounds.protocols import Body, Tickets, Work
from fcp_core.rounds.session import DeviceSession, assignment_id
from fcp_core.rounds.task import FINAL
from fcp_core.rounds.tasks import TaskSpec, TaskStatus
from fcp_core.rounds.text import clean
from fcp_core.rounds.tokens import label
from fcp_core.server.services.protocol_host import ShellEffect
from fcp_core.server.services.published import Published
from fcp_core.server.services.task_engine import TaskEngine, outcome_of
from fcp_core.server.services.task_parts import Keeper, Places, Surroundings, TaskParts, explained

#: What is known of the device of an earlier run: its session, origin and version.
_UNKNOWN: tuple[str, Sequence[str], str] = ("", (), "")


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
        settings: TaskSettings,
        surroundings: Surroundings,
        places: Places,
        keeper: Keeper,
    ) -> None:
        self.spec, self.aggregation_id = spec, aggregation_id
        self.machine, self.protocol = parts.machine, parts.protocol
        self.task_id = parts.machine.task_id
        self.published = published
        self.messages: dict[tuple[str, bool, int | None], Any] = {}
        self.settings, self.accepts_late = settings, settings.accepts_late
        self._begun, self.routes, self.release = parts.begun, parts.routes, parts.release
        self._engine = TaskEngine(surroundings, self._folded, self._lost, self._failed)
        self._engine.use(parts.fold)
        self._with, self._places, self._keeper = surroundings, places, keeper
        #: Of the last upload, in bytes; of the first ones what the specification says.
        self.upload_size = parts.upload_size
        #: When it is to be called next, as the ticker knows.
        self._next_tick = math.inf
        #: Whether one that has contributed leaves a place for another.
        self._capped = places.capped or self.machine.max_at_work is not None
        #: How many had left places when the population was last told: in vain, and contributing.
        self._seen = (0, 0)
        self._result: bytes | None = None
        #: Those who wait for it. It is stored, and kept here no longer: it may be large.
        self._waiters: list[asyncio.Future[bytes]] = []
        self._ended: TaskStatus | None = None
        self._finishing: asyncio.Task[None] | None = None

    def status(self) -> TaskStatus:
        """Return the task's status; it is final only once the end has been stored."""
        if self._ended is not None:
            return self._ended
        return explained(self.machine, self._places, self._with)

    def open(self, now: float) -> None:
        """Begin: from now on the task takes devices and keeps its times."""
        self._perform(self._begun, now)
        task = self.machine
        who = (task.population, task.task_id, task.name)
        self._with.notify(TaskOpened(now, *who, task.goal_count))
        self._schedule()

    def restart(self, parts: TaskParts, now: float) -> None:
        """Begin again with what is stored, as after a restart of the server.

        Those who are in progress are answered ABORTED; those who have contributed hear nothing.
        """
        why = "the task was restarted"
        for effect in self.machine.cancel(Code.ABORTED, why, now, needed=True):
            if isinstance(effect, DroppedEffect):
                self._dropped(effect, now)
        self.protocol.end()
        parts.machine.silence = self.machine.silence
        parts.machine.share(self.machine.experiences)
        self.machine, self.protocol = parts.machine, parts.protocol
        self.release = parts.release
        self._engine.use(parts.fold)
        self._seen = (0, 0)
        self._perform(parts.begun, now)
        self._schedule()
        self._places.left(self, contributed=False, now=now)

    async def wait(self) -> bytes:
        """Return the result as soon as it is stored.

        :raises StatusError: why there is none; UNAVAILABLE if the server stops before the end.
        """
        self._waiters.append(asyncio.get_running_loop().create_future())
        return await self._waiters[-1]

    async def stop(self) -> None:
        """Let go of everything without ending the task: it may go on after a restart."""
        self._with.ticker.at(f"task:{self.task_id}", None, self.tick)
        await self._engine.settle(self._finishing, self.machine.name)
        self._engine.stop(abort=self._finishing is None)
        stopping = StatusError(Code.UNAVAILABLE, "the server is stopping")
        for assignment in self.machine.all():
            for call in assignment.calls.values():
                if call.waiter is not None and not call.waiter.done():
                    call.waiter.set_exception(stopping)
                    # Nobody may wait for it.
                    call.waiter.exception()
        why = f"the server stopped before task {self.machine.name} had ended"
        self._tell(None, (Code.UNAVAILABLE, why))

    # What devices do.

    def assign(self, session: DeviceSession, now: float) -> Assignment:
        """Give a device session this task."""
        id_ = assignment_id(session.key, self.aggregation_id)
        assignment = self._assign(id_, now, session)
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
        :returns: one that was dropped if the task cannot take the device: it comes too late.
        :raises StatusError: ABORTED if the task refuses those who come too late.
        """
        assignment = self.machine.get(id_)
        if assignment is not None:
            return assignment
        if not self._places.has_room(self) or not (begins or self.protocol.resumable):
            if not self.accepts_late:
                raise StatusError(
                    Code.ABORTED,
                    "the server was restarted and this assignment is lost; check in again",
                )
            self._perform(self.machine.turn_away(id_, now), now)
            return self.machine.all()[-1]
        assignment = self._assign(id_, now)
        if not begins:
            self.machine.begin(assignment, now)
        return assignment

    def excuses(self, assignment: Assignment) -> bool:
        """Whether a device is answered OK although it does not count: nothing is needed of it.

        So is one that took too long, if its place is somebody else's now.
        """
        error = assignment.error
        slow = error is not None and error.code is Code.DEADLINE_EXCEEDED
        return self.accepts_late and (assignment.late or (slow and self.machine.capacity < 1))

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
        """Let bytes come; return whether they are wanted: a second time, or too late, they are not.

        :raises StatusError: ABORTED if the assignment was dropped, UNAUTHENTICATED if it has not
            begun to contribute.
        """
        if assignment.error is not None:
            if self.excuses(assignment):
                return False
            raise StatusError(Code.ABORTED, assignment.error.message)
        if assignment.state is Stage.ASSIGNED:
            raise StatusError(
                Code.UNAUTHENTICATED, "this upload was not started with an authorization token"
            )
        return assignment.begin_upload(slot, now)

    def finish_upload(self, assignment: Assignment, slot: str, body: Body, now: float) -> None:
        """Take the bytes of an upload; of two of one slot the first counts, and late ones do not.

        :raises StatusError: ABORTED if the assignment was dropped meanwhile.
        """
        error = assignment.error
        if error is not None and not self.excuses(assignment):
            raise StatusError(Code.ABORTED, error.message)
        size = self.upload_size = len(body)
        if error is not None or not assignment.finish_upload(slot, body, now):
            if isinstance(body, HeldBody):
                body.drop()
            return
        self._with.memory.hold(size)
        read = body if self.protocol.reads else None
        self._perform(self.protocol.uploaded(assignment, slot, size, read, now), now)

    def drop(self, id_: str, phase: str, code: Code, message: str) -> None:
        """Release a device that gave up."""
        now = self._with.clock.now()
        self._perform(self.protocol.gave_up(id_, phase, code, message, now), now)

    # What the server does.

    def cancel(self, code: Code, message: str) -> None:
        """End the task without a result, if it has not ended."""
        now = self._with.clock.now()
        self._perform(self.machine.cancel(code, message, now), now)

    def tick(self, now: float) -> None:
        """Let time pass."""
        self._next_tick, stuck = math.inf, bool(self._with.writes.trouble())
        self._perform([*self.machine.tick(now, stuck=stuck), *self.protocol.tick(now)], now)
        self._schedule()

    # Inside.

    def _folded(self, contributions: Sequence[str]) -> None:
        for id_ in contributions:
            self._with.memory.release(self.machine.assignments[id_].release())

    def _lost(self, why: str) -> None:
        if self.machine.state not in FINAL:
            self._keeper.lost(self, why)

    def _failed(self) -> None:
        """End the task: nothing must wait for ever for a machine that broke."""
        now = self._with.clock.now()
        message = "the server failed; its log says why"
        self._perform(self.machine.fail(Code.INTERNAL, message, now), now)

    def _schedule(self) -> None:
        """Be called in time; too early does no harm, so that most devices leave this as it is."""
        ticks = (self.machine.next_tick(), self.protocol.next_tick())
        when = min((tick for tick in ticks if tick is not None), default=None)
        if when is None or when < self._next_tick:
            self._next_tick = math.inf if when is None else when
            self._with.ticker.at(f"task:{self.task_id}", when, self.tick)

    def _assign(self, id_: str, now: float, session: DeviceSession | None = None) -> Assignment:
        machine, who = self.machine, _UNKNOWN
        if session is not None:
            who = (label(session.session_id), session.origin, session.check_in.client_version)
        assignment = machine.assign(id_, who[0], now, *who[1:])
        if self._with.observed():
            event = Assigned(now, machine.population, who[0], self.task_id, machine.name)
            self._with.notify(event)
        if min(now + self.settings.assignment_timeout, machine.awaited.due) < self._next_tick:
            self._schedule()
        return assignment

    def _perform(self, effects: Sequence[ShellEffect], now: float) -> None:
        """Carry out effects, in order."""
        queue = deque(effects)
        while queue:
            effect = queue.popleft()
            if isinstance(effect, AccumulateEffect):
                self._engine.accumulate(effect.group, self._accumulated)
            elif isinstance(effect, DroppedEffect):
                queue.extend(self._dropped(effect, now))
            elif isinstance(effect, KeptEffect):
                self._with.memory.release(effect.assignment.release())
            elif isinstance(effect, CompleteEffect):
                self._engine.report(self.release, self.spec.result_format, self._reported)
            elif isinstance(effect, Work):
                self._engine.run(effect, self._worked)
            else:
                self._end(effect, now)
                self._schedule()
        machine, when = self.machine, self.protocol.next_tick()
        if min(machine.awaited.due, math.inf if when is None else when) < self._next_tick:
            self._schedule()
        left = machine.dropped + machine.surplus + machine.awaited.ever_overdue
        places = (left, machine.contributed if self._capped else 0)
        seen, self._seen = self._seen, places
        if seen != places:
            self._places.left(self, contributed=seen[0] == places[0], now=now)

    def _accumulated(self, group: Group, future: Future[None]) -> None:
        now = self._with.clock.now()
        code, message = outcome_of(future)
        ended = self.machine.state in FINAL
        effects: list[ShellEffect] = [*self.machine.accumulated(group, code, message, now)]
        if ended:
            return
        error = None if code is Code.OK else StatusError(code, message)
        answers = self.protocol.accumulated(group, error, now)
        if error is None:
            for assignment in group.assignments:
                self._contributed(assignment, now)
        if code is Code.DATA_LOSS:
            effects += self.machine.fail(Code.INTERNAL, f"task {self.spec.name}: {message}", now)
        self._perform([*answers, *effects], now)

    def _contributed(self, assignment: Assignment, now: float) -> None:
        self._with.memory.release(assignment.release())
        if not self._with.observed():
            return
        machine = self.machine
        who = (machine.population, assignment.session_id, self.task_id, machine.name)
        taken = (now - assignment.assigned, assignment.upload_seconds, now - assignment.queued)
        self._with.notify(Contributed(now, *who, assignment.size, *taken))

    def _worked(self, work: Work, future: Future[bytes]) -> None:
        now = self._with.clock.now()
        code, message = outcome_of(future)
        result = future.result() if code is Code.OK else StatusError(code, message)
        self._perform(self.protocol.worked(work.key, result, now), now)

    def _dropped(self, effect: DroppedEffect, now: float) -> list[ShellEffect]:
        assignment, machine = effect.assignment, self.machine
        self._with.memory.release(assignment.release())
        effects = self.protocol.left(effect, now, excused=self.excuses(assignment))
        who = (now, machine.population, assignment.session_id, self.task_id, machine.name)
        message = clean(effect.message)
        outcome = (effect.phase, effect.code, message, assignment.version)
        event: Event = Dropped(*who, *outcome, effect.reached)
        if assignment.late and effect.phase != "silent":
            event = Surplus(*who, message, effect.reached)
        self._with.notify(event)
        return effects

    def _reported(self, future: Future[bytes]) -> None:
        now = self._with.clock.now()
        code, message = outcome_of(future)
        if code is Code.OK:
            self._result = future.result()
            if not isinstance(self._result, bytes):
                code, message = Code.INTERNAL, f"its result is {self._result!r:.200}, not bytes"
        self._perform(self.machine.reported(code, message, now), now)

    def _end(self, effect: EndEffect, now: float) -> None:
        if effect.code is not Code.OK:
            self._result = None
            self._engine.abort()
        self.protocol.end()
        self._finishing = asyncio.get_running_loop().create_task(self._finish())

    def _tell(self, result: bytes | None, error: tuple[Code, str] | None) -> None:
        """Answer those who wait for the result."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done() and result is not None:
                waiter.set_result(result)
            elif not waiter.done() and error is not None:
                waiter.set_exception(StatusError(*error))

    async def _finish(self) -> None:
        status, result = await self._keeper.ended(self, self._result)
        self._ended, self._result = status, None
        self._tell(result, status.error)
        code, message = status.error or (Code.OK, self.machine.story())
        now = self._with.clock.now()
        which = (status.population, status.task_id, status.name, status.contributed)
        self._with.notify(TaskClosed(now, *which, code, clean(message)))
