"""What a session makes of servers that refuse, fail or send what is no answer."""

from __future__ import annotations

import gzip
import sys

import pytest

from fcp_core.client import CallableStore, Outcome, RetryPolicy, TaskOutcome
from fcp_core.protocol.protos import (
    aggregations_pb2,
    task_assignments_pb2,
    tensorflow_struct_pb2,
)
from fcp_core.protocol.status import Code, StatusError
from tests.client.scripts import ACCEPTED, PERMANENT, within

REJECTED = (1000, 2000)


def test_rejected_at_check_in(server, make_client):
    response = server.eligibility_response()
    response.rejection_info.SetInParent()
    server.script[server.eligibility] = response
    result = make_client().run_once()
    assert result.outcome is Outcome.REJECTED
    assert within(result.retry_after, REJECTED)
    assert server.lines == [server.eligibility]


def test_rejected_at_assignment(server, make_client):
    server.script[server.eligibility] = server.eligibility_response()
    server.script[server.start] = server.done(server.rejected())
    result = make_client().run_once()
    assert result.outcome is Outcome.REJECTED
    assert within(result.retry_after, REJECTED)


@pytest.mark.parametrize(
    ("status", "code", "window"),
    [
        (404, Code.NOT_FOUND, PERMANENT),
        (400, Code.INVALID_ARGUMENT, PERMANENT),
        (501, Code.UNIMPLEMENTED, PERMANENT),
        (401, Code.UNAUTHENTICATED, (900 * 0.8, 900 * 1.2)),
        (302, Code.UNKNOWN, (900 * 0.8, 900 * 1.2)),
        (500, Code.INTERNAL, (900 * 0.8, 900 * 1.2)),
    ],
)
def test_check_in_that_fails(server, make_client, status, code, window):
    server.script[server.eligibility] = server.Answer(b"not read", status)
    result = make_client().run_once()
    assert result.outcome is Outcome.FAILED
    assert result.error.code is code
    assert within(result.retry_after, window)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda response: response.ClearField("no_eligibility_eval_configured"),
        lambda response: response.ClearField("task_assignment_forwarding_info"),
    ],
)
def test_malformed_check_in_response(server, make_client, spoil):
    response = server.eligibility_response()
    spoil(response)
    server.script[server.eligibility] = response
    result = make_client().run_once()
    assert result.error.code is Code.INVALID_ARGUMENT
    assert within(result.retry_after, PERMANENT)


def test_body_that_is_no_message(server, make_client):
    server.script[server.eligibility] = b"\xff\xff\xff"
    assert make_client().run_once().error.code is Code.INVALID_ARGUMENT


def test_unknown_content_encoding_is_refused(server, make_client):
    body = server.eligibility_response().SerializeToString()
    server.script[server.eligibility] = server.Answer(body, headers={"Content-Encoding": "br"})
    assert make_client().run_once().error.code is Code.INVALID_ARGUMENT


def test_gzip_responses_are_decoded(server, make_client):
    body = gzip.compress(server.eligibility_response().SerializeToString())
    server.script[server.eligibility] = server.Answer(body, headers={"Content-Encoding": "gzip"})
    server.script[server.start] = server.done(server.rejected())
    assert make_client().run_once().outcome is Outcome.REJECTED


def test_transient_failure_after_check_in_uses_the_servers_window(server, make_client):
    server.script[server.eligibility] = server.eligibility_response()
    server.script[server.start] = 409
    result = make_client().run_once()
    assert result.error.code is Code.ABORTED
    assert within(result.retry_after, REJECTED)


def test_unavailable_is_tried_three_times(server, query_plan, make_client):
    server.script_session(query_plan)
    happy = server.script[server.start]
    server.script[server.start] = [503, 503, happy]
    assert make_client().run_once().outcome is Outcome.CONTRIBUTED
    assert server.lines.count(server.start) == 3

    server.requests.clear()
    server.script[server.start] = 503
    assert make_client().run_once().error.code is Code.UNAVAILABLE
    assert server.lines.count(server.start) == 3

    server.requests.clear()
    make_client(retry=RetryPolicy(attempts=1)).run_once()
    assert server.lines.count(server.start) == 1


def test_other_codes_are_not_tried_again(server, make_client):
    server.script[server.eligibility] = 504
    assert make_client().run_once().error.code is Code.DEADLINE_EXCEEDED
    assert len(server.requests) == 1


def test_nobody_listens(server, make_client):
    server.close()
    client = make_client()
    result = client.run_once()
    assert result.error.code is Code.UNAVAILABLE
    assert within(result.retry_after, (900 * 0.8, 900 * 1.2))


def test_report_failures_change_nothing(server, query_plan, make_client):
    server.script_session(query_plan)
    server.script[server.report] = 503
    assert make_client().run_once().outcome is Outcome.CONTRIBUTED
    assert server.lines.count(server.report) == 1


@pytest.mark.parametrize("answer", [404, 409, "operation"])
def test_upload_that_cannot_start(server, query_plan, make_client, answer):
    server.script_session(query_plan)
    server.script[server.start_upload] = (
        server.failed(Code.ABORTED) if answer == "operation" else answer
    )
    result = make_client().run_once()
    assert result.outcome is Outcome.FAILED
    assert result.tasks[0].outcome is TaskOutcome.UPLOAD_FAILED
    assert within(result.retry_after, PERMANENT)
    assert sorted(server.lines[2:]) == sorted([server.report, server.start_upload])


