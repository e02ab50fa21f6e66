"""What a device session asks its driver to do; the session itself does no input or output.

A session is a generator: it yields steps, is sent their answers, and errors of a step are thrown
into it as a ``StatusError``. What carries the steps out is a driver: ``driver`` blocks,
``asynchronous`` awaits, and a test may answer by itself.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

from fcp_core.client.protocols import PlanResults
from fcp_core.protocol.status import StatusError

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """Send an HTTP request; the answer is a :class:`Reply` with a status of 2xx.

    :param name: the call's route, such as ``TaskAssignments.StartTaskAssignment``, or ``upload`` or
        ``download``.
    :param headers: all but those of the connection, ``Content-Length`` and ``Accept-Encoding``.
    :param body: as it is sent; None: there is none.
    :param message: the call's request with the variables of its path, or the resource to upload to;
        for drivers that carry it out without HTTP.
    :param data: what an upload carries, before compression.
    :param best_effort: nobody waits for it in earnest: it goes out although the client was
        interrupted, is given up early, and is not sent again.
    """

    name: str
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    message: Any = None
    data: bytes = b""
    best_effort: bool = False


class Reply(NamedTuple):
    """The answer to a request, its content encoding undone."""

    body: bytes
    content_type: str = ""


@dataclass(frozen=True)
class Sleep:
    """Wait; none at all is a chance to end an interrupted session.

    :param seconds: how long.
    """

    seconds: float


@dataclass(frozen=True)
class Concurrently:
    """Carry out parts of the session at the same time, begun in their order.

    The answer is the list of what they return; if some fail, the error of the first of them, once
    all have ended.
    """

    parts: tuple[Steps[Any], ...]


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the eligibility of the device; the answer is an ``Eligibility``.

    :param spec: the ``PopulationEligibilitySpec``; None: the plan alone decides.
    :param plan: the eligibility plan with its checkpoint, if there is one.
    """

    spec: Any
    plan: tuple[bytes, bytes] | None


@dataclass(frozen=True)
class Compute:
    """Run a plan; the answer is a :class:`Computed`, which also tells of a failure.

    :param assignment: the ``TaskAssignment``.
    :param plan: the serialized ``ClientOnlyPlan``.
    """

    assignment: Any
    plan: bytes
    checkpoint: bytes


@dataclass(frozen=True)
class Computed:
    """What running a plan yielded.

    :param seconds: how long it took.
    :param separation_index: the plan's index for minimum separation, if it has one.
    :param statement: what the task said of its privacy, as JSON.
    """

    results: PlanResults = field(default_factory=lambda: PlanResults(b""))
    seconds: float = 0.0
    error: StatusError | None = None
    separation_index: int | None = None
    statement: str = ""


@dataclass(frozen=True)
class Remember:
    """Note a contribution in the history; the answer is what :class:`Forget` needs."""

    task_name: str
    separation_index: int | None
    statement: str = ""


@dataclass(frozen=True)
class Forget:
    """Take a contribution that the server does not have out of the history."""

    note: Any


SessionStep: TypeAlias = "Request | Sleep | Concurrently | Evaluate | Compute | Remember | Forget"
#: A part of a session: yields steps and returns a ``T``.
Steps: TypeAlias = Generator[SessionStep, Any, T]
