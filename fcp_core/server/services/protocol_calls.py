"""The calls of aggregation protocols: how devices bring their contributions.

Which services there are, the protocols say; what all of them have in common is here: the token in
the path names the assignment, the same call sent again gets the same answer, and a call that is
long-running answers with an operation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.message import Message

from fcp_core.aggregation.engine import HeldBody
from fcp_core.errors import PLUGIN_ERRORS
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import Assignment, ProtocolCall
from fcp_core.rounds.pacing import duration
from fcp_core.rounds.protocols import AggregationProtocolFactory, Body, Call
from fcp_core.rounds.text import clean
from fcp_core.rounds.token_parts import Kind, Token, uuid_bytes, uuid_text
from fcp_core.rounds.tokens import AssignmentTickets, operation, operation_name, read_token
from fcp_core.server.services.common import Common
from fcp_core.server.services.task_runner import TaskRunner

if TYPE_CHECKING:
    from fcp_core.server.services.task_runner import UploadMemory
    from fcp_core.server.services.tasks import Tasks

logger = logging.getLogger("fcp.services")

#: How often a device asks about an operation whose protocol does not say, in seconds.
POLLING_INTERVAL = 0.5


class ProtocolCalls:
    """The services of all installed aggregation protocols.

    :param factories: the installed protocols.
    :param accepts_late: whether a device that comes too late is answered OK if its task is not
        known any more; otherwise the task says.
    :param memory: counts the uploads that wait.
    """

    def __init__(
        self,
        common: Common,
        *,
        tasks: Tasks,
        factories: Collection[AggregationProtocolFactory],
        accepts_late: bool,
        memory: UploadMemory,
    ) -> None:
        self._clock = common.clock
        self._tokens = common.tokens
        self._tasks = tasks
        self._base_url = common.base_url
        self._accepts_late = accepts_late
        self._memory = memory
        #: Returns where uploads of such a size go; ``""``: here.
        self.place: Callable[[int], str] | None = None
        self._factories = {name: factory for factory in factories for name in factory.services}
        #: The services of the protocols.
        self.services = frozenset(self._factories)
        #: The calls with which devices give up, whatever protocol they are of.
        self._aborting = frozenset(
            (service, method)
            for factory in factories
            for service in factory.services
            for method in factory.aborting
        )

    def method(self, route: Route) -> Callable[[Message, str | None], Awaitable[Message]]:
        """Return what serves one method."""
        return partial(self.call, route)

    async def call(self, route: Route, request: Any, sender: str | None = None) -> Message:
        """Serve a call.

        :raises StatusError: NOT_FOUND for an aggregation that this server never had,
            UNAUTHENTICATED for a token that is not valid, PERMISSION_DENIED for one of somebody
            else, INVALID_ARGUMENT if the task has another protocol, ABORTED if the assignment was
            dropped or comes too late where that is refused; what the protocol says otherwise.
        """
        now = self._clock.now()
        begins = "authorization_token" in request.DESCRIPTOR.fields_by_name
        kind = Kind.AUTHORIZATION if begins else Kind.CLIENT
        text = request.authorization_token if begins else request.client_token
        aggregation_id = request.aggregation_id
        token = self._read(text, kind, aggregation_id, now, sender)
        task = self._tasks.find(aggregation_id)
        aborting = (route.service, route.method) in self._aborting
        if task is None:
            if aborting:
                return _empty(route)
            tickets = self._tickets(aggregation_id, token, sender, None)
            return self._late(route, tickets, request, None)
        if (route.service, route.method) not in task.routes:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the aggregation protocol of task {task.spec.name} has no {route.name}",
            )
        known = task.machine.get(token.subject.hex())
        if aborting:
            if known is not None:
                code, message = _why(request)
                task.drop(known.id, "aborted", code, message)
            return _empty(route)
        tickets = self._tickets(aggregation_id, token, sender, task)
        if token.expires <= now and known is None:
            return self._late(route, tickets, request, task)
        assignment = task.find(token.subject.hex(), now, begins=begins)
        earlier = assignment.calls.get(route.method)
        answered = earlier is not None and not isinstance(earlier.result, StatusError)
        if (assignment.restored or task.excuses(assignment)) and not answered:
            return self._late(route, tickets, request, task, counted=assignment.restored)
        call = task.call(assignment, route.method, request, tickets, now)
        if route.long_running:
            return _operation(route, tickets.operation(route.method), call)
        if call.result is None:
            if call.waiter is None:
                call.waiter = asyncio.get_running_loop().create_future()
            # The call goes on even if nobody waits for its answer any more.
            await asyncio.shield(call.waiter)
        return _response(call)

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
        route = next(route for (_, name), route in task.routes.items() if name == method)
        if call is None:
            restored = assignment is not None and assignment.restored
            if not ((restored or task.accepts_late) and task.protocol.concludes(method)):
                raise _too_late()
            return operation(operation_name(text), None, _empty(route))
        return _operation(route, text, call)

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
                raise _too_late()
            return None
        return task, task.find(token.subject.hex(), now, begins=False), token.extra.decode()

    async def begin_upload(self, resource_name: str, sender: str | None = None) -> bool:
        """Begin an upload; :meth:`finish_upload` or :meth:`abandon_upload` must follow.

        :returns: whether its bytes are wanted: they are not if they are there already and the
            device only did not hear so, or if it comes too late; it is to be answered OK then.
        :raises StatusError: UNAUTHENTICATED for a name that is not valid, PERMISSION_DENIED for one
            of somebody else, ABORTED if the assignment was dropped.
        """
        now = self._clock.now()
        found = self.upload(resource_name, now, sender)
        if found is None:
            return False
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
        if found is None:
            if isinstance(body, HeldBody):
                body.drop()
            return
        task, assignment, slot = found
        try:
            self._memory.check(len(body))
        except StatusError:
            assignment.abandon_upload(slot)
            raise
        if task.protocol.reads and isinstance(body, HeldBody):
            body = await body.fetch()
        if not assignment.receives(slot):
            # It began at another member, or before this one had the population again.
            task.begin_upload(assignment, slot, now)
        task.finish_upload(assignment, slot, body, now)

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

    def _accepts(self, task: TaskRunner | None) -> bool:
        return self._accepts_late if task is None else task.accepts_late

    def _tickets(
        self, aggregation_id: str, token: Token, sender: str | None, task: TaskRunner | None
    ) -> AssignmentTickets:
        place = None
        if self.place is not None and task is not None and not task.protocol.reads:
            place = partial(self.place, task.upload_size)
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

    def _late(
        self,
        route: Route,
        tickets: AssignmentTickets,
        request: Any,
        task: TaskRunner | None,
        *,
        counted: bool = False,
    ) -> Message:
        """Answer a device that comes too late, or that contributed in an earlier run.

        :param task: None: it is not known any more.
        :param counted: whether it contributed.
        :raises StatusError: ABORTED if such devices are refused, or the protocol has no answer;
            what the protocol says of a call that is wrong.
        """
        if not (counted or self._accepts(task)):
            raise _too_late()
        factory = self._factories[route.service]
        response, empty = None, _empty(route)
        try:
            if factory.late is not None:
                response = factory.late(Call(tickets.assignment, route.method, request, tickets))
            if response is not None and not isinstance(response, type(empty)):
                raise TypeError(f"expected a {empty.DESCRIPTOR.full_name}, not {response!r}")
        except StatusError:
            raise
        except PLUGIN_ERRORS:
            logger.exception("the aggregation protocol %s failed on a late call", factory.name)
            response = None
        if response is None and task is not None and task.protocol.concludes(route.method):
            response = empty
        if response is None:
            raise _too_late()
        if route.long_running:
            name = operation_name(tickets.operation(route.method))
            return cast(Message, operation(name, None, response))
        return response

    def _read(
        self, text: str, kind: Kind, aggregation_id: str, now: float, sender: str | None
    ) -> Token:
        token = None
        try:
            token = read_token(self._tokens, text, kind, now, sender, late=True)
        except StatusError as error:
            if error.code is not Code.UNAUTHENTICATED or self._tasks.knows(aggregation_id):
                raise
        if token is not None:
            if _is_scope(token, aggregation_id):
                return token
            if self._tasks.knows(aggregation_id):
                raise StatusError(
                    Code.UNAUTHENTICATED,
                    "this token is for another aggregation than the one that is named",
                )
        raise StatusError(
            Code.NOT_FOUND, f"this server never had an aggregation {aggregation_id!r}"
        )


def _too_late() -> StatusError:
    return StatusError(Code.ABORTED, "the task is over; check in again")


def _is_scope(token: Token, aggregation_id: str) -> bool:
    try:
        return token.scope == uuid_bytes(aggregation_id)
    except ValueError:
        return False


def _empty(route: Route) -> Message:
    response: Message = (route.operation_response_class or route.response_class)()
    return response


def _why(request: Any) -> tuple[Code, str]:
    """Return why a device gives up, as far as it says."""
    status = getattr(request, "status", None)
    code = code_of(0 if status is None else status.code)
    message = "" if status is None else clean(status.message)
    return Code.CANCELLED if code is Code.OK else code, message or "the device aborted"


def code_of(value: int) -> Code:
    """Return a code that a device reports; one that does not exist is UNKNOWN."""
    try:
        return Code(value)
    except ValueError:
        return Code.UNKNOWN


def _operation(route: Route, token: str, call: ProtocolCall) -> longrunning.Operation:
    metadata = call.metadata
    if metadata is None and route.operation_metadata_class is not None:
        metadata = route.operation_metadata_class()
    if metadata is not None and call.result is None:
        _set_polling_interval(metadata)
    return operation(operation_name(token), metadata, call.result)


def _set_polling_interval(metadata: Any) -> None:
    """Set it if it is missing: without one, devices ask again without a pause."""
    field = metadata.DESCRIPTOR.fields_by_name.get("polling_interval")
    if field is not None and not metadata.HasField("polling_interval"):
        metadata.polling_interval.CopyFrom(duration(POLLING_INTERVAL))


def _response(call: ProtocolCall) -> Message:
    if isinstance(call.result, StatusError):
        raise call.result.with_traceback(None)
    response: Message = call.result  # type: ignore[assignment]
    return response
