"""The contract of an aggregation protocol on the device's side.

A protocol is a generator without input or output: given the results of a plan and the assignment,
it yields steps, is sent their answers, and returns when the device has contributed. An error of a
step is thrown into it as a ``StatusError``; one that it does not catch is how the contribution
ended. The server's side is ``fcp_core.rounds.protocols``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:
    from fcp_core.protocol.protos.common_pb2 import ByteStreamResource, ForwardingInfo
    from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment
    from fcp_core.protocol.status import Code


@dataclass(frozen=True)
class CallStep:
    """Call a method of the server; the answer is its response.

    A long-running call is polled until it is done, and its answer is the operation's response.

    :param route: the route's short name, such as ``Aggregations.SubmitAggregationResult``.
    :param request: the request, with the variables of its path filled in.
    :param forwarding: where it goes.
    :param best_effort: whether an error of it is of no interest; the answer is then None.
    """

    route: str
    request: Any
    forwarding: ForwardingInfo
    best_effort: bool = False


@dataclass(frozen=True)
class UploadStep:
    """Upload bytes; the answer is how many were sent, after compression.

    :param compress: whether they may be compressed on the way.
    """

    resource: ByteStreamResource
    data: bytes
    compress: bool = True


@dataclass(frozen=True)
class Together:
    """Do several steps at the same time; the answer is the list of theirs, or the first error."""

    steps: tuple[CallStep | UploadStep, ...]


Step: TypeAlias = CallStep | UploadStep | Together


@dataclass(frozen=True)
class PlanResults:
    """What a plan yields.

    :param checkpoint: the plain results as a checkpoint.
    :param secure: tensors that leave the device only masked, by name; integer arrays.
    """

    checkpoint: bytes
    secure: Mapping[str, Any] = field(default_factory=dict)


class DeviceProtocol(ABC):
    """The device's side of one protocol.

    :cvar comes_back: the codes of failures that are not the device's, such as those of a group that
        it was in: it comes back by the server's retry window, and not hours later.
    """

    comes_back: ClassVar[Collection[Code]] = ()

    @abstractmethod
    def accepts(self, assignment: TaskAssignment) -> bool:
        """Whether an assignment is one of this protocol."""

    @abstractmethod
    def contribute(
        self, assignment: TaskAssignment, results: PlanResults
    ) -> Generator[Step, Any, None]:
        """Contribute the results.

        :raises StatusError: from the generator, if the contribution cannot be completed.
        """
