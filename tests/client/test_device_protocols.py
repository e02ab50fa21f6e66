"""Aggregation protocols of plugins in the session machine of a device."""

from __future__ import annotations

import gzip

from fcp_core.client import Outcome, TaskOutcome
from fcp_core.client.protocols import CallStep, DeviceProtocol, PlanResults, Together, UploadStep
from fcp_core.client.steps import (
    Computed,
    Reply,
)
from fcp_core.protocol.protos import (
    common_pb2,
    secure_aggregations_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code
from tests.client.session_plays import (
    CONTRIBUTION,
    GET,
    REPORT,
    Server,
    assignment,
    done,
    pending,
    run,
)


class TwoPhases(DeviceProtocol):
    """Says its keys, waits for those of others, uploads two things at once."""

    fault = None

    def accepts(self, assignment):
        return assignment.task_name == "task"

    def contribute(self, assignment, results):
        info = assignment.aggregation_data_forwarding_info
        request = secure_aggregations_pb2.AdvertiseKeysRequest(
            aggregation_id="a/b", client_token="t"
        )
        self.answer = yield CallStep("SecureAggregations.AdvertiseKeys", request, info)
        resource = common_pb2.ByteStreamResource(resource_name="r")
        resource.data_upload_forwarding_info.CopyFrom(info)
        self.sent = yield Together(
            (UploadStep(resource, b"12345", compress=False), UploadStep(resource, b"6", False))
        )
        if self.fault is not None:
            raise self.fault
        request = secure_aggregations_pb2.AbortSecureAggregationRequest(
            aggregation_id="a/b", client_token="t"
        )
        self.last = yield CallStep(
            "SecureAggregations.AbortSecureAggregation", request, info, best_effort=True
        )


def two_phases(**answers):
    metadata = secure_aggregations_pb2.AdvertiseKeysMetadata()
    metadata.polling_interval.nanos = 250_000_000
    server = Server(AdvertiseKeys=pending(metadata), **answers)
    response = secure_aggregations_pb2.AdvertiseKeysResponse()
    server.answers["GetOperation"] = done(response)
    server.answers.setdefault("AbortSecureAggregation", Code.NOT_FOUND)
    return server


def test_a_protocol_of_a_plugin_is_asked_first():
    protocol, server = TwoPhases(), two_phases()
    end, log = run(server, protocols=(protocol,))
    assert log[3:] == [
        "compute",
        "remember task",
        [[REPORT], ["SecureAggregations.AdvertiseKeys", "sleep 0.25", GET]],
        [["upload"], ["upload"]],
        "SecureAggregations.AbortSecureAggregation",
    ]
    assert isinstance(protocol.answer, secure_aggregations_pb2.AdvertiseKeysResponse)
    assert (protocol.sent, protocol.last) == ([5, 1], None)
    assert end.tasks[0].outcome is TaskOutcome.CONTRIBUTED
    assert end.tasks[0].uploaded_bytes == 6
    call = server.of("SecureAggregations.AdvertiseKeys")
    assert call.url.endswith(
        "/data/v1/secureaggregations/a%2Fb/clients/t:advertisekeys?%24alt=proto"
    )
    # The variables of the path are not repeated in the body, and the request stays as it was.
    assert gzip.decompress(call.body) == b""
    assert call.message.aggregation_id == "a/b"
    uploads = [request for request in server.requests if request.name == "upload"]
    assert all("Content-Encoding" not in request.headers for request in uploads)


def test_a_fault_in_a_protocol_fails_its_task_alone():
    protocol = TwoPhases()
    protocol.fault = ZeroDivisionError("oops")
    end, _ = run(two_phases(), protocols=(protocol,))
    (task,) = end.tasks
    assert (task.outcome, task.error.code) == (TaskOutcome.SUBMIT_FAILED, Code.INTERNAL)
    assert "oops" in task.error.message


def test_a_failure_that_is_not_the_devices_sends_it_away_for_the_usual_time_only():
    """Not for hours, although its contribution was not uploaded."""
    for comes_back in ((), (Code.ABORTED,)):
        protocol = TwoPhases()
        protocol.comes_back = comes_back
        end, _ = run(two_phases(upload=[Reply(b""), Code.ABORTED]), protocols=(protocol,))
        (task,) = end.tasks
        assert task.error.code is Code.ABORTED
        wanted = TaskOutcome.SUBMIT_FAILED if comes_back else TaskOutcome.UPLOAD_FAILED
        assert task.outcome is wanted


def test_an_upload_of_several_that_fails_is_one_that_failed():
    end, log = run(two_phases(upload=[Reply(b""), Code.INTERNAL]), protocols=(TwoPhases(),))
    assert end.tasks[0].outcome is TaskOutcome.UPLOAD_FAILED
    assert log[-2:] == [[["upload"], ["upload"]], "sleep 0"]


def test_other_tasks_are_contributed_to_plainly():
    response = task_assignments_pb2.StartTaskAssignmentResponse()
    response.task_assignment.CopyFrom(assignment("another"))
    end, log = run(Server(StartTaskAssignment=done(response)), protocols=(TwoPhases(),))
    assert log[3:] == ["compute", "remember another", *CONTRIBUTION[2:]]
    assert end.outcome is Outcome.CONTRIBUTED


def test_masked_tensors_do_not_leave_the_device_plainly():
    server = Server()
    server.computed = Computed(PlanResults(b"", {"x": [1]}))
    end, log = run(server)
    assert log[3:] == ["compute", "remember task", REPORT, "forget", "sleep 0"]
    assert end.tasks[0].error.code is Code.INVALID_ARGUMENT
