"""Spans of events, in memory and at a receiver of OTLP that takes real requests."""

import asyncio
import gzip
import http.server
import threading

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code
from fcp_core.rounds.events import (
    Assigned,
    CheckedIn,
    Committed,
    Contributed,
    Dropped,
    Rejected,
    Surplus,
    TaskClosed,
    TaskOpened,
)
from fcp_otel import plugin as plugin_module
from fcp_otel.plugin import TracesPlugin

OPENED = TaskOpened(100.0, "phones", "id", "train", 3)
CHECKED_IN = CheckedIn(101.0, "phones", "session-1", ("train",))
ASSIGNED = Assigned(102.0, "phones", "session-1", "id", "train")
CONTRIBUTED = Contributed(110.0, "phones", "session-1", "id", "train", 4000, 8.0, 2.0, 0.5)
COMMITTED = Committed(109.9, "phones", "id", "train", 7, 8000, 0.25)
CLOSED = TaskClosed(120.0, "phones", "id", "train", 1, Code.OK)


@pytest.fixture
def environ(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def run(events, plugin=None, **options):
    """Notify a server's plugin of events, and return the spans by name."""
    exporter = InMemorySpanExporter()
    plugin = plugin or TracesPlugin(SimpleSpanProcessor(exporter))
    overrides = {f"otel.{name}": value for name, value in options.items()}
    plugins = Plugins.load(environ={}, overrides=overrides, extra=[plugin])

    async def serve():
        await plugins.startup()
        for event in events:
            plugins.notify(event)
        finished = exporter.get_finished_spans()
        await plugins.shutdown()
        return finished, exporter.get_finished_spans()

    before, after = asyncio.run(serve())
    return {span.name: span for span in before}, after


def test_a_session_is_one_trace_from_the_check_in_to_the_contribution(environ):
    spans, _ = run([OPENED, CHECKED_IN, ASSIGNED, COMMITTED, CONTRIBUTED, CLOSED])
    times = {name: (s.start_time / 1e9, s.end_time / 1e9) for name, s in spans.items()}
    assert times == {
        "task": (100, 120),
        "session": (101, 110),
        "assignment": (102, 110),
        "upload": (107.5, 109.5),
        "fold": (109.5, 110),
        "commit": (109.65, 109.9),
    }
    session, assignment = spans["session"], spans["assignment"]
    assert session.parent is None
    assert assignment.parent.span_id == session.context.span_id
    assert spans["upload"].parent.span_id == assignment.context.span_id
    assert spans["fold"].parent.span_id == assignment.context.span_id
    assert spans["commit"].parent.span_id == spans["fold"].context.span_id
    assert spans["commit"].attributes == {"fcp.contributions": 7, "fcp.size": 8000}
    assert {s.context.trace_id for n, s in spans.items() if n != "task"} == {
        session.context.trace_id
    }
    (link,) = assignment.links
    assert link.context.span_id == spans["task"].context.span_id
    assert assignment.attributes["fcp.size"] == 4000
    assert assignment.attributes["fcp.task"] == spans["task"].attributes["fcp.task"] == "train"
    assert session.attributes["fcp.outcome"] == "contributed"
    assert "session-1" not in str(session.attributes)
    assert session.status.status_code is StatusCode.OK
    assert spans["task"].attributes["fcp.contributed"] == 1
    assert session.resource.attributes["service.name"] == "fcp-server"


def test_devices_that_do_not_contribute_say_why(environ):
    spans, _ = run([CHECKED_IN, Rejected(103.0, "phones", "session-1", "no_task")])
    assert spans["session"].attributes["fcp.reason"] == "no_task"
    lost = Dropped(
        105.0, "phones", "session-1", "id", "train", "upload", Code.ABORTED, "a text of a device"
    )
    spans, _ = run([CHECKED_IN, ASSIGNED, lost])
    assert spans["assignment"].status.status_code is StatusCode.ERROR
    assert spans["assignment"].status.description == "upload: ABORTED"
    assert "a text of a device" not in str([span.to_json() for span in spans.values()])
    late = Surplus(105.0, "phones", "session-1", "id", "train", "it came late")
    spans, _ = run([CHECKED_IN, ASSIGNED, late])
    assert spans["session"].attributes["fcp.outcome"] == "surplus"
    failed = TaskClosed(120.0, "phones", "id", "train", 1, Code.ABORTED, "too few")
    spans, _ = run([OPENED, failed])
    assert spans["task"].status.description == "ABORTED: too few"


def test_an_earlier_commit_and_one_of_another_task_are_not_of_the_contribution(environ):
    early = Committed(109.4, "phones", "id", "train", 1, 8000, 0.25)
    other = Committed(109.9, "phones", "id2", "other", 1, 8000, 0.25)
    spans, _ = run([CHECKED_IN, ASSIGNED, early, other, CONTRIBUTED])
    assert "fold" in spans
    assert "commit" not in spans
    long = Committed(109.9, "phones", "id", "train", 1, 8000, 5.0)  # it cannot have begun before
    spans, _ = run([CHECKED_IN, ASSIGNED, long, CONTRIBUTED])
    assert spans["commit"].start_time == spans["fold"].start_time


def test_a_session_with_several_tasks_ends_with_the_last(environ):
    second = Assigned(103.0, "phones", "session-1", "id2", "other")
    other = Contributed(115.0, "phones", "session-1", "id2", "other", 1)
    spans, after = run([CHECKED_IN, ASSIGNED, second, CONTRIBUTED])
    assert "session" not in spans
    assert {span.name for span in after} >= {"session"}
    spans, _ = run([CHECKED_IN, ASSIGNED, second, CONTRIBUTED, other])
    assert spans["session"].end_time == 115_000_000_000


def test_an_assignment_without_a_check_in_is_followed_and_an_end_without_one_is_not(environ):
    spans, _ = run([ASSIGNED, CONTRIBUTED, CONTRIBUTED, CLOSED])
    assert spans["session"].start_time == 102_000_000_000
    assert "task" not in spans


def test_what_is_followed_is_bounded_and_ends_with_the_server(environ):
    many = [CheckedIn(100.0 + n, "phones", f"s{n}") for n in range(5)]
    spans, after = run(many, open_spans=2)
    assert spans["session"].attributes["fcp.outcome"] == "unknown"
    assert len(after) == 5


def test_a_share_of_the_sessions_is_traced_and_every_task(environ):
    events = [OPENED, CLOSED]
    for n in range(400):
        events += [CheckedIn(100.0, "phones", f"s{n}"), Rejected(101.0, "phones", f"s{n}", "no")]
    _, after = run(events, ratio=0.25)
    names = [span.name for span in after]
    assert names.count("task") == 1
    # Six standard deviations of a binomial distribution, either way.
    assert 48 <= names.count("session") <= 152
    _, after = run(events, ratio=0)
    assert [span.name for span in after] == ["task"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "localhost:4318"}, "otel.endpoint.*http://localhost:4318/v1/traces"),
        ({"ratio": 1.5}, "otel.ratio.*1.5 is more than all"),
    ],
)
def test_a_wrong_option_stops_the_start(environ, options, message):
    with pytest.raises(UsageError, match=message):
        run([], **options)


