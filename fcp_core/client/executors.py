"""What runs a plan on the device: one executor for each kind of plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcp_core.client.interruption import Interruption
from fcp_core.client.protocols import PlanResults
from fcp_core.client.stores import ExampleStore
from fcp_core.protocol import python_plan
from fcp_core.protocol.status import Code, StatusError

if TYPE_CHECKING:
    from fcp_core.protocol.protos.plan_pb2 import ClientOnlyPlan, SlicesSelector

#: The collection whose "examples" are slices that the server made for this round.
FEDERATED_SELECT_URI = "internal:/federated_select"


_NOT_MISSING = (
    *(Code.CANCELLED, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED),
    # The task has ended.
    Code.FAILED_PRECONDITION,
)


class InsufficientDataError(StatusError):
    """The device has too little data for the plan; reported as FAILED_PRECONDITION."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.FAILED_PRECONDITION, message)


class SliceSource:
    """Downloads the slices that federated select serves.

    :param download: returns what several URIs stand for, in their order; None if *template* is
        empty.
    :param template: the URI template of the task; empty if the task serves no slices.
    """

    def __init__(
        self, download: Callable[[Sequence[str]], list[bytes]] | None, template: str
    ) -> None:
        self._download = download
        self._template = template

    def slices(self, selector: SlicesSelector) -> Iterator[bytes]:
        """Return the slices of the selector's keys, in their order, all fetched at once.

        :raises StatusError: INVALID_ARGUMENT if the task serves no slices; OUT_OF_RANGE if it has
            none of a key; UNAVAILABLE if any of them cannot be had; CANCELLED if the client was
            interrupted; RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED if they take more than the device
            gives.
        """
        if not self._template or self._download is None:
            raise StatusError(Code.INVALID_ARGUMENT, "the task serves no slices to select from")
        base = self._template.replace("{served_at_id}", selector.served_at_id)
        uris = [base.replace("{key_base10}", str(key)) for key in selector.keys]
        try:
            return iter(self._download(uris))
        except StatusError as error:
            if error.code in _NOT_MISSING:
                raise
            if error.code is Code.NOT_FOUND:
                # Asking again would not help. It is no reason to stay away for long either: a
                # server of a release before answers so when the task has ended meanwhile.
                asked = f"{min(selector.keys)} to {max(selector.keys)}"
                raise StatusError(
                    Code.OUT_OF_RANGE,
                    f"{selector.served_at_id!r} has no slice of one of the keys asked for, {asked}",
                ) from error
            raise StatusError(
                Code.UNAVAILABLE, f"a slice of {selector.served_at_id!r} is missing: {error}"
            ) from error


@dataclass(frozen=True)
class PlanRun:
    """One plan that is to be run once.

    :param plan: the parsed ``ClientOnlyPlan``.
    :param checkpoint: the initial checkpoint; empty if nothing is broadcast.
    """

    plan: ClientOnlyPlan
    checkpoint: bytes
    store: ExampleStore
    slices: SliceSource
    interruption: Interruption


class PlanExecutor(ABC):
    """Runs plans of one kind. One executor may serve several clients and threads at once."""

    @abstractmethod
    def run(self, run: PlanRun) -> bytes | PlanResults:
        """Run the plan and return the checkpoint to contribute, with what leaves only masked.

        :raises InsufficientDataError: if the device has too little data.
        :raises StatusError: for a plan that is malformed or cannot be run here; CANCELLED if the
            client was interrupted.
        """


def run_plan(executors: Mapping[str, PlanExecutor], run: PlanRun) -> bytes | PlanResults:
    """Run a plan with the executor of its kind.

    :raises StatusError: as the executor does; UNIMPLEMENTED if there is none for the kind.
    """
    kind: Any = run.plan.phase.WhichOneof("spec")
    if python_plan.is_python_plan(run.plan):
        kind = python_plan.KIND
    if kind is None:
        raise StatusError(Code.INVALID_ARGUMENT, "the plan says nothing to run: no spec is set")
    executor = executors.get(kind)
    if executor is None:
        raise StatusError(
            Code.UNIMPLEMENTED, f"no executor for plans with {kind}; there is {sorted(executors)}"
        )
    return executor.run(run)