@pytest.mark.parametrize(("status", "aborts"), [(409, False), (500, True), (404, True)])
def test_upload_that_fails(server, query_plan, make_client, status, aborts):
    server.script_session(query_plan)
    server.script[server.upload] = status
    result = make_client().run_once()
    assert result.tasks[0].outcome is TaskOutcome.UPLOAD_FAILED
    assert within(result.retry_after, PERMANENT)
    assert server.submit not in server.lines
    assert (server.abort in server.lines) is aborts
    if aborts:
        request = aggregations_pb2.AbortAggregationRequest.FromString(server.of(server.abort).body)
        assert request.status.code == result.tasks[0].error.code
        assert request.status.message
        assert server.of(server.abort).headers["x-aggregate"] == "yes"


def test_submit_that_fails(server, query_plan, make_client):
    server.script_session(query_plan)
    server.script[server.submit] = 404
    result = make_client().run_once()
    assert result.outcome is Outcome.FAILED
    assert result.tasks[0].outcome is TaskOutcome.SUBMIT_FAILED
    assert within(result.retry_after, ACCEPTED)
    assert server.abort not in server.lines


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda plan: plan.phase.ClearField("example_query_spec"), Code.INTERNAL),
        (
            lambda plan: setattr(
                plan.phase.example_query_spec.example_queries[0].example_selector,
                "collection_uri",
                "app:/unknown",
            ),
            Code.INTERNAL,
        ),
        (
            lambda plan: setattr(
                plan.phase.example_query_spec.example_queries[0], "min_output_row_count", 2
            ),
            Code.FAILED_PRECONDITION,
        ),
    ],
)
def test_failed_computations_are_reported(server, query_plan, make_client, spoil, code):
    spoil(query_plan)
    server.script_session(query_plan)
    result = make_client().run_once()
    assert result.outcome is Outcome.FAILED
    assert result.tasks[0].outcome is TaskOutcome.COMPUTATION_FAILED
    assert within(result.retry_after, ACCEPTED)
    assert server.lines == [server.eligibility, server.start, server.report]
    report = task_assignments_pb2.ReportTaskResultRequest.FromString(server.of(server.report).body)
    assert report.computation_status_code == code
    assert (report.task_name, report.aggregation_id) == ("task", "aggregation/1")


def test_a_plan_that_is_no_message_is_a_failed_computation(server, query_plan, make_client):
    server.script_session(query_plan)
    assigned = server.assigned(query_plan)
    assigned.task_assignment.plan.inline_resource.data = b"\xff\xff"
    server.script[server.start] = server.done(assigned)
    result = make_client().run_once()
    assert result.tasks[0].outcome is TaskOutcome.COMPUTATION_FAILED
    assert server.lines[-1] == server.report


def test_a_faulty_store_does_not_take_down_the_device(server, query_plan, make_client):
    def fail(query):
        raise ZeroDivisionError("oops")

    server.script_session(query_plan)
    store = CallableStore(lambda selector: [], query=fail)
    result = make_client(stores=store).run_once()
    assert result.tasks[0].outcome is TaskOutcome.COMPUTATION_FAILED
    assert "oops" in str(result.tasks[0].error)
    assert server.lines[-1] == server.report


def test_a_tensorflow_plan_without_tensorflow(server, query_plan, make_client, monkeypatch):
    query_plan.graph = b"a graph that was never imported"
    query_plan.phase.tensorflow_spec.SetInParent()
    router = query_plan.phase.federated_compute
    router.output_filepath_tensor_name = "output:0"
    name = tensorflow_struct_pb2.TensorSpecProto(name="output:0").SerializeToString()
    query_plan.phase.tensorflow_spec.input_tensor_specs.append(name)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    server.script_session(query_plan)
    (task,) = make_client().run_once().tasks
    assert task.error.code is Code.UNIMPLEMENTED
    assert "fcp-server[tff]" in str(task.error)
    assert server.lines[-1] == server.report


def test_run_goes_on_after_failures(server, query_plan, make_client):
    server.script_session(query_plan)
    server.script[server.eligibility] = [500, server.eligibility_response()]
    results = list(make_client().run(3, sleep=0))
    assert [result.outcome for result in results] == [
        Outcome.FAILED,
        Outcome.CONTRIBUTED,
        Outcome.CONTRIBUTED,
    ]


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (
            StatusError(Code.NOT_FOUND, "no \x1b[31mred\nend").to_proto(),
            "application/x-protobuf",
            ": no ?[31mred?end",
        ),
        (
            StatusError(Code.NOT_FOUND, "x" * 2000).to_proto(),
            "application/x-protobuf",
            ": " + "x" * 300,
        ),
        (StatusError(Code.NOT_FOUND, "x" * 5000).to_proto(), "application/x-protobuf", ""),
        (b"\xff" * 9, "application/x-protobuf", ""),
        (b"<html>", "text/html", ""),
    ],
)
def test_the_words_of_a_refusal_are_shown(server, make_client, body, kind, words):
    data = body if isinstance(body, bytes) else body.SerializeToString()
    server.script[server.eligibility] = server.Answer(
        data, status=404, headers={"Content-Type": kind}
    )
    error = make_client().run_once().error
    assert error.code is Code.NOT_FOUND
    assert error.message.endswith(f" answered HTTP 404{words}")
