"""Long-running operations and interruption, against a scripted server."""

from __future__ import annotations

import threading

from fcp_core.client import CallableStore, Outcome
from fcp_core.protocol.protos import aggregations_pb2, task_assignments_pb2
from fcp_core.protocol.status import Code, StatusError

PERMANENT = (4 * 3600 * 0.8, 4 * 3600 * 1.2)
REJECTED = (1000, 2000)


def within(seconds, window):
    # The clock goes on between drawing the time and asking how far away it is.
    return window[0] - 60 <= seconds <= window[1]


def pending(server, interval=None):
    operation = server.Operation(name="operations/an operation")
    metadata = task_assignments_pb2.StartTaskAssignmentMetadata()
    if interval is not None:
        metadata.polling_interval.nanos = interval
    operation.metadata.Pack(metadata)
    return operation


def test_pending_operations_are_polled(server, query_plan, make_client):
    server.script_session(query_plan)
    happy = server.script[server.start]
    server.script[server.start] = pending(server, 1000)
    server.script[server.get_operation] = [pending(server), pending(server, 10), happy]
    assert make_client().run_once().outcome is Outcome.CONTRIBUTED
    polls = [r for r in server.requests if f"{r.method} {r.path}" == server.get_operation]
    assert len(polls) == 3
    for poll in polls:
        assert poll.headers["x-assign"] == "yes"
        assert poll.headers["x-goog-api-key"] == "a key"
        assert poll.raw == b""
        assert "content-encoding" not in poll.headers
    assert server.cancel_operation not in server.lines


def test_failed_poll_cancels_the_operation(server, make_client):
    server.script[server.eligibility] = server.eligibility_response()
    server.script[server.start] = pending(server, 1000)
    server.script[server.get_operation] = 500
    server.script[server.cancel_operation] = b""
    result = make_client().run_once()
    assert result.error.code is Code.INTERNAL
    assert within(result.retry_after, REJECTED)
    assert server.lines[2:] == [server.get_operation, server.cancel_operation]
    assert server.of(server.cancel_operation).raw == b""


def test_failed_operation_is_its_error(server, make_client):
    server.script[server.eligibility] = server.eligibility_response()
    server.script[server.start] = server.failed(Code.UNIMPLEMENTED)
    result = make_client().run_once()
    assert result.error.code is Code.UNIMPLEMENTED
    assert "as scripted" in str(result.error)
    assert within(result.retry_after, PERMANENT)


def test_operations_must_hold_what_was_asked_for(server, make_client):
    server.script[server.eligibility] = server.eligibility_response()
    server.script[server.start] = server.done(server.eligibility_response())
    assert make_client().run_once().error.code is Code.INVALID_ARGUMENT
    server.script[server.start] = server.Operation(name="operations/x", done=True)
    assert make_client().run_once().error.code is Code.INVALID_ARGUMENT
    server.script[server.start] = server.Operation(name="elsewhere/x")
    assert make_client().run_once().error.code is Code.INVALID_ARGUMENT


def test_interruption_cuts_a_request_off_and_cancels(server, make_client):
    polled, release = threading.Event(), threading.Event()

    def hang(request):
        polled.set()
        release.wait(60)
        return 500

    server.script[server.eligibility] = server.eligibility_response()
    server.script[server.start] = pending(server, 1)
    server.script[server.get_operation] = hang
    server.script[server.cancel_operation] = b""
    client = make_client()
    stopper = threading.Thread(target=lambda: (polled.wait(60), client.interrupt()))
    stopper.start()
    result = client.run_once()
    stopper.join()
    release.set()
    assert result.outcome is Outcome.FAILED
    assert result.error.code is Code.CANCELLED
    assert server.lines[-1] == server.cancel_operation
    assert list(client.run(5)) == []


def test_interruption_during_the_upload_aborts(server, query_plan, make_client):
    uploading, release = threading.Event(), threading.Event()

    def hang(request):
        uploading.set()
        release.wait(60)
        return 200

    server.script_session(query_plan)
    server.script[server.upload] = hang
    client = make_client()
    stopper = threading.Thread(target=lambda: (uploading.wait(60), client.interrupt()))
    stopper.start()
    result = client.run_once()
    stopper.join()
    release.set()
    assert result.error.code is Code.CANCELLED
    assert server.lines[-1] == server.abort
    request = aggregations_pb2.AbortAggregationRequest.FromString(server.of(server.abort).body)
    assert request.status.code == Code.CANCELLED


def test_interruption_of_a_computation_is_reported(server, query_plan, make_client):
    server.script_session(query_plan)
    clients = []

    def interrupting(query):
        clients[0].interrupt()
        raise StatusError(Code.CANCELLED, "interrupted")

    clients.append(make_client(stores=CallableStore(lambda selector: [], query=interrupting)))
    result = clients[0].run_once()
    assert result.error.code is Code.CANCELLED
    report = task_assignments_pb2.ReportTaskResultRequest.FromString(server.of(server.report).body)
    assert report.computation_status_code == Code.CANCELLED
