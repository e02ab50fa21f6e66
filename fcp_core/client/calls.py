"""The protocol's calls, one method each: build the request, send it, parse the response."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from fcp_core.client.operations import await_operation, parse
from fcp_core.client.transport import Endpoint, Transport, path_variable
from fcp_core.protocol.protos import (
    aggregations_pb2,
    common_pb2,
    eligibility_eval_tasks_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import Duration


class Calls:
    """Speaks for one device to one server.

    :param population: the population's name.
    :param client_version: sent as the version code; empty if there is none.
    :param attestation_measurement: sent as it is; empty if there is none.
    :raises StatusError: INVALID_ARGUMENT if the population cannot stand in an address.
    """

    def __init__(
        self,
        transport: Transport,
        population: str,
        client_version: str = "",
        attestation_measurement: str = "",
    ) -> None:
        self._transport = transport
        self._population = path_variable(population)
        self._about: dict[str, Any] = {
            "client_version": common_pb2.ClientVersion(version_code=client_version),
            "resource_capabilities": common_pb2.ResourceCapabilities(
                supported_compression_formats=(
                    [common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP] if transport.compress else []
                )
            ),
        }
        if attestation_measurement:
            self._about["attestation_measurement"] = common_pb2.AttestationMeasurement(
                value=attestation_measurement
            )

    def request_eligibility(self, endpoint: Endpoint) -> Any:
        """Return the ``EligibilityEvalTaskResponse``."""
        request = eligibility_eval_tasks_pb2.EligibilityEvalTaskRequest(
            **self._about,
            eligibility_eval_task_capabilities=(
                eligibility_eval_tasks_pb2.EligibilityEvalTaskCapabilities(
                    supports_multiple_task_assignment=True, supports_native_eets=True
                )
            ),
        )
        answer = self._transport.call(
            endpoint,
            f"v1/eligibilityevaltasks/{self._population}:request",
            request.SerializeToString(),
        )
        response_class = eligibility_eval_tasks_pb2.EligibilityEvalTaskResponse
        return parse(response_class, answer, "the eligibility response")

    def report_eligibility(
        self, endpoint: Endpoint, session_id: str, code: Code
    ) -> Callable[[], None]:
        """Report how the eligibility evaluation went. A failure changes nothing.

        :returns: to be called later: waits until the server has heard it.
        """
        status_code: Any = int(code)
        request = eligibility_eval_tasks_pb2.ReportEligibilityEvalTaskResultRequest(
            status_code=status_code
        )
        path = (
            f"v1/populations/{self._population}/eligibilityevaltasks/"
            f"{path_variable(session_id)}:reportresult"
        )
        return self._transport.tell(endpoint, path, request.SerializeToString())

    def start_assignment(self, endpoint: Endpoint, session_id: str, info: Any) -> Any:
        """Return the ``StartTaskAssignmentResponse``, once the server has decided.

        :param info: the ``TaskEligibilityInfo`` to send, or None.
        """
        request = task_assignments_pb2.StartTaskAssignmentRequest(
            **self._about, task_eligibility_info=info
        )
        answer = self._transport.call(
            endpoint, self._assignment_path(session_id, "start"), request.SerializeToString()
        )
        response_class = task_assignments_pb2.StartTaskAssignmentResponse
        return await_operation(self._transport, endpoint, answer, response_class, cancellable=True)

    def perform_multiple(self, endpoint: Endpoint, session_id: str, names: Sequence[str]) -> Any:
        """Return the ``PerformMultipleTaskAssignmentsResponse`` for the tasks *names*."""
        request = task_assignments_pb2.PerformMultipleTaskAssignmentsRequest(
            **self._about, task_names=names
        )
        answer = self._transport.call(
            endpoint,
            self._assignment_path(session_id, "performmultiple"),
            request.SerializeToString(),
        )
        response_class = task_assignments_pb2.PerformMultipleTaskAssignmentsResponse
        return parse(response_class, answer, "the answer to performmultiple")

    def report_task(
        self, endpoint: Endpoint, assignment: Any, code: Code, seconds: float
    ) -> Callable[[], None]:
        """Report how a computation went. A failure changes nothing.

        :param assignment: the ``TaskAssignment``.
        :param seconds: how long the computation took.
        :returns: to be called later: waits until the server has heard it.
        """
        nanos = round(seconds * 1e9)
        status_code: Any = int(code)
        request = task_assignments_pb2.ReportTaskResultRequest(
            computation_status_code=status_code,
            task_name=assignment.task_name,
            aggregation_id=assignment.aggregation_id,
            client_stats=task_assignments_pb2.ClientStats(
                computation_execution_duration=Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
            ),
        )
        path = self._assignment_path(assignment.session_id, "reportresult")
        if code is Code.CANCELLED:  # that it was interrupted is still said
            self._say_farewell(endpoint, path, request)
            return lambda: None
        return self._transport.tell(endpoint, path, request.SerializeToString())

    def start_upload(self, endpoint: Endpoint, assignment: Any) -> Any:
        """Return the ``StartAggregationDataUploadResponse``, its client token filled in."""
        path = self._aggregation_path(
            assignment.aggregation_id, assignment.authorization_token, "startdataupload"
        )
        request = aggregations_pb2.StartAggregationDataUploadRequest()
        answer = self._transport.call(endpoint, path, request.SerializeToString())
        response_class = aggregations_pb2.StartAggregationDataUploadResponse
        response = await_operation(self._transport, endpoint, answer, response_class)
        if not response.client_token:
            response.client_token = assignment.authorization_token
        return response

    def submit(
        self, endpoint: Endpoint, aggregation_id: str, client_token: str, resource_name: str
    ) -> None:
        """Submit what was uploaded."""
        request = aggregations_pb2.SubmitAggregationResultRequest(resource_name=resource_name)
        self._transport.call(
            endpoint,
            self._aggregation_path(aggregation_id, client_token, "submit"),
            request.SerializeToString(),
        )

    def abort(
        self, endpoint: Endpoint, aggregation_id: str, client_token: str, error: StatusError
    ) -> None:
        """Tell the server that there will be no submission. A failure changes nothing."""
        request = aggregations_pb2.AbortAggregationRequest()
        request.status.code = int(error.code)
        request.status.message = "the client could not upload its result"
        path = self._aggregation_path(aggregation_id, client_token, "abort")
        self._say_farewell(endpoint, path, request)

    def _say_farewell(self, endpoint: Endpoint, path: str, request: Any) -> None:
        with contextlib.suppress(StatusError):
            self._transport.call(endpoint, path, request.SerializeToString(), farewell=True)

    def _assignment_path(self, session_id: str, verb: str) -> str:
        session = path_variable(session_id)
        return f"v1/populations/{self._population}/taskassignments/{session}:{verb}"

    def _aggregation_path(self, aggregation_id: str, token: str, verb: str) -> str:
        aggregation = path_variable(aggregation_id)
        return f"v1/aggregations/{aggregation}/clients/{path_variable(token)}:{verb}"
