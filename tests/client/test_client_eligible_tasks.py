"""Several tasks, eligibility and the memory of contributions, against a scripted server."""

from __future__ import annotations

import threading

import pytest

from fcp_core.client import History, Outcome, TaskOutcome
from fcp_core.protocol.protos import (
    eligibility_eval_tasks_pb2,
    population_eligibility_spec_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code

SPEC = population_eligibility_spec_pb2.PopulationEligibilitySpec
SINGLE = SPEC.TaskInfo.TASK_ASSIGNMENT_MODE_SINGLE
MULTIPLE = SPEC.TaskInfo.TASK_ASSIGNMENT_MODE_MULTIPLE
PERMANENT = (4 * 3600 * 0.8, 4 * 3600 * 1.2)
ACCEPTED = (100, 200)
REJECTED = (1000, 2000)


def within(seconds, window):
    # The clock goes on between drawing the time and asking how far away it is.
    return window[0] - 60 <= seconds <= window[1]


def with_spec(server, spec, *, by_uri=False):
    response = server.eligibility_response()
    resource = response.eligibility_eval_task.population_eligibility_spec
    if by_uri:
        resource.uri = f"{server.url}/spec"
        server.script["GET /spec"] = spec
    else:
        resource.inline_resource.data = spec.SerializeToString()
    server.script[server.eligibility] = response
    server.script[server.eligibility_report] = b""


def multiple_response(server, plan, *names):
    response = task_assignments_pb2.PerformMultipleTaskAssignmentsResponse()
    for name in names:
        response.task_assignments.add().CopyFrom(server.assignment(plan, name))
    return response


def test_multiple_assignment_runs_one_task_after_another(server, query_plan, make_client):
    server.script_session(query_plan)
    spec = SPEC()
    spec.task_info.add(task_name="a", task_assignment_mode=MULTIPLE)
    spec.task_info.add(task_name="b", task_assignment_mode=MULTIPLE)
    with_spec(server, spec, by_uri=True)
    response = multiple_response(server, query_plan, "a", "b", "unasked")
    server.script[server.multiple] = response
    result = make_client(client_version="v2").run_once()
    assert result.outcome is Outcome.CONTRIBUTED
    assert [task.task_name for task in result.tasks] == ["a", "b"]
    assert within(result.retry_after, ACCEPTED)
    request = task_assignments_pb2.PerformMultipleTaskAssignmentsRequest.FromString(
        server.of(server.multiple).body
    )
    assert request.task_names == ["a", "b"]
    assert request.client_version.version_code == "v2"
    assert request.resource_capabilities.supported_compression_formats
    # No policies: nothing was evaluated. No single task: nothing is started.
    assert server.eligibility_report not in server.lines
    assert server.start not in server.lines
    assert [line for line in server.lines if line in (server.upload, server.submit)] == [
        server.upload,
        server.submit,
    ] * 2


def test_tasks_of_both_modes(server, query_plan, make_client):
    server.script_session(query_plan)
    spec = SPEC()
    spec.task_info.add(task_name="a", task_assignment_mode=MULTIPLE)
    spec.task_info.add(task_name="task", task_assignment_mode=SINGLE)
    with_spec(server, spec)
    server.script[server.multiple] = multiple_response(server, query_plan, "a")
    result = make_client().run_once()
    assert [task.task_name for task in result.tasks] == ["a", "task"]
    start = task_assignments_pb2.StartTaskAssignmentRequest.FromString(server.of(server.start).body)
    assert not start.HasField("task_eligibility_info")


def test_a_bad_assignment_drops_that_task_only(server, query_plan, make_client):
    server.script_session(query_plan)
    spec = SPEC()
    for name in ("a", "b", "c"):
        spec.task_info.add(task_name=name, task_assignment_mode=MULTIPLE)
    with_spec(server, spec)
    response = multiple_response(server, query_plan, "a", "b", "c")
    response.task_assignments[0].plan.uri = f"{server.url}/missing"
    response.task_assignments[1].ClearField("aggregation_data_forwarding_info")
    server.script[server.multiple] = response
    result = make_client().run_once()
    assert result.outcome is Outcome.CONTRIBUTED
    assert [task.task_name for task in result.tasks] == ["c"]
    assert result.error.code is Code.INVALID_ARGUMENT


def test_all_payloads_are_fetched_at_once(server, query_plan, make_client):
    server.script_session(query_plan)
    spec = SPEC()
    response = multiple_response(server, query_plan, "a", "b")
    barrier = threading.Barrier(4)

    def file(content):
        def serve(request):
            barrier.wait(60)  # nobody is answered before all are there
            return content

        return serve

    for task in response.task_assignments:
        name = task.task_name
        spec.task_info.add(task_name=name, task_assignment_mode=MULTIPLE)
        task.plan.uri = f"{server.url}/{name}/plan"
        task.init_checkpoint.uri = f"{server.url}/{name}/checkpoint"
        server.script[f"GET /{name}/plan"] = file(query_plan.SerializeToString())
        server.script[f"GET /{name}/checkpoint"] = file(b"")
    with_spec(server, spec)
    server.script[server.multiple] = response
    result = make_client().run_once()
    assert [task.outcome for task in result.tasks] == [TaskOutcome.CONTRIBUTED] * 2


def test_one_of_several_uploads_fails(server, query_plan, make_client):
    server.script_session(query_plan)
    spec = SPEC()
    for name in ("a", "b"):
        spec.task_info.add(task_name=name, task_assignment_mode=MULTIPLE)
    with_spec(server, spec)
    server.script[server.multiple] = multiple_response(server, query_plan, "a", "b")
    server.script[server.upload] = [500, b""]
    result = make_client().run_once()
    assert [task.outcome for task in result.tasks] == [
        TaskOutcome.UPLOAD_FAILED,
        TaskOutcome.CONTRIBUTED,
    ]
    assert within(result.retry_after, REJECTED)


def test_no_multiple_task_available(server, make_client):
    spec = SPEC()
    spec.task_info.add(task_name="a", task_assignment_mode=MULTIPLE)
    with_spec(server, spec)
    server.script[server.multiple] = b""
    result = make_client().run_once()
    assert result.outcome is Outcome.NO_TASK
    assert within(result.retry_after, REJECTED)


@pytest.mark.parametrize(("status", "window"), [(404, PERMANENT), (409, REJECTED)])
def test_multiple_assignment_that_fails(server, make_client, status, window):
    spec = SPEC()
    spec.task_info.add(task_name="a", task_assignment_mode=MULTIPLE)
    with_spec(server, spec)
    server.script[server.multiple] = status
    result = make_client().run_once()
    assert result.outcome is Outcome.FAILED
    assert within(result.retry_after, window)


@pytest.mark.parametrize("by_uri", [True, False])
def test_empty_spec_starts_nothing(server, make_client, by_uri):
    with_spec(server, SPEC(), by_uri=by_uri)
    result = make_client().run_once()
    assert result.outcome is Outcome.NO_TASK
    assert server.start not in server.lines


def test_eligibility_without_a_spec_is_no_eligibility(server, make_client):
    response = server.eligibility_response()
    response.eligibility_eval_task.SetInParent()
    server.script[server.eligibility] = response
    server.script[server.start] = server.done(server.rejected())
    assert make_client().run_once().outcome is Outcome.REJECTED
    assert server.lines == [server.eligibility, server.start]


def test_an_eligibility_plan_that_cannot_be_run_is_reported(server, make_client):
    response = server.eligibility_response()
    response.eligibility_eval_task.plan.inline_resource.data = b"a plan"
    response.eligibility_eval_task.init_checkpoint.inline_resource.data = b"its input"
    server.script[server.eligibility] = response
    server.script[server.eligibility_report] = b""
    assert make_client().run_once().error.code is Code.INVALID_ARGUMENT
    assert server.lines == [server.eligibility, server.eligibility_report]


def eligibility_spec():
    """Three single tasks and two multiple ones; policies that this device passes and fails."""
    spec = SPEC()
    enough = spec.eligibility_policies.add(name="enough", min_version=1)
    enough.data_availability_policy.selector.collection_uri = "app:/values"
    enough.data_availability_policy.min_example_count = 2
    more = spec.eligibility_policies.add(name="more", min_version=1)
    more.data_availability_policy.selector.collection_uri = "app:/values"
    more.data_availability_policy.min_example_count = 3
    custom = spec.eligibility_policies.add(name="custom", min_version=1)
    custom.tf_custom_policy.arguments = b"?"
    for name, mode, policies in (
        ("task", SINGLE, [0]),
        ("poor", SINGLE, [0, 1]),
        ("unknown", SINGLE, [2]),
        ("many", MULTIPLE, [0]),
        ("none", MULTIPLE, [1]),
    ):
        info = spec.task_info.add(task_name=name, task_assignment_mode=mode)
        info.eligibility_policy_indices.extend(policies)
    return spec


def test_policies_choose_the_tasks(server, query_plan, make_client):
    server.script_session(query_plan)
    with_spec(server, eligibility_spec())
    server.script[server.multiple] = multiple_response(server, query_plan, "many")
    result = make_client().run_once()
    assert [task.task_name for task in result.tasks] == ["many", "task"]
    request = task_assignments_pb2.PerformMultipleTaskAssignmentsRequest.FromString(
        server.of(server.multiple).body
    )
    assert request.task_names == ["many"]
    start = task_assignments_pb2.StartTaskAssignmentRequest.FromString(server.of(server.start).body)
    weights = {w.task_name: w.weight for w in start.task_eligibility_info.task_weights}
    assert weights == {"task": 1, "poor": 0, "unknown": 0, "none": 0}
    assert start.task_eligibility_info.version == 1
    # The report goes out once, beside the first request for tasks, to the entry point.
    report = server.of(server.eligibility_report)
    assert {name for name in report.headers if name.startswith("x-")} == {"x-goog-api-key"}
    message = eligibility_eval_tasks_pb2.ReportEligibilityEvalTaskResultRequest
    assert message.FromString(report.body).status_code == 0
    position = server.lines.index(server.eligibility_report)
    assert abs(position - server.lines.index(server.multiple)) == 1


def test_eligibility_report_beside_start(server, query_plan, make_client):
    server.script_session(query_plan)
    spec = eligibility_spec()
    del spec.task_info[3:]
    with_spec(server, spec)
    make_client().run_once()
    assert sorted(server.lines[1:3]) == sorted([server.eligibility_report, server.start])


def test_spec_that_cannot_be_read_is_reported(server, make_client):
    with_spec(server, SPEC())
    response = server.script[server.eligibility]
    response.eligibility_eval_task.population_eligibility_spec.inline_resource.data = b"\xff"
    result = make_client().run_once()
    assert result.error.code is Code.INVALID_ARGUMENT
    assert server.lines == [server.eligibility, server.eligibility_report]
    message = eligibility_eval_tasks_pb2.ReportEligibilityEvalTaskResultRequest
    report = message.FromString(server.of(server.eligibility_report).body)
    assert report.status_code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("line", "answer", "remembered"),
    [
        (None, None, True),
        ("start_upload", 409, False),
        ("upload", 409, False),
        ("submit", 409, False),
        # Whether it counted is unknown.
        ("submit", 500, True),
    ],
)
def test_contributions_are_remembered(
    server, query_plan, make_client, tmp_path, line, answer, remembered
):
    query_plan.client_persisted_data.min_sep_policy_index = 12
    server.script_session(query_plan)
    if line is not None:
        server.script[getattr(server, line)] = answer
    history = History(tmp_path / "history.sqlite")
    make_client(history=history).run_once()
    index = history.last_separation_index(server.population, "task")
    assert index == (12 if remembered else None)
    history.close()
