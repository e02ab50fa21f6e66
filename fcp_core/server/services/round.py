"""The shell around one task: carries out what its machines ask for.

Three machines meet here: the task (who is at work, when it ends), the aggregation protocol (what a
contribution is) and each contribution (who may upload what). The fold does the arithmetic, in
threads of its own; its answers come back to the event loop as events.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from fcp_core.aggregation.engine import Fold, HeldBody
from fcp_core.aggregation.protocol import (
    AbortFoldEffect,
    AggregationProtocol,
    Effect,
    FetchEffect,
    FoldEffect,
    ReportEffect,
)
from fcp_core.protocol.protos import aggregation_protocol_messages_pb2 as messages
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.contributions import (
    Contribution,
    ContributionStage,
    UploadTicket,
)
from fcp_core.rounds.events import Assigned, Contributed, Dropped, TaskClosed, TaskOpened
from fcp_core.rounds.sessions import DeviceSession
from fcp_core.rounds.task_machine import (
    AssignmentStage,
    CompleteEffect,
    EndEffect,
    FoldAssignment,
    ReleaseAssignment,
    TaskEffect,
    TaskMachine,
)
from fcp_core.rounds.tasks import TaskSpec, TaskState, TaskStatus
from fcp_core.server.services.downloads import Published
from fcp_core.server.services.outcomes import outcome_of, told
from fcp_core.server.services.round_parts import RoundParts
from fcp_core.server.services.settings import RETENTION

logger = logging.getLogger("fcp.services")


class Round:
    """One task that is offered, until it has ended.

    :param spec: the specification without its large parts.
    """

    def __init__(
        self,
        spec: TaskSpec,
        aggregation_id: str,
        machine: TaskMachine,
        protocol: AggregationProtocol,
        fold: Fold,
        published: Published,
        assignment_timeout: float,
        parts: RoundParts,
    ) -> None:
        self.spec = spec
        self.aggregation_id = aggregation_id
        self.machine = machine
        self.published = published
        self._protocol = protocol
        self._fold = fold
        self._token_lifetime = assignment_timeout + RETENTION
        self._parts = parts
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._sessions: dict[str, DeviceSession] = {}
        self._contributions: dict[str, Contribution] = {}
        self._clients: dict[str, int] = {}
        self._assignments: dict[int, str] = {}
        self._sizes: dict[str, int] = {}
        self._submitted: dict[str, float] = {}
        self._answers: dict[str, asyncio.Future[tuple[Code, str]]] = {}
        self._contributed = False  # since devices that left were last told of
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
        """Begin: from now on the round takes devices and keeps its times."""
        self._begin(now)
        machine = self.machine
        self._parts.notify(
            TaskOpened(now, machine.population, self.task_id, machine.name, machine.goal_count)
        )
        self._schedule()

    def begin_anew(
        self, machine: TaskMachine, protocol: AggregationProtocol, fold: Fold, now: float
    ) -> None:
        """Begin again with nothing, as after a restart of the server.

        Those who are at work are told ABORTED; those who have contributed are told nothing.
        """
        for effect in self.machine.cancel(Code.ABORTED, "the round began anew", now):
            if isinstance(effect, ReleaseAssignment):
                self._release(effect, now)
        self._fold.abort()
        self.machine, self._protocol, self._fold = machine, protocol, fold
        self._clients.clear()
        self._assignments.clear()
        self._sizes.clear()
        self._begin(now)
        self._schedule()
        self._parts.on_left(self, False)

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
        assert self._result is not None  # a round that ended without an error has a result
        return self._result

    async def stop(self) -> None:
        """Let go of everything without ending the task: it may go on after a restart."""
        self._stopped = True
        self._parts.ticker.at(self._key, None, self.tick)
        if self._finishing is not None:
            await self._finishing
        else:
            self._fold.abort()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result((Code.UNAVAILABLE, "the server is stopping"))
        self._done.set()

    # What devices do.

    def assign(self, session: DeviceSession, now: float) -> str:
        """Give a device session this task and return its authorization token."""
        assignment = self._parts.tokens.uuid()
        self.machine.assign(assignment, now)
        contribution = Contribution(self.aggregation_id, assignment, session.session_id, now)
        self._contributions[assignment] = contribution
        self._sessions[assignment] = session
        session.assign(self.aggregation_id, assignment)
        self._parts.notify(
            Assigned(
                now,
                self.machine.population,
                session.session_id,
                self.task_id,
                self.machine.name,
            )
        )
        self._schedule()
        return self._issue(contribution, now)

    def reissue(self, session: DeviceSession, now: float) -> str | None:
        """Return a fresh token for an assignment whose first one cannot have arrived.

        :returns: None if it did arrive, since it was used, or the assignment has ended.
        """
        assignment = session.assignments.get(self.aggregation_id, "")
        contribution = self._contributions.get(assignment)
        if contribution is None or contribution.stage is not ContributionStage.AUTHORIZED:
            return None
        return self._issue(contribution, now)

    def give_back(self, token: str) -> None:
        """Let go of an assignment whose device cancelled before it began to upload."""
        contribution = self._parts.book.find(token, "authorization token")
        if contribution.stage is ContributionStage.AUTHORIZED:
            message = "the device cancelled its request for a task"
            self.drop(contribution.assignment, "cancelled", Code.CANCELLED, message)

    def check_sender(self, contribution: Contribution, sender: str | None) -> None:
        """Check that an assignment is the sender's.

        :raises StatusError: PERMISSION_DENIED if it is somebody else's.
        """
        session = self._sessions.get(contribution.assignment)
        if session is not None:
            session.check_sender(sender)

    def start_upload(self, contribution: Contribution, token: str, now: float) -> UploadTicket:
        """Use up an authorization token.

        :raises StatusError: as :meth:`Contribution.start`.
        """
        ticket = contribution.start(token, self._parts.tokens)
        client = self._protocol.add_clients(1, now)
        self._clients[contribution.assignment] = client
        self._assignments[client] = contribution.assignment
        self._schedule()
        return ticket

    async def submit(
        self, contribution: Contribution, client_token: str, resource_name: str
    ) -> None:
        """Have an uploaded checkpoint folded.

        :raises StatusError: as :meth:`Contribution.submit`; INVALID_ARGUMENT if the checkpoint does
            not fit, ABORTED if the round ends before its turn.
        """
        now = self._parts.clock.now()
        contribution.submit(client_token, resource_name)
        answer = self._loop.create_future()
        self._answers[contribution.assignment] = answer
        self._submitted[contribution.assignment] = now
        # The round goes on with it even if nobody waits for the answer any more.
        self._perform(self.machine.submit(contribution.assignment, now), now)
        code, message = await answer
        if code is not Code.OK:
            raise StatusError(code, message)

    def drop(self, assignment: str, phase: str, code: Code, message: str) -> None:
        """Let go of a device that will not contribute."""
        now = self._parts.clock.now()
        self._perform(self.machine.drop(assignment, phase, code, message, now), now)

    # What the server does.

    def cancel(self, code: Code, message: str) -> None:
        """End the task without a result, if it has not ended."""
        now = self._parts.clock.now()
        self._perform(self.machine.cancel(code, message, now), now)

    def tick(self, now: float) -> None:
        """Let time pass."""
        self._perform(self.machine.tick(now), now)
        tick = self._protocol.next_tick()
        if tick is not None and tick <= now and self.machine.state is TaskState.OPEN:
            self._carry_out(self._protocol.tick(now))
            for assignment, client in list(self._clients.items()):
                # One that has submitted is told when the protocol gets its input.
                waits = self.machine.stage(assignment) is AssignmentStage.ASSIGNED
                if waits and self._protocol.is_client_closed(client):
                    code, message = self._close_message(client)
                    self._perform(
                        self.machine.drop(assignment, "protocol", code, message, now), now
                    )
        self._schedule()

    # Carrying out effects.

    def _begin(self, now: float) -> None:
        fold, loop = self._fold, self._loop

        def lost(why: str) -> None:
            if fold is self._fold and not self._stopped and not self.machine.state.is_final:
                self._parts.on_loss(self, why)

        def from_engine(why: str) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lost, why)

        fold.on_loss(from_engine)
        self._protocol.start(0, now)

    @property
    def _key(self) -> str:
        return f"round:{self.task_id}"

    def _schedule(self) -> None:
        ticks = [self.machine.next_tick()]
        if self.machine.state is TaskState.OPEN:
            ticks.append(self._protocol.next_tick())
        when = min((tick for tick in ticks if tick is not None), default=None)
        self._parts.ticker.at(self._key, when, self.tick)

    def _issue(self, contribution: Contribution, now: float) -> str:
        expires = now + self._token_lifetime
        replaced = self._parts.book.revoke(contribution.assignment)
        token = self._parts.book.issue(contribution, expires)
        self._parts.on_issue(contribution, expires, replaced)
        return token

    def _perform(self, effects: Sequence[TaskEffect], now: float) -> None:
        """Carry out the task machine's effects, in order."""
        queue = deque(effects)
        dropped = False
        while queue:
            effect = queue.popleft()
            if isinstance(effect, FoldAssignment):
                queue.extend(self._begin_fold(effect.assignment, now))
            elif isinstance(effect, ReleaseAssignment):
                self._release(effect, now)
                dropped = True
            elif isinstance(effect, CompleteEffect):
                self._carry_out(self._protocol.complete(now))
            else:
                self._end(effect, now)
        self._schedule()
        contributed, self._contributed = self._contributed, False
        if dropped or contributed:
            self._parts.on_left(self, not dropped)

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        """Carry out the aggregation protocol's effects, in order."""
        for effect in effects:
            if isinstance(effect, AbortFoldEffect):
                self._fold.abort()
            elif isinstance(effect, ReportEffect):
                self._when_done(self._fold.report(self.spec.result_format), self._reported)
            else:
                self._fold_one(effect)

    def _fold_one(self, effect: FoldEffect | FetchEffect) -> None:
        assignment = self._assignments[effect.client_id]
        if isinstance(effect, FetchEffect):
            blob = self._contributions[assignment].take_body()
        else:
            blob = effect.blob
        self._sizes[assignment] = len(blob)
        if isinstance(blob, HeldBody):
            future = self._fold.add_held(assignment, blob)
        else:
            future = self._fold.add(assignment, blob)
        self._when_done(future, partial(self._folded, effect.client_id))

    def _begin_fold(self, assignment: str, now: float) -> list[TaskEffect]:
        client = self._clients[assignment]
        # By name and not by value: a protobuf message would copy the bytes.
        message = messages.ClientMessage()
        message.simple_aggregation.input.uri = assignment
        self._carry_out(self._protocol.receive(client, message, now))
        if self._protocol.is_client_closed(client):
            return self._settle(assignment, now)
        return []

    def _folded(self, client: int, future: Future[None]) -> None:
        now = self._parts.clock.now()
        code, message = outcome_of(future)
        self._carry_out(self._protocol.folded(client, code, message, now))
        self._perform(self._settle(self._assignments[client], now), now)

    def _settle(self, assignment: str, now: float) -> list[TaskEffect]:
        """Tell the task machine and the device what the protocol made of a contribution."""
        code, message = self._close_message(self._clients[assignment])
        effects = self.machine.folded(assignment, code, message, now)
        if code is Code.OK and self.machine.stage(assignment) is None:
            contribution = self._contributions.get(assignment)
            session = self._let_go(assignment)
            self._contributed = True
            size = self._sizes.pop(assignment, 0)
            submitted = self._submitted.pop(assignment, now)
            # A round that was cancelled meanwhile has let go of it already.
            if session is not None and contribution is not None:
                self._answer(assignment, Code.OK, "")
                self._parts.notify(
                    Contributed(
                        now,
                        self.machine.population,
                        session.session_id,
                        self.task_id,
                        self.machine.name,
                        size,
                        now - contribution.assigned_at,
                        contribution.upload_seconds,
                        now - submitted,
                    )
                )
        return effects

    def _release(self, effect: ReleaseAssignment, now: float) -> None:
        assignment = effect.assignment
        session = self._let_go(assignment, effect.message)
        self._submitted.pop(assignment, None)
        client = self._clients.get(assignment)
        # At the end of a round the protocol closes the remaining clients itself.
        if client is not None and effect.phase != "round_over":
            self._carry_out(self._protocol.close(client, effect.code, effect.message, now))
        self._answer(assignment, effect.code, effect.message)
        self._parts.notify(
            Dropped(
                now,
                self.machine.population,
                session.session_id if session is not None else "",
                self.task_id,
                self.machine.name,
                effect.phase,
                effect.code,
                effect.message,
            )
        )

    def _let_go(self, assignment: str, why: str = "it has contributed") -> DeviceSession | None:
        contribution = self._contributions.pop(assignment, None)
        if contribution is not None:
            contribution.end(why)
        session = self._sessions.pop(assignment, None)
        if session is not None:
            session.release(self.aggregation_id)
        return session

    def _answer(self, assignment: str, code: Code, message: str) -> None:
        answer = self._answers.pop(assignment, None)
        if answer is None or answer.done():
            return
        answer.set_result(told(code, message))

    def _close_message(self, client: int) -> tuple[Code, str]:
        message = self._protocol.poll(client)
        if message is None:
            return Code.ABORTED, "the round is over"
        close = message.simple_aggregation.close_message
        return Code(close.code), close.message

    def _reported(self, future: Future[bytes]) -> None:
        now = self._parts.clock.now()
        code, message = outcome_of(future)
        if code is Code.OK:
            self._result = future.result()
        self._carry_out(self._protocol.reported(code, message, now))
        self._perform(self.machine.reported(code, message, now), now)

    def _end(self, effect: EndEffect, now: float) -> None:
        if effect.code is not Code.OK:
            self._result = None
            if self._protocol.state() in (
                messages.PROTOCOL_STARTED,
                messages.PROTOCOL_COMPLETING,
            ):
                self._carry_out(self._protocol.abort(now))
            self._fold.abort()
        self._finishing = self._loop.create_task(self._finish())

    async def _finish(self) -> None:
        status = await self._parts.on_end(self, self._result)
        if status.error is not None:
            self._result = None
        self._ended = status
        self._done.set()
        code, message = status.error or (Code.OK, "")
        self._parts.notify(
            TaskClosed(
                self._parts.clock.now(),
                status.population,
                status.task_id,
                status.name,
                status.contributed,
                code,
                message,
            )
        )

    def _when_done(self, future: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        """Have *then* called on the event loop once the engine is done."""
        fold = self._fold

        def on_loop(done: Future[Any]) -> None:
            if self._stopped or fold is not self._fold:
                return
            try:
                then(done)
            except Exception:
                # Nothing must wait for ever for a machine that broke.
                logger.exception("task %s failed", self.machine.name)
                now = self._parts.clock.now()
                message = "the server failed; its log says why"
                self._perform(self.machine.fail(Code.INTERNAL, message, now), now)

        def from_engine(done: Future[Any]) -> None:
            # A loop's own thread need not wake it; one that is closed has nobody left who waits.
            here = threading.get_ident() == self._thread
            if not self._loop.is_closed():
                (self._loop.call_soon if here else self._loop.call_soon_threadsafe)(on_loop, done)

        future.add_done_callback(from_engine)
