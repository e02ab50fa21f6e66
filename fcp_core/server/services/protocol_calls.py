"""What devices send in an aggregation protocol, and what the protocol makes of it.

Which services there are, the protocols say; what all of them have in common is here.
:class:`ProtocolCalls`: the token in the path names the assignment, the same call sent again gets
the same answer, and a call that is long-running answers with an operation. :class:`ProtocolHost`:
what a protocol wants of the task becomes effects, which the task's shell carries out, and what it
answers to devices is checked and recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from google.protobuf.message import Message

from fcp_core.aggregation.engine import HeldBody
from fcp_core.errors import plugin_errors
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import Assignment, CallState, ProtocolCall, Stage
from fcp_core.rounds.effects import Group
from fcp_core.rounds.machine import InvalidTransition
from fcp_core.rounds.protocols import (
    Accumulate,
    Answer,
    Body,
    Call,
    Drop,
    Effect,
    Keep,
    Pending,
    Tickets,
    Upload,
    Work,
)
from fcp_core.rounds.tasks import TaskState
from fcp_core.rounds.token_parts import Kind, Token, uuid_bytes, uuid_text
from fcp_core.rounds.tokens import AssignmentTickets, operation, operation_name, read_token
from fcp_core.server.services.common import Wanted
from fcp_core.server.services.late_calls import LateCalls, empty, set_polling_interval, too_late
from fcp_core.server.services.protocol_host import ProtocolGuard, ShellEffect
from fcp_core.server.services.task_runner import TaskRunner

_BYTES = (bytes, bytearray, memoryview)


class ProtocolCalls(LateCalls):
    """The services of all installed aggregation protocols; made as :class:`LateCalls`."""

    def method(self, route: Route) -> Callable[[Message, str | None], Awaitable[Message]]:
        """Return what serves one method."""
        return partial(self.call, route)

    async def call(self, route: Route, request: Any, sender: str | None = None) -> Message:
        """Serve a call.

        :raises StatusError: NOT_FOUND for an aggregation that this server never had,
            UNAUTHENTICATED for a token that is not valid, PERMISSION_DENIED for one of somebody
            else, INVALID_ARGUMENT if the protocol of the task that it was given has no such call,
            ABORTED if the assignment was dropped or comes too late where that is refused; what the
            protocol says otherwise.
        """
        now = self._clock.now()
        begins = "authorization_token" in request.DESCRIPTOR.fields_by_name
        kind = Kind.AUTHORIZATION if begins else Kind.CLIENT
        text = request.authorization_token if begins else request.client_token
        aggregation_id = request.aggregation_id
        token = self._read(text, kind, aggregation_id, now, sender)
        task = self._tasks.find(aggregation_id)
        if (route.service, route.method) in self._aborting:
            return self._abort(route, request, token, task)
        tickets = self._tickets(aggregation_id, token, sender, task)
        if task is None:
            return self._late(route, tickets, request, None)
        speaks = (route.service, route.method) in task.routes
        assignment = task.machine.get(token.subject.hex())
        if assignment is None:
            if token.expires <= now:
                return self._late(route, tickets, request, task)
            assignment = task.find(token.subject.hex(), now, begins=begins, speaks=speaks)
        if not speaks:
            if assignment.session_id:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"the aggregation protocol of task {task.spec.name} has no {route.name}",
                )
            # It was given the task in an earlier run, which had another protocol.
            return self._late(route, tickets, request, task, counted=assignment.restored)
        earlier = assignment.calls.get(route.method)
        answered = earlier is not None and not isinstance(earlier.result, StatusError)
        if not answered and (assignment.restored or task.excuses(assignment)):
            return self._late(route, tickets, request, task, counted=assignment.restored)
        call = task.call(assignment, route.method, request, tickets, now)
        if route.long_running:
            return operation_message(route, tickets.operation(route.method), call)
        if call.result is None:
            if call.waiter is None:
                call.waiter = asyncio.get_running_loop().create_future()
            # The call goes on even if nobody waits for its answer any more.
            await asyncio.shield(call.waiter)
        if isinstance(call.result, StatusError):
            raise call.result.with_traceback(None)
        response: Message = call.result
        return response

    def operation(self, text: str, now: float, sender: str | None) -> longrunning.Operation:
        """Return the operation of a call.

        :raises StatusError: ABORTED if the task is over or does not know the call; otherwise as
            ``tokens.read_token``.
        """
        token = read_token(self._tokens, text, Kind.OPERATION, now, sender)
        task = self._tasks.find(uuid_text(token.scope))
        assignment = None if task is None else task.machine.get(token.subject.hex())
        method = token.extra.decode()
        call = None if assignment is None else assignment.calls.get(method)
        if task is None:
            raise StatusError(Code.ABORTED, "the task of this operation is over; check in again")
        route = next((route for (_, name), route in task.routes.items() if name == method), None)
        if route is None:
            # The server was started again with another protocol for the task.
            raise too_late()
        if call is None:
            restored = assignment is not None and assignment.restored
            if not ((restored or task.accepts_late) and task.protocol.concludes(method)):
                raise too_late()
            return operation(operation_name(text), None, empty(route))
        return operation_message(route, text, call)

    def upload(
        self, name: str, now: float, sender: str | None
    ) -> tuple[TaskRunner, Assignment, str] | None:
        """Return what an upload is for: the task, the assignment and the slot.

        :returns: None if the task is over, so that nothing is needed any more.
        :raises StatusError: UNAUTHENTICATED for a name that is not valid; ABORTED if the task is
            over and those who come too late are refused.
        """
        token = read_token(self._tokens, name, Kind.UPLOAD, now, sender, late=True)
        task = self._tasks.find(uuid_text(token.scope))
        expired = token.expires <= now
        if task is None or (expired and task.machine.get(token.subject.hex()) is None):
            if not self._accepts(task):
                raise too_late()
            return None
        return task, task.find(token.subject.hex(), now, begins=False), token.extra.decode()

    async def begin_upload(self, resource_name: str, sender: str | None = None) -> Wanted:
        """Begin an upload; :meth:`finish_upload` or :meth:`abandon_upload` must follow.

        :returns: whether its bytes are wanted: they are not if they are there already and the
            device only did not hear so, or if it comes too late; it is to be answered OK then.
        :raises StatusError: UNAUTHENTICATED for a name that is not valid, PERMISSION_DENIED for one
            of somebody else, ABORTED if the assignment was dropped.
        """
        now = self._clock.now()
        found = self.upload(resource_name, now, sender)
        if found is None:
            return Wanted.NO
        task, assignment, slot = found
        return task.begin_upload(assignment, slot, now)

    async def finish_upload(
        self, resource_name: str, body: Body, sender: str | None = None
    ) -> None:
        """Take the whole body, decompressed, wherever the upload began.

        :raises StatusError: as :meth:`begin_upload`; UNAVAILABLE if too much is held already, and
            then the device may try again.
        """
        now = self._clock.now()
        found = self.upload(resource_name, now, sender)
        if found is not None:
            task, assignment, slot = found
            await task.finish_upload(assignment, slot, body, now)
        elif isinstance(body, HeldBody):
            body.drop()

    async def abandon_upload(self, resource_name: str, sender: str | None = None) -> None:
        """Forget an upload whose bytes will not come; the device may try again."""
        try:
            found = self.upload(resource_name, self._clock.now(), sender)
        except StatusError:
            return
        if found is None:
            return
        _, assignment, slot = found
        assignment.abandon_upload(slot)

    # Inside.

    def _tickets(
        self, aggregation_id: str, token: Token, sender: str | None, task: TaskRunner | None
    ) -> AssignmentTickets:
        place = None
        if self._place is not None and task is not None and not task.protocol.reads:
            place = partial(self._place, task.upload_size)
        return AssignmentTickets(
            self._tokens,
            aggregation_id,
            token.subject.hex(),
            sender,
            token.expires,
            self._base_url,
            token.key,
            place,
        )

    def _read(
        self, text: str, kind: Kind, aggregation_id: str, now: float, sender: str | None
    ) -> Token:
        error = None
        try:
            token = read_token(self._tokens, text, kind, now, sender, late=True)
            if token.scope == uuid_bytes(aggregation_id):
                return token
        except ValueError:
            pass
        except StatusError as found:
            error = found
        raise self._invalid(aggregation_id, error)


def operation_message(route: Route, token: str, call: ProtocolCall) -> longrunning.Operation:
    """Return the operation of a call as it stands."""
    metadata = call.metadata
    if metadata is None and route.operation_metadata_class is not None:
        metadata = route.operation_metadata_class()
    if metadata is not None and call.result is None:
        set_polling_interval(metadata)
    return operation(operation_name(token), metadata, call.result)


class ProtocolHost(ProtocolGuard):
    """One task's protocol machine, held to its laws.

    :param name: the protocol's name, for the log.
    :param empty: the class of each method's response.
    """

    def receive(
        self, assignment: Assignment, method: str, request: Any, tickets: Tickets, now: float
    ) -> tuple[ProtocolCall, list[ShellEffect]]:
        """Have the protocol take a call, unless it is one that was sent before.

        :raises StatusError: the device's answer; the call may be sent again.
        """
        known = assignment.calls.get(method)
        if known is not None and (assignment.ended or not isinstance(known.result, StatusError)):
            return known, []
        if assignment.error is not None:
            raise StatusError(Code.ABORTED, assignment.error.message)
        concluding = method in self._protocol.concluding
        if assignment.state is Stage.ASSIGNED:
            self._machine.begin(assignment, now)
        call = assignment.calls[method] = ProtocolCall()
        if assignment.state is Stage.CONTRIBUTED and concluding:
            # It is counted, whenever it asks.
            call.finish(self._empty[method]())
            return call, []
        try:
            effects = self._protocol.receive(Call(assignment.id, method, request, tickets), now)
        except StatusError as error:
            if error.code is Code.OK:
                return call, self._refuse(assignment, f"raises an OK for a {method}", now)
            if concluding and assignment.state in (Stage.QUEUED, Stage.ACCUMULATING):
                return call, self._carry_out([Answer(assignment.id, method, error)], now)
            del assignment.calls[method]
            raise
        except plugin_errors():
            self._log(method)
            return call, self._give_up([assignment], now)
        return call, self._carry_out(effects, now, [assignment])

    def uploaded(
        self, assignment: Assignment, slot: str, size: int, body: Any, now: float
    ) -> list[ShellEffect]:
        """Notify the protocol of an upload."""
        upload = Upload(assignment.id, slot, size, body)
        ask = partial(self._protocol.uploaded, upload, now)
        return self._ask("uploaded", ask, now, [assignment])

    def accumulated(self, group: Group, error: StatusError | None, now: float) -> list[ShellEffect]:
        """Notify the protocol of the outcome of an accumulation."""
        ids = tuple(assignment.id for assignment in group.assignments)
        ask = partial(self._protocol.accumulated, ids, error, now)
        found = self._ask("accumulated", ask, now, group.assignments)
        if self._owed:
            self._conclude_owed(group.assignments)
        return found

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        if not self._ticks or self._machine.state is not TaskState.OPEN:
            return None
        try:
            when = self._protocol.next_tick()
            return None if when is None else max(self._quiet_until, float(when))
        except plugin_errors():
            self._log("next_tick")
            return None

    def _ask(
        self,
        what: str,
        ask: Callable[[], Sequence[Effect]],
        now: float,
        about: Sequence[Assignment] = (),
    ) -> list[ShellEffect]:
        try:
            effects = ask()
        except plugin_errors():
            self._log(what)
            return self._give_up(about, now)
        return self._carry_out(effects, now, about)

    def _carry_out(
        self, effects: Sequence[Effect], now: float, about: Sequence[Assignment] = ()
    ) -> list[ShellEffect]:
        """Translate a protocol's effects, in order."""
        found: list[ShellEffect] = []
        try:
            for effect in effects:
                if isinstance(effect, Work):
                    found.append(effect)
                elif isinstance(effect, Accumulate):
                    found += self._accumulate(effect, now)
                elif isinstance(effect, Keep):
                    found += self._machine.keep(effect.assignments, now)
                elif isinstance(effect, Drop):
                    found += self._drop(effect, now)
                else:
                    found += self._answer(effect, now)
        except plugin_errors():
            # A protocol may return anything.
            self._log("an effect")
            found += self._give_up(about, now)
        return found

    def _accumulate(self, effect: Accumulate, now: float) -> list[ShellEffect]:
        records = [self._machine.get(assignment) for assignment in effect.assignments]
        known = tuple(record for record in records if record is not None)
        slot = effect.slot
        checkpoints = effect.parts if effect.checkpoint is None else (effect.checkpoint,)
        complete = len(known) == len(records) and (
            bool(checkpoints) and all(isinstance(c, _BYTES) for c in checkpoints)
            if slot is None
            else len(known) == 1 and slot in known[0].uploads
        )
        if complete:
            try:
                return [*self._machine.queue(Group(known, slot, checkpoints), now)]
            except InvalidTransition:
                pass
        return self._cannot(known, now)

    def _answer(self, effect: Answer | Pending, now: float) -> list[ShellEffect]:
        assignment = self._machine.get(effect.assignment)
        call = None if assignment is None else assignment.calls.get(effect.method)
        if assignment is None or call is None or call.state is not CallState.PENDING:
            return self._unasked(effect.method)
        if isinstance(effect, Pending):
            return self._pending(call, effect, now)
        response = effect.response
        failed = isinstance(response, StatusError) and response.code is not Code.OK
        if not failed and not isinstance(response, self._empty[effect.method]):
            return self._refuse(assignment, f"answers a {effect.method} with {response!r}", now)
        if effect.method not in self._protocol.concluding:
            call.finish(response)
            return []
        dropped: list[ShellEffect] = []
        if failed and not assignment.ended:
            # Its answer is that it does not count: it must not be counted later.
            dropped += self._machine.drop(
                assignment.id, "protocol", response.code, response.message, now
            )
        if assignment.state is (Stage.DROPPED if failed else Stage.CONTRIBUTED):
            call.finish(response)
            return dropped
        answer = response.code.name if failed else "OK"
        count = "counted" if assignment.state is Stage.CONTRIBUTED else "not counted yet"
        what = f"answers {answer} to a device whose contribution is {count}"
        return self._refuse(assignment, what, now)
