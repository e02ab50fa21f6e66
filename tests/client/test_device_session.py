"""The session machine alone: what it asks for, in which order, without sockets or time."""

from __future__ import annotations

import gzip

import pytest

from fcp_core.client import Outcome, TaskOutcome
from fcp_core.client.eligibility import Eligibility
from fcp_core.client.steps import (
    Computed,
)
from fcp_core.protocol.protos import (
    aggregations_pb2,
    population_eligibility_spec_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code, StatusError
from tests.client.session_plays import (
    ABORT,
    BASE,
    CANCEL,
    CONTRIBUTION,
    GET,
    REPORT,
    START_UPLOAD,
    Server,
    assignment,
    done,
    pending,
    run,
)

CHECK_IN = "EligibilityEvalTasks.RequestEligibilityEvalTask"
REPORT_ELIGIBILITY = "EligibilityEvalTasks.ReportEligibilityEvalTaskResult"
START = "TaskAssignments.StartTaskAssignment"
MULTIPLE = "TaskAssignments.PerformMultipleTaskAssignments"
PAYLOAD = [["download"], ["download"]]


def with_spec(*modes, policies=True):
    """Return a check-in's answer with tasks ``task``, ``task1``, ... of these modes."""
    spec = population_eligibility_spec_pb2.PopulationEligibilitySpec()
    for number, mode in enumerate(modes):
        spec.task_info.add(task_name=f"task{number or ''}", task_assignment_mode=mode)
    if policies:
        spec.eligibility_policies.add(name="p")
    response = Server().RequestEligibilityEvalTask(None)
    response.eligibility_eval_task.population_eligibility_spec.inline_resource.data = (
        spec.SerializeToString()
    )
    return response


def test_the_order_of_the_published_client():
    server = Server()
    end, log = run(server)
    assert log == [CHECK_IN, START, PAYLOAD, *CONTRIBUTION]
    assert (end.outcome, end.error) == (Outcome.CONTRIBUTED, None)
    (task,) = end.tasks
    assert task.outcome is TaskOutcome.CONTRIBUTED
    assert task.uploaded_bytes == len(server.of("upload").body)
    assert (task.computation_seconds, task.checkpoint_bytes) == (1.5, 10)
    assert [request.url for request in server.requests] == [
        f"{BASE}/v1/eligibilityevaltasks/people:request?%24alt=proto",
        f"{BASE}/assign/v1/populations/people/taskassignments/session:start?%24alt=proto",
        f"{BASE}/plan",
        f"{BASE}/checkpoint",
        f"{BASE}/assign/v1/populations/people/taskassignments/task%20session:reportresult"
        "?%24alt=proto",
        f"{BASE}/data/v1/aggregations/aggregation/clients/authorization:startdataupload"
        "?%24alt=proto",
        f"{BASE}/bytes/upload/v1/media/some%20name?upload_protocol=raw",
        f"{BASE}/aggregate/v1/aggregations/aggregation/clients/token:submit?%24alt=proto",
    ]
    # Compressed, an empty body too; the key goes everywhere but to downloads.
    for request in server.requests:
        if request.name == "download":
            assert (request.method, request.body, request.headers) == ("GET", None, {})
            continue
        body = gzip.decompress(request.body)
        expected = {"x-goog-api-key": "key", "Content-Encoding": "gzip"}
        if body:
            expected["Content-Type"] = "application/x-protobuf"
        assert request.headers == expected
    assert gzip.decompress(server.of("upload").body) == b"checkpoint"


def test_eligibility_is_reported_beside_the_request_for_a_task():
    server = Server(RequestEligibilityEvalTask=with_spec(1))
    end, log = run(server)
    assert log == [
        CHECK_IN, "evaluate", [[REPORT_ELIGIBILITY], [START]], PAYLOAD, *CONTRIBUTION,
    ]  # fmt: skip
    assert end.outcome is Outcome.CONTRIBUTED
    assert server.evaluated.plan is None
    request = task_assignments_pb2.StartTaskAssignmentRequest.FromString(
        gzip.decompress(server.of(START).body)
    )
    assert [w.task_name for w in request.task_eligibility_info.task_weights] == ["task"]


def test_tasks_asked_for_by_name_come_first():
    server = Server(RequestEligibilityEvalTask=with_spec(1, 2))
    server.eligibility = Eligibility({"task": 1.0, "task1": 1.0}, ("task1",), may_start=True)
    response = task_assignments_pb2.PerformMultipleTaskAssignmentsResponse()
    response.task_assignments.append(assignment("task1"))
    server.answers["PerformMultipleTaskAssignments"] = response
    end, log = run(server)
    first = ["compute", "remember task1", *CONTRIBUTION[2:]]
    assert log == [
        CHECK_IN, "evaluate", [[REPORT_ELIGIBILITY], [MULTIPLE]], PAYLOAD, "sleep 0", *first,
        START, PAYLOAD, *CONTRIBUTION,
    ]  # fmt: skip
    assert [task.task_name for task in end.tasks] == ["task1", "task"]
    request = task_assignments_pb2.StartTaskAssignmentRequest.FromString(
        gzip.decompress(server.of(START).body)
    )
    # Those asked for by name are not weighed again.
    assert [w.task_name for w in request.task_eligibility_info.task_weights] == ["task"]


def test_without_a_task_for_one_device_there_is_no_start():
    server = Server(RequestEligibilityEvalTask=with_spec(2, policies=False))
    server.eligibility = Eligibility(None, (), may_start=False)
    end, log = run(server)
    assert log == [CHECK_IN, "evaluate"]
    assert end.outcome is Outcome.NO_TASK


def test_operations_are_polled_as_the_server_says():
    metadata = task_assignments_pb2.StartTaskAssignmentMetadata()
    metadata.polling_interval.seconds = 3
    server = Server(StartTaskAssignment=pending(metadata))
    server.answers["GetOperation"] = [pending(), Server().StartTaskAssignment(None)]
    _, log = run(server)
    assert log == [
        CHECK_IN, START, "sleep 3", GET, "sleep 0.5", GET, PAYLOAD, *CONTRIBUTION,
    ]  # fmt: skip
    poll = next(request for request in server.requests if request.name == GET)
    assert poll.url == f"{BASE}/assign/v1/operations/x?%24alt=proto"
    assert (poll.method, poll.body, poll.headers) == ("GET", None, {"x-goog-api-key": "key"})


def test_only_an_assignment_is_cancelled():
    server = Server(StartTaskAssignment=pending(), GetOperation=Code.INTERNAL)
    end, log = run(server)
    assert log == [CHECK_IN, START, "sleep 0.5", GET, CANCEL]
    assert end.error.code is Code.INTERNAL
    cancel = server.of(CANCEL)
    assert (cancel.method, cancel.body) == ("POST", b"")
    assert cancel.best_effort
    server = Server(StartAggregationDataUpload=pending(), GetOperation=Code.INTERNAL)
    _, log = run(server)
    assert log[-3:] == [[[REPORT], [START_UPLOAD, "sleep 0.5", GET]], "forget", "sleep 0"]


@pytest.mark.parametrize("where", ["StartAggregationDataUpload", "upload", "submit"])
@pytest.mark.parametrize("code", [Code.ABORTED, Code.INTERNAL])
def test_refused_contributions(where, code):
    name = "SubmitAggregationResult" if where == "submit" else where
    server = Server(**{name: code})
    end, log = run(server)
    told = where == "upload" and code is Code.INTERNAL
    forgotten = code is Code.ABORTED or where == "StartAggregationDataUpload"
    after = {"StartAggregationDataUpload": -2, "upload": -1, "submit": len(CONTRIBUTION)}[where]
    assert log[3:] == [
        *CONTRIBUTION[:after], *[ABORT] * told, *["forget"] * forgotten, "sleep 0",
    ]  # fmt: skip
    assert end.outcome is Outcome.FAILED
    outcome = TaskOutcome.SUBMIT_FAILED if where == "submit" else TaskOutcome.UPLOAD_FAILED
    assert (end.tasks[0].outcome, end.tasks[0].error.code) == (outcome, code)
    if told:
        request = aggregations_pb2.AbortAggregationRequest.FromString(
            gzip.decompress(server.of(ABORT).body)
        )
        assert request.status.code == Code.INTERNAL


def test_a_failed_computation_is_only_reported():
    server = Server()
    server.computed = Computed(error=StatusError(Code.UNKNOWN, "x"))
    end, log = run(server)
    assert log[3:] == ["compute", REPORT, "sleep 0"]
    assert end.tasks[0].outcome is TaskOutcome.COMPUTATION_FAILED


@pytest.mark.parametrize("kind", ["confidential_aggregation_info", "willow_aggregation_info"])
def test_what_no_protocol_accepts_is_refused(kind):
    response = task_assignments_pb2.StartTaskAssignmentResponse()
    response.task_assignment.CopyFrom(assignment())
    getattr(response.task_assignment, kind).SetInParent()
    end, log = run(Server(StartTaskAssignment=done(response)))
    assert log == [CHECK_IN, START]
    assert end.error.code is Code.INVALID_ARGUMENT
