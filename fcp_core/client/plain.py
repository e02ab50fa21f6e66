"""Plain aggregation on the device: the contribution is uploaded as it is, then submitted."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from fcp_core.client.protocols import CallStep, DeviceProtocol, PlanResults, Step, UploadStep
from fcp_core.protocol.protos import aggregations_pb2
from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment
from fcp_core.protocol.status import Code, StatusError

#: What only a protocol of its own can serve; any other assignment is one of plain aggregation.
_OTHERS = ("confidential_aggregation_info", "willow_aggregation_info")


class PlainUpload(DeviceProtocol):
    """Starts an upload, uploads, submits; in the published client's order."""

    def accepts(self, assignment: TaskAssignment) -> bool:
        """Whether an assignment asks for nothing more than an upload."""
        return assignment.WhichOneof("aggregation_type") not in _OTHERS

    def contribute(
        self, assignment: TaskAssignment, results: PlanResults
    ) -> Generator[Step, Any, None]:
        """Contribute the checkpoint.

        :raises StatusError: from the generator: as the server refuses, or INVALID_ARGUMENT if it
            does not say where the rest goes. After an upload that failed, the server is told.
        """
        if results.secure:
            raise StatusError(
                Code.INVALID_ARGUMENT, "the plan yields masked tensors, which this task cannot take"
            )
        started = yield CallStep(
            "Aggregations.StartAggregationDataUpload",
            aggregations_pb2.StartAggregationDataUploadRequest(
                aggregation_id=assignment.aggregation_id,
                authorization_token=assignment.authorization_token,
            ),
            assignment.aggregation_data_forwarding_info,
        )
        forwarding = started.aggregation_protocol_forwarding_info
        resource = started.resource
        for info, what in (
            (forwarding, "aggregation_protocol_forwarding_info"),
            (resource.data_upload_forwarding_info, "data_upload_forwarding_info"),
        ):
            if not info.target_uri_prefix:
                raise StatusError(Code.INVALID_ARGUMENT, f"the server sent no {what}")
        token = started.client_token or assignment.authorization_token
        try:
            yield UploadStep(resource, results.checkpoint)
        except StatusError as error:
            if error.code is not Code.ABORTED:  # otherwise the server ended it itself
                yield CallStep(
                    "Aggregations.AbortAggregation",
                    _abort(assignment.aggregation_id, token, error),
                    forwarding,
                    best_effort=True,
                )
            raise
        yield CallStep(
            "Aggregations.SubmitAggregationResult",
            aggregations_pb2.SubmitAggregationResultRequest(
                aggregation_id=assignment.aggregation_id,
                client_token=token,
                resource_name=resource.resource_name,
            ),
            forwarding,
        )


def _abort(aggregation_id: str, token: str, error: StatusError) -> Any:
    request = aggregations_pb2.AbortAggregationRequest(
        aggregation_id=aggregation_id, client_token=token
    )
    request.status.code = int(error.code)
    request.status.message = "the client could not upload its result"
    return request
