"""What devices do with one task; carries out what its machines ask for.

Two machines meet here: the task with its assignments (who is in progress, when it ends) and the
aggregation protocol (how contributions come in). The engine's fold does the arithmetic, in threads
of its own; its outcomes come back to the event loop.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from fcp_core.aggregation.engine import HeldBody
from fcp_core.errors import plugin_errors
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.effects import (
    AccumulateEffect,
    CompleteEffect,
    DroppedEffect,
    Group,
    KeptEffect,
)
from fcp_core.rounds.events import Assigned, Contributed
from fcp_core.rounds.protocols import Body, Tickets, Work
from fcp_core.rounds.session import DeviceSession, assignment_id
from fcp_core.rounds.task import FINAL
from fcp_core.rounds.tokens import label
from fcp_core.server.services.common import Wanted
from fcp_core.server.services.durable_fold import DurableFold
from fcp_core.server.services.protocol_host import ShellEffect
from fcp_core.server.services.task_parts import LARGE
from fcp_core.server.services.task_shell import TaskShell, outcome_of

logger = logging.getLogger("fcp.services")

#: What is known of the device of an earlier run: its session, origin and version.
_UNKNOWN: tuple[str, Sequence[str], str] = ("", (), "")


class TaskRunner(TaskShell):
    """One task that is offered, until it has ended; made as :class:`TaskShell`."""

    #: Whether an outcome is being taken that was there at once.
    _taking = False

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

    def find(self, id_: str, now: float, *, begins: bool, speaks: bool = True) -> Assignment:
        """Return the assignment that a token names.

        A server that was restarted does not know it: the device goes on all the same if there is
        room, and if its protocol needs nothing of what it did before.

        :param begins: whether the device begins to contribute only now.
        :param speaks: whether it speaks the task's protocol, which the operator may have changed.
        :returns: one that was dropped if the task cannot take the device: it comes too late.
        :raises StatusError: ABORTED if the task refuses those who come too late.
        """
        assignment = self.machine.get(id_)
        if assignment is not None:
            return assignment
        goes_on = speaks and (begins or self.protocol.resumable)
        if not (goes_on and self._places.has_room(self)):
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

    def begin_upload(self, assignment: Assignment, slot: str, now: float) -> Wanted:
        """Let bytes come; return whether they are wanted: a second time, or too late, they are not.

        :raises StatusError: ABORTED if the assignment was dropped, UNAUTHENTICATED if it has not
            begun to contribute.
        """
        if assignment.error is not None:
            if self.excuses(assignment):
                return Wanted.NO
            raise StatusError(Code.ABORTED, assignment.error.message)
        if assignment.state is Stage.ASSIGNED:
            raise StatusError(
                Code.UNAUTHENTICATED, "this upload was not started with an authorization token"
            )
        if not assignment.begin_upload(slot, now):
            return Wanted.NO
        stored = isinstance(self._fold, DurableFold) and self._fold.plain
        wanted = Wanted.FOR_STORAGE if stored else Wanted.FOR_MEMORY
        return wanted if self.upload_size < LARGE else wanted | Wanted.LARGE

    async def finish_upload(
        self, assignment: Assignment, slot: str, body: Body, now: float
    ) -> None:
        """Take the bytes of an upload; of two of one slot the first counts, and late ones do not.

        :raises StatusError: ABORTED if the assignment was dropped meanwhile; UNAVAILABLE if too
            much is held already, and then the device may try again.
        """
        try:
            self._with.memory.check(len(body))
        except StatusError:
            assignment.abandon_upload(slot)
            raise
        if self.protocol.reads and isinstance(body, HeldBody):
            body = await body.fetch()
        if not assignment.receives(slot):
            # It began at another member, or before this one had the population again.
            self.begin_upload(assignment, slot, now)
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

    # Inside.

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
                self._accumulate(effect.group)
            elif isinstance(effect, DroppedEffect):
                queue.extend(self._dropped(effect, now))
            elif isinstance(effect, KeptEffect):
                self._with.memory.release(effect.assignment.release())
            elif isinstance(effect, CompleteEffect):
                self._report()
            elif isinstance(effect, Work):
                self._run(effect)
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
        code, message = Code.OK, ""
        if future.cancelled() or future.exception() is not None:
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
        if self._storing:
            self._stored(assignment.id)
        if not self._with.observed():
            return
        machine = self.machine
        who = (machine.population, assignment.session_id, self.task_id, machine.name)
        taken = (now - assignment.assigned, assignment.upload_seconds, now - assignment.queued)
        self._with.notify(Contributed(now, *who, assignment.size, *taken))

    def _accumulate(self, group: Group) -> None:
        """Have the fold accumulate what a group contributes."""
        then, fold = partial(self._accumulated, group), self._fold
        if group.slot is None:
            ids = [assignment.id for assignment in group.assignments]
            self._when_done(then, fold.add_group, ids, *group.checkpoints)
        else:
            (assignment,) = group.assignments
            body = assignment.take(group.slot)
            add = fold.add_held if isinstance(body, HeldBody) else fold.add
            self._when_done(then, add, assignment.id, body)

    def _when_done(
        self,
        then: Callable[[Future[Any]], None],
        begin: Callable[..., Future[Any]],
        *arguments: Any,
    ) -> Future[Any]:
        """Have the engine begin something, and call *then* on the event loop once it is done.

        It is not called any more once the task has another fold or is stopped. An engine that
        raises or returns no future has failed.
        """
        fold, loop = self._fold, self._loop
        try:
            future = begin(*arguments)
            if not isinstance(future, Future):
                raise TypeError(f"expected a Future, not {future!r:.200}")
        except plugin_errors() as error:
            future = Future()
            future.set_exception(error)

        def on_loop(done: Future[Any]) -> None:
            if self._stopped or fold is not self._fold:
                return
            try:
                then(done)
            except plugin_errors():
                logger.exception("the outcome of a task's work could not be taken")
                self._failed()

        def from_engine(done: Future[Any]) -> None:
            # A loop's own thread need not wake it; one that is closed has nobody left who waits.
            here = threading.get_ident() == self._thread
            if not loop.is_closed():
                (loop.call_soon if here else loop.call_soon_threadsafe)(on_loop, done)

        if not self._taking and future.done() and threading.get_ident() == self._thread:
            # As it is with small contributions: the device has its answer in this turn. What that
            # leads to has the next, or one could lead to another without end.
            self._taking = True
            try:
                on_loop(future)
            finally:
                self._taking = False
        else:
            future.add_done_callback(from_engine)
        return future
