"""The device's side of masked sums."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from fcp_core.client.protocols import CallStep, DeviceProtocol, PlanResults, Step, UploadStep
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.status import StatusError
from fcp_core.testing.masked_sum.messages import FILE, add_mask, read_integers

if TYPE_CHECKING:
    from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment


class MaskedSumDevice(DeviceProtocol):
    """Joins a cohort, uploads masked integers, and helps to unmask the cohort's sum."""

    def accepts(self, assignment: TaskAssignment) -> bool:
        """Whether the assignment has the mark that the server's side borrows."""
        return assignment.HasField("willow_aggregation_info")

    def contribute(
        self, assignment: TaskAssignment, results: PlanResults
    ) -> Generator[Step, Any, None]:
        """Contribute the integers of the results' checkpoint."""
        vector = read_integers(results.checkpoint)
        request = FILE["JoinRequest"](
            aggregation_id=assignment.aggregation_id,
            authorization_token=assignment.authorization_token,
        )
        forwarding = assignment.aggregation_data_forwarding_info
        joined = yield CallStep("MaskedSums.Join", request, forwarding)
        me = {"aggregation_id": assignment.aggregation_id, "client_token": joined.client_token}

        for other, seed in enumerate(joined.seeds):
            if other != joined.index:
                vector = add_mask(vector, seed, joined.index, other)
        try:
            yield UploadStep(joined.resource, write_checkpoint(vector, "federated_compute"))
        except StatusError:
            request = FILE["AbortRequest"](**me)
            yield CallStep("MaskedSums.Abort", request, joined.forwarding, best_effort=True)
            raise

        request = FILE["MissingRequest"](**me)
        answer = yield CallStep("MaskedSums.Missing", request, joined.forwarding)
        seeds = [joined.seeds[index] for index in answer.missing]
        request = FILE["ConcludeRequest"](**me, seeds=seeds)
        yield CallStep("MaskedSums.Conclude", request, joined.forwarding)
