"""The calls of the admin API, for the server's dispatcher and the OpenAPI description."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from fcp_core.admin.messages import (
    Cancellation,
    EligibilityList,
    EligibilitySettings,
    EligibilitySummary,
    ListQuery,
    MemberList,
    PopulationList,
    ResultTable,
    ServerStatus,
    Submission,
    Task,
    TaskList,
    WaitQuery,
)
from fcp_core.admin.schedules import ScheduledTask, ScheduleList, ScheduleSummary
from fcp_core.protocol.status import Code

#: Where the API lives.
PREFIX = "/admin/v1"

JSON = "application/json"
BINARY = "application/octet-stream"
#: What a body may be as well: the same messages, in which bytes are not a third longer.
MSGPACK = "application/msgpack"
CSV = "text/csv"


@dataclass(frozen=True)
class Endpoint:
    """One call.

    :param method: the method of the admin service that answers it.
    :param path: what comes after the prefix; ``{task_id}`` stands for one segment.
    :param answers: what it answers by content type, the first by default; a message's class, or
        ``bytes`` or ``str`` for a body that is no message.
    :param query: the message whose fields are the query's parameters.
    :param body: the message that is sent; None: no body.
    :param body_required: whether an empty body is refused rather than taken for ``{}``.
    :param codes: the errors that are the call's own, beyond those of every call.
    """

    method: str
    verb: str
    path: str
    summary: str
    answers: dict[str, Any]
    query: Any = None
    body: Any = None
    body_required: bool = True
    codes: tuple[Code, ...] = ()
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the pattern of the path."""
        parts = re.split(r"\{(\w+)\}", PREFIX + self.path)
        pattern = "".join(
            f"(?P<{part}>[^/:]+)" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )
        object.__setattr__(self, "_pattern", re.compile(pattern))

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the path's variables."""
        return tuple(self._pattern.groupindex)

    def match(self, path: str) -> dict[str, str] | None:
        """Return the path's variables if *path* is one of this call's; else None."""
        found = self._pattern.fullmatch(path)
        if found is None:
            return None
        return {name: unquote(value, errors="replace") for name, value in found.groupdict().items()}


ENDPOINTS = (
    Endpoint(
        "submit",
        "POST",
        "/tasks",
        "Offer a task; it is stored, and open, when this is answered.",
        {JSON: Task},
        body=Submission,
        codes=(Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS),
    ),
    Endpoint(
        "list_tasks",
        "GET",
        "/tasks",
        "List the tasks, oldest first.",
        {JSON: TaskList},
        query=ListQuery,
    ),
    Endpoint(
        "get_task",
        "GET",
        "/tasks/{task_id}",
        "Return a task.",
        {JSON: Task},
        codes=(Code.NOT_FOUND,),
    ),
    Endpoint(
        "forget",
        "DELETE",
        "/tasks/{task_id}",
        "Delete a task that has ended, with its result.",
        {JSON: Task},
        codes=(Code.NOT_FOUND, Code.FAILED_PRECONDITION),
    ),
    Endpoint(
        "result",
        "GET",
        "/tasks/{task_id}/result",
        "Return a task's result: a checkpoint, or, if asked for, a table.",
        {BINARY: bytes, JSON: ResultTable, CSV: str},
        codes=(Code.NOT_FOUND, Code.FAILED_PRECONDITION),
    ),
    Endpoint(
        "cancel",
        "POST",
        "/tasks/{task_id}:cancel",
        "End a task without a result; nothing happens if it has ended.",
        {JSON: Task},
        body=Cancellation,
        body_required=False,
        codes=(Code.NOT_FOUND,),
    ),
    Endpoint(
        "wait",
        "GET",
        "/tasks/{task_id}:wait",
        "Return a task as soon as it has ended, or as it is after the time given.",
        {JSON: Task},
        query=WaitQuery,
        codes=(Code.NOT_FOUND,),
    ),
    Endpoint(
        "list_populations",
        "GET",
        "/populations",
        "List the populations and how busy they are.",
        {JSON: PopulationList},
    ),
    Endpoint(
        "list_eligibility_tasks",
        "GET",
        "/eligibility_tasks",
        "List the populations that have an eligibility task.",
        {JSON: EligibilityList},
    ),
    Endpoint(
        "set_eligibility_task",
        "PUT",
        "/eligibility_tasks/{population}",
        "Give a population an eligibility task, in place of the one it has; it is stored, and "
        "holds for the next check-in, when this is answered.",
        {JSON: EligibilitySummary},
        body=EligibilitySettings,
        codes=(Code.INVALID_ARGUMENT, Code.NOT_FOUND),
    ),
    Endpoint(
        "get_eligibility_task",
        "GET",
        "/eligibility_tasks/{population}",
        "Return a population's eligibility task.",
        {JSON: EligibilitySettings},
        codes=(Code.NOT_FOUND,),
    ),
    Endpoint(
        "remove_eligibility_task",
        "DELETE",
        "/eligibility_tasks/{population}",
        "Take a population's eligibility task away.",
        {JSON: EligibilitySummary},
        codes=(Code.NOT_FOUND,),
    ),
    Endpoint(
        "list_schedules",
        "GET",
        "/schedules",
        "List the tasks that the server offers again and again.",
        {JSON: ScheduleList},
    ),
    Endpoint(
        "schedule",
        "PUT",
        "/schedules/{population}/{name}",
        "Offer a task now, and then once in each period, in place of what its name had before; the "
        "server keeps the schedule.",
        {JSON: ScheduleSummary},
        body=ScheduledTask,
        codes=(Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS),
    ),
    Endpoint(
        "unschedule",
        "DELETE",
        "/schedules/{population}/{name}",
        "Offer a task no more; what was offered goes on.",
        {JSON: ScheduleSummary},
        codes=(Code.NOT_FOUND,),
    ),
    Endpoint(
        "members",
        "GET",
        "/members",
        "List the processes that share the storage, and who owns which population.",
        {JSON: MemberList},
    ),
    Endpoint("status", "GET", "/status", "Return how the server is.", {JSON: ServerStatus}),
    Endpoint(
        "openapi",
        "GET",
        "/openapi.json",
        "Return this description.",
        {JSON: dict[str, Any]},
    ),
)


def find(path: str) -> dict[str, tuple[Endpoint, dict[str, str]]]:
    """Return the calls at an address and the variables of the path, by verb."""
    found = {}
    for endpoint in ENDPOINTS:
        variables = endpoint.match(path)
        if variables is not None:
            found[endpoint.verb] = (endpoint, variables)
    return found


def choose(endpoint: Endpoint, accept: str) -> str | None:
    """Return the content type that an ``Accept`` header allows; None: none of ours.

    The most specific range counts for a type, then its weight, then the call's own order.
    """
    ranges = [_range(item) for item in accept.split(",")] if accept.strip() else [("*/*", 1.0)]
    best: tuple[float, str | None] = (0.0, None)
    for kind in endpoint.answers:
        group = kind.partition("/")[0]
        for name in (kind, f"{group}/*", "*/*"):
            weights = [weight for item, weight in ranges if item == name]
            if weights:
                best = max(best, (max(weights), kind), key=lambda pair: pair[0])
                break
    return best[1]


def _range(item: str) -> tuple[str, float]:
    name, _, parameters = item.partition(";")
    weight = re.search(r"(?:^|;)\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*(?:;|$)", parameters)
    return name.strip().lower(), float(weight[1]) if weight else 1.0