def test_without_an_endpoint_nothing_is_done(environ):
    plugin = TracesPlugin()
    run([OPENED, CHECKED_IN], plugin)
    assert plugin._spans is None


class Receiver(http.server.BaseHTTPRequestHandler):
    """A receiver of OTLP: keeps the spans."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_spans_arrive_at_a_receiver_of_otlp_by_the_end_of_the_server(environ):
    with http.server.ThreadingHTTPServer(("localhost", 0), Receiver) as receiver:
        receiver.requests = []
        thread = threading.Thread(target=receiver.serve_forever, args=(0.01,))
        thread.start()
        try:
            endpoint = f"http://localhost:{receiver.server_port}/v1/traces"
            events = [OPENED, CHECKED_IN, ASSIGNED, CONTRIBUTED, CLOSED]
            run(events, TracesPlugin(), endpoint=endpoint, service_name="fleet")
        finally:
            receiver.shutdown()
            thread.join()
    assert {path for path, _ in receiver.requests} == {"/v1/traces"}
    resources = [r for _, request in receiver.requests for r in request.resource_spans]
    named = {a.key: a.value.string_value for r in resources for a in r.resource.attributes}
    assert named["service.name"] == "fleet"
    spans = [s.name for r in resources for scope in r.scope_spans for s in scope.spans]
    assert sorted(spans) == ["assignment", "fold", "session", "task", "upload"]


def test_a_collector_that_does_not_answer_is_not_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(plugin_module, "PATIENCE", 0.1)
    answers, ended = threading.Event(), threading.Event()

    class Silent(SimpleSpanProcessor):
        def shutdown(self):
            answers.wait()
            super().shutdown()
            ended.set()

    run([OPENED, CLOSED], TracesPlugin(Silent(InMemorySpanExporter())))
    assert "the collector does not answer" in caplog.text
    answers.set()
    assert ended.wait(60)
