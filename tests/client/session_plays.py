"""A server that answers by the script, and a session played against it."""

from __future__ import annotations

import gzip
import random

from fcp_core.client.eligibility import Eligibility
from fcp_core.client.protocols import PlanResults
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
    eligibility_eval_tasks_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.status import Code, StatusError

REPORT = "TaskAssignments.ReportTaskResult"
GET, CANCEL = "Operations.GetOperation", "Operations.CancelOperation"
START_UPLOAD = "Aggregations.StartAggregationDataUpload"
SUBMIT, ABORT = "Aggregations.SubmitAggregationResult", "Aggregations.AbortAggregation"
BASE = "http://localhost:1"

CONTRIBUTION = ["compute", "remember task", [[REPORT], [START_UPLOAD]], "upload", SUBMIT]


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
