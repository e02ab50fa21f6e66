"""What becomes of a protocol's calls that come too late, give up, or name what there is not.

What devices send in time is in ``services.protocol_calls``.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Protocol, cast

from google.protobuf.message import Message

from fcp_core.errors import plugin_errors
from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.pacing import duration
from fcp_core.rounds.protocols import AggregationProtocolFactory, Call
from fcp_core.rounds.text import clean
from fcp_core.rounds.token_parts import Token
from fcp_core.rounds.tokens import AssignmentTickets, operation, operation_name
from fcp_core.server.services.common import Common
from fcp_core.server.services.task_runner import TaskRunner

logger = logging.getLogger("fcp.services")

#: How often a device asks about an operation whose protocol does not say, in seconds.
POLLING_INTERVAL = 0.5


class KnownTasks(Protocol):
    """The tasks that calls may be about, by their aggregations."""

    def find(self, aggregation_id: str) -> TaskRunner | None:
        """Return one that is known with its assignments, or None."""
        ...

    def knows(self, aggregation_id: str) -> bool:
        """Whether there is or was one."""
        ...


class LateCalls:
    """What the services of all installed aggregation protocols begin with, and how they end.

    :param factories: the installed protocols.
    :param accepts_late: whether a device that comes too late is answered OK if its task is not
        known any more; otherwise the task says.
    """

    def __init__(
        self,
        common: Common,
        *,
        tasks: KnownTasks,
        factories: Collection[AggregationProtocolFactory],
        accepts_late: bool,
    ) -> None:
        self._clock = common.clock
        self._tokens = common.tokens
        self._tasks = tasks
        self._base_url = common.base_url
        self._accepts_late = accepts_late
        self._place = common.place
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

    # Inside.

    def _accepts(self, task: TaskRunner | None) -> bool:
        return self._accepts_late if task is None else task.accepts_late

    def _abort(self, route: Route, request: Any, token: Token, task: TaskRunner | None) -> Message:
        """Let a device give up, if it is known."""
        known = None if task is None else task.machine.get(token.subject.hex())
        if task is not None and known is not None:
            code, message = _why(request)
            task.drop(known.id, "aborted", code, message)
        return empty(route)

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
            raise too_late()
        factory = self._factories[route.service]
        response, nothing = None, empty(route)
        try:
            if factory.late is not None:
                response = factory.late(Call(tickets.assignment, route.method, request, tickets))
            if response is not None and not isinstance(response, type(nothing)):
                raise TypeError(f"expected a {nothing.DESCRIPTOR.full_name}, not {response!r}")
        except StatusError:
            raise
        except plugin_errors():
            logger.exception("the aggregation protocol %s failed on a late call", factory.name)
            response = None
        if response is None and task is not None and task.protocol.concludes(route.method):
            response = nothing
        if response is None:
            raise too_late()
        if route.long_running:
            name = operation_name(tickets.operation(route.method))
            return cast(Message, operation(name, None, response))
        return response

    def _invalid(self, aggregation_id: str, error: StatusError | None) -> StatusError:
        """Return what is answered to a call whose token is not that of its aggregation.

        :param error: what is wrong with the token; None: it is for another one.
        """
        if error is not None and error.code is not Code.UNAUTHENTICATED:
            return error
        if not self._tasks.knows(aggregation_id):
            what = f"this server never had an aggregation {aggregation_id!r}"
            return StatusError(Code.NOT_FOUND, what)
        return error or StatusError(
            Code.UNAUTHENTICATED,
            "this token is for another aggregation than the one that is named",
        )


def too_late() -> StatusError:
    """Return what is answered to a device that comes too late, where that is refused."""
    return StatusError(Code.ABORTED, "the task is over; check in again")


def empty(route: Route) -> Message:
    """Return the response of a call that says nothing."""
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


def set_polling_interval(metadata: Any) -> None:
    """Set it if it is missing: without one, devices ask again without a pause."""
    field = metadata.DESCRIPTOR.fields_by_name.get("polling_interval")
    if field is not None and not metadata.HasField("polling_interval"):
        metadata.polling_interval.CopyFrom(duration(POLLING_INTERVAL))
