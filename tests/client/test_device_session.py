"""The session machine alone: what it asks for, in which order, without sockets or time."""

from __future__ import annotations

import gzip
import random

import pytest

from fcp_core.client import Outcome, TaskOutcome
from fcp_core.client.eligibility import Eligibility
from fcp_core.client.protocols import (
    CallStep,
    DeviceProtocol,
    PlanResults,
    Together,
    UploadStep,
)
from fcp_core.client.retry import RetrySchedule
from fcp_core.client.session import DeviceSettings, device_session
from fcp_core.client.steps import (
    Compute,
    Computed,
    Concurrently,
    Evaluate,
    Forget,
    Remember,
    Reply,
    Request,
    Sleep,
)
from fcp_core.protocol.protos import (
    aggregations_pb2,
    common_pb2,
    eligibility_eval_tasks_pb2,
    population_eligibility_spec_pb2,
    secure_aggregations_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.status import Code, StatusError

CHECK_IN = "EligibilityEvalTasks.RequestEligibilityEvalTask"
REPORT_ELIGIBILITY = "EligibilityEvalTasks.ReportEligibilityEvalTaskResult"
START = "TaskAssignments.StartTaskAssignment"
MULTIPLE = "TaskAssignments.PerformMultipleTaskAssignments"
REPORT = "TaskAssignments.ReportTaskResult"
GET, CANCEL = "Operations.GetOperation", "Operations.CancelOperation"
START_UPLOAD = "Aggregations.StartAggregationDataUpload"
SUBMIT, ABORT = "Aggregations.SubmitAggregationResult", "Aggregations.AbortAggregation"
BASE = "http://localhost:1"

CONTRIBUTION = ["compute", "remember task", [[REPORT], [START_UPLOAD]], "upload", SUBMIT]
PAYLOAD = [["download"], ["download"]]


class Server:
    """Answers steps; ``answers`` overrides what it says to requests, by their names."""

    def __init__(self, **answers) -> None:
        self.answers = answers
        self.eligibility = Eligibility({"task": 1.0}, (), may_start=True)
        self.computed = Computed(PlanResults(b"checkpoint"), seconds=1.5, separation_index=7)
        self.requests = []

    def perform(self, step):
        if isinstance(step, Compute):
            assert (step.plan, step.checkpoint) == (b"of /plan", b"of /checkpoint")
            return self.computed
        if isinstance(step, Evaluate):
            self.evaluated = step
            return self.eligibility
        if isinstance(step, Remember):
            return 99
        if isinstance(step, Forget):
            assert step.note == 99
        if not isinstance(step, Request):
            return None
        self.requests.append(step)
        answer = self.answers.get(step.name.rpartition(".")[2])
        if isinstance(answer, list):
            answer = answer.pop(0)
        if answer is None:
            answer = getattr(self, step.name.rpartition(".")[2])(step)
        if isinstance(answer, Code):
            raise StatusError(answer, "as the test says")
        return answer if isinstance(answer, Reply) else Reply(answer.SerializeToString())

    def of(self, name):
        (found,) = [request for request in self.requests if request.name == name]
        return found

    def download(self, request):
        path = request.url.removeprefix(BASE)
        return Reply(gzip.compress(b"of " + path.encode()), "application/x-protobuf+gzip")

    def upload(self, request):
        return Reply(b"")

    def RequestEligibilityEvalTask(self, request):
        response = eligibility_eval_tasks_pb2.EligibilityEvalTaskResponse(session_id="session")
        response.no_eligibility_eval_configured.SetInParent()
        response.task_assignment_forwarding_info.target_uri_prefix = f"{BASE}/assign"
        return response

    def StartTaskAssignment(self, request):
        response = task_assignments_pb2.StartTaskAssignmentResponse()
        response.task_assignment.CopyFrom(assignment())
        return done(response)

    def StartAggregationDataUpload(self, request):
        response = aggregations_pb2.StartAggregationDataUploadResponse(client_token="token")
        response.resource.resource_name = "some name"
        response.resource.data_upload_forwarding_info.target_uri_prefix = f"{BASE}/bytes"
        response.aggregation_protocol_forwarding_info.target_uri_prefix = f"{BASE}/aggregate"
        return done(response)

    def anything(self, request):
        return Reply(b"")

    ReportTaskResult = ReportEligibilityEvalTaskResult = CancelOperation = anything
    SubmitAggregationResult = AbortAggregation = anything


def done(response):
    operation = longrunning.Operation(name="operations/x", done=True)
    operation.response.Pack(response)
    return operation


def pending(metadata=None):
    operation = longrunning.Operation(name="operations/x")
    if metadata is not None:
        operation.metadata.Pack(metadata)
    return operation


def assignment(name="task"):
    task = task_assignments_pb2.TaskAssignment(
        session_id="task session",
        authorization_token="authorization",
        aggregation_id="aggregation",
        task_name=name,
    )
    task.aggregation_data_forwarding_info.target_uri_prefix = f"{BASE}/data"
    task.plan.uri, task.init_checkpoint.uri = f"{BASE}/plan", f"{BASE}/checkpoint"
    return task


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


def play(part, server, log):
    """Carry a part out; write down its steps, those of one time as lists in a list."""
    try:
        step = next(part)
        while True:
            try:
                if isinstance(step, Concurrently):
                    logs = [[] for _ in step.parts]
                    log.append(logs)
                    answer = play_all(step.parts, server, logs)
                else:
                    log.append(name_of(step))
                    answer = server.perform(step)
            except StatusError as error:
                step = part.throw(error)
            else:
                step = part.send(answer)
    except StopIteration as end:
        return end.value


def play_all(parts, server, logs):
    answers, errors = [], []
    for part, log in zip(parts, logs, strict=True):
        try:
            answers.append(play(part, server, log))
        except StatusError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return answers


def name_of(step):
    if isinstance(step, Request):
        return step.name
    if isinstance(step, Sleep):
        return f"sleep {step.seconds:g}"
    kind = type(step).__name__.lower()
    return f"{kind} {step.task_name}" if isinstance(step, Remember) else kind


def run(server, **settings):
    schedule = RetrySchedule(lambda: 0.0, random.Random(1))
    log = []
    settings = DeviceSettings(BASE, "people", api_key="key", **settings)
    return play(device_session(settings, schedule), server, log), log


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


# Protocols of plugins.


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
