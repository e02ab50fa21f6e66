"""What a server may use of a device: bytes, time; and what the history keeps of it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import socket
import threading
import tracemalloc

import pytest

from fcp_core.client import CallableStore, History, Limits, make_query_result
from fcp_core.client.executors import SliceSource
from fcp_core.client.interruption import Interruption
from fcp_core.client.limits import gunzip
from fcp_core.client.recording import Recorder
from fcp_core.client.results import TaskOutcome, TaskResult
from fcp_core.client.steps import Request
from fcp_core.client.stores import EmptyExamplesStore
from fcp_core.client.transport import RetryPolicy, Transport
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import common_pb2, plan_pb2
from fcp_core.protocol.status import Code, StatusError


def test_gunzip_holds_no_more_than_the_limit():
    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(StatusError) as caught:
            gunzip(bomb, "it", 16 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert peak < 24 << 20


def test_gunzip_needs_little_more_than_the_content():
    packed = gzip.compress(bytes(16 << 20)) + gzip.compress(b"more")
    tracemalloc.start()
    try:
        assert len(gunzip(packed, "it", 17 << 20)) == (16 << 20) + 4
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20


def test_gunzip_reads_what_the_standard_library_does():
    one, two = gzip.compress(b"ab"), gzip.compress(b"c")
    assert gunzip(one, "it", 2) == b"ab"
    assert gunzip(one + two + bytes(5), "it", 3) == b"abc"
    for data, limit, code in (
        (one + two, 2, Code.RESOURCE_EXHAUSTED),
        (one[:-1], 9, Code.INVALID_ARGUMENT),
        (one + b"x", 9, Code.INVALID_ARGUMENT),
        (b"", 9, Code.INVALID_ARGUMENT),
        (b"plain", 9, Code.INVALID_ARGUMENT),
    ):
        with pytest.raises(StatusError) as caught:
            gunzip(data, "it", limit)
        assert caught.value.code is code


@contextlib.contextmanager
def endless(head, piece):
    """A server that answers each request with *head*, and then *piece* for ever."""
    listener = socket.create_server(("localhost", 0))
    stopped = threading.Event()

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(head)
                while not stopped.is_set():
                    connection.sendall(piece) if piece else stopped.wait(60)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://localhost:{listener.getsockname()[1]}/x"
    finally:
        stopped.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 1000),
        (OK + b"Connection: close\r\n\r\n", b"x" * 5000),
        (OK + b"Content-Length: 99999999999\r\n\r\n", b"x" * 5000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
    ids=["chunked", "trailer", "to the end", "long", "continue"],
)
def test_an_endless_answer_is_given_up(head, piece):
    with endless(head, piece) as url:
        transport = Transport(limits=Limits(answer_bytes=1 << 20), retry=RetryPolicy(delay=0))
        with pytest.raises(StatusError) as caught:
            transport.send(Request("download", "GET", url))
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        transport.close()


@pytest.mark.parametrize("head", [b"", OK, OK + b"Content-Length: 9\r\n\r\n"])
def test_a_slow_answer_is_given_up(head):
    """However often a byte comes: here none does, and the time between two may be long."""
    with endless(head, b"") as url:
        transport = Transport(limits=Limits(answer_seconds=0.2), timeout=600)
        with pytest.raises(StatusError) as caught:
            transport.send(Request("download", "GET", url))
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        transport.close()


LIMITS = Limits(answer_bytes=1 << 20, content_bytes=1 << 20)


def outcome(server, make_client):
    result = make_client(limits=LIMITS).run_once()
    assert result.error is not None
    return result.error.code


def test_resources_are_limited_however_they_come(server, query_plan, make_client):
    server.script_session(query_plan)
    bomb = gzip.compress(bytes(2 << 20))
    twice = gzip.compress(16 * gzip.compress(bytes(16 << 20)))

    def assigned(change):
        response = server.assigned(query_plan)
        change(response.task_assignment.plan)
        server.script[server.start] = server.done(response)

    def inline(plan):
        plan.inline_resource.data = bomb
        plan.inline_resource.compression_format = common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP

    def fetched(plan):
        plan.uri = f"{server.url}/plan"

    assigned(inline)
    assert outcome(server, make_client) is Code.RESOURCE_EXHAUSTED
    assigned(fetched)
    for answer in (
        server.Answer(bomb, headers={"Content-Encoding": "gzip"}),
        server.Answer(bomb, headers={"Content-Type": "application/octet-stream+gzip"}),
        # Twice compressed: each is undone within the limit.
        server.Answer(
            twice,
            headers={"Content-Encoding": "gzip", "Content-Type": "application/x+gzip"},
        ),
        server.Answer(bytes(2 << 20)),
    ):
        server.script["GET /plan"] = answer
        assert outcome(server, make_client) is Code.RESOURCE_EXHAUSTED


def test_slices_share_one_limit(server):
    transport = Transport(limits=LIMITS)
    for key in range(3):
        server.script[f"GET /slices/{key}"] = bytes(400 << 10)
    source = SliceSource(transport.download_all, f"{server.url}/slices/{{key_base10}}")
    assert len(list(source.slices(plan_pb2.SlicesSelector(keys=[0, 1])))) == 2
    with pytest.raises(StatusError) as caught:
        source.slices(plan_pb2.SlicesSelector(keys=[0, 1, 2]))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    transport.close()


def test_limits_are_limits():
    with pytest.raises(UsageError, match="plan_seconds"):
        Limits(plan_seconds=0)


def test_a_store_without_end_holds_a_query_no_longer_than_its_time(server, query_plan, make_client):
    query = query_plan.phase.example_query_spec.example_queries[0]
    query.ClearField("output_vector_specs")
    query.direct_output_tensor_name = "x"
    server.script_session(query_plan)

    def examples(selector):
        while True:
            yield b""

    client = make_client(
        stores={"app:/values": CallableStore(examples)}, limits=Limits(plan_seconds=0.1)
    )
    (task,) = client.run_once().tasks
    assert task.error.code is Code.DEADLINE_EXCEEDED
    assert "the plan took more than 0.1 s" in task.error.message


def test_a_time_limit_is_no_interruption_of_the_client():
    whole = Interruption()
    with whole.limited(1e-3, "it") as inner, pytest.raises(StatusError) as caught:
        inner.wait(60)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    whole.check()
    with whole.limited(60, "it") as inner:
        whole.request()
        with pytest.raises(StatusError) as caught:
            inner.check()
    assert caught.value.code is Code.CANCELLED


# --- the history ---------------------------------------------------------------------------------


def test_the_history_shows_what_ran(server, query_plan, make_client, tmp_path):
    server.script_session(query_plan)
    history = History(tmp_path / "history")
    assert make_client(history=history, session="s").run_once().error is None
    server.script[server.submit] = 403
    make_client(history=history).run_once()
    server.script[server.submit] = b""
    broken = CallableStore(lambda _: (), query=lambda _: make_query_result({"other": [1]}))
    make_client(history=history, stores={"app:/values": broken}).run_once()
    history.close()

    history = History(tmp_path / "history")
    first, second, third = history.runs()
    history.close()
    assert (first.population, first.task_name, first.session) == (server.population, "task", "s")
    assert first.plan_sha256 == hashlib.sha256(query_plan.SerializeToString()).hexdigest()
    assert first.collections == second.collections == third.collections == ("app:/values",)
    assert first.outcome == "contributed"
    assert second.outcome.startswith("submit failed: ")
    assert third.outcome.startswith("computation failed: ")


def test_a_run_that_kills_the_device_is_in_the_history_too():
    history = History(":memory:")
    history.begin_run("p", "t", 5.0, b"plan")
    (run,) = history.runs()
    assert (run.outcome, run.time, run.collections) == ("began", 5.0, ())
    history.close()


def test_runs_of_one_name_are_told_apart():
    history = History(":memory:")
    recorder = Recorder("p", history, "", lambda: 0.0)
    for _ in range(2):
        with recorder.run("t", b"", EmptyExamplesStore(0)):
            pass
    outcomes = (TaskOutcome.CONTRIBUTED, TaskOutcome.UPLOAD_FAILED)
    recorder.close_session([TaskResult("t", "a", outcome) for outcome in outcomes])
    assert [run.outcome for run in history.runs()] == ["contributed", "upload failed"]
    history.close()
