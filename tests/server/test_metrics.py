"""What a server measures: the text form, the counts of a round, what is bounded, where it is."""

from __future__ import annotations

import asyncio
import math
import re
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.status import Code
from fcp_core.rounds.events import Assigned, Rejected, Released, TaskClosed, TaskOpened
from fcp_core.rounds.machine import ManualClock
from fcp_core.server import Server, ServerThread
from fcp_core.server.http import handler
from fcp_core.server.http.listeners import bind
from fcp_core.server.http.metrics import KEPT, ServerMetrics
from fcp_core.server.http.prometheus import Counter, Gauge, Histogram, Info, render

WAIT = 30.0
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
COUNTS = {"open_tasks": 0, "open_operations": 0, "sessions": 0, "waiting": 0, "at_work": 0}
SAMPLE = re.compile(r'(\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
UNESCAPE = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def parse(text):
    """Read the text form: (name, labels) -> value."""
    samples = {}
    for line in text.decode().splitlines():
        if not line.startswith("#"):
            name, labels, value = SAMPLE.fullmatch(line).groups()
            pairs = {
                key: re.sub(r"\\.", lambda found: UNESCAPE[found[0]], value)
                for key, value in LABEL.findall(labels or "")
            }
            samples[name, frozenset(pairs.items())] = float(value)
    return samples


def sample(samples, name, **labels):
    return samples.get((name, frozenset(labels.items())), 0.0)


# The event loop.


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose time can be moved on, as by a callback that takes long."""

    skipped = 0.0

    def time(self):
        return super().time() + self.skipped


def test_a_callback_that_takes_long_is_seen_by_all_that_would_have_waited():
    """In 0.5 s ten measurements were due; the first waited 0.5 s, the last hardly at all."""
    loop = JumpingLoop()
    metrics = ServerMetrics(ManualClock(0.0), lambda: COUNTS)

    async def main():
        metrics.watch(lambda: 0, lambda: 0)
        while not sample(parse(metrics.render()), "fcp_loop_lag_seconds_count"):
            loop.skipped += 0.01
            await asyncio.sleep(0)
        before = parse(metrics.render())
        loop.skipped += 0.5
        while True:
            await asyncio.sleep(0)
            after = parse(metrics.render())
            if sample(after, "fcp_loop_lag_seconds_count") > sample(
                before, "fcp_loop_lag_seconds_count"
            ):
                metrics.stop()
                return before, after

    try:
        before, after = loop.run_until_complete(main())
    finally:
        loop.close()

    def grown(name, **labels):
        return sample(after, name, **labels) - sample(before, name, **labels)

    count = grown("fcp_loop_lag_seconds_count")
    assert count >= 10
    assert count - grown("fcp_loop_lag_seconds_bucket", le="0.2") >= 5
    assert count - grown("fcp_loop_lag_seconds_bucket", le="0.02") >= 9
    assert grown("fcp_loop_lag_seconds_sum") >= 2.2


# The text form.


@given(st.dictionaries(st.text(), st.floats(0, 1e300), max_size=8))
def test_any_label_comes_back(values):
    counter = Counter("c_total", 'A "help"\nof two \\ lines.', ["label"])
    for label, value in values.items():
        counter.add(label, amount=value)
    text = render([counter])
    # Only a line feed ends a line; what else Python takes for one is escaped here for the parser.
    lines = text.split(b"\n")
    assert len(lines) == 3 + len(values)
    assert lines[0] == b'# HELP c_total A "help"\\nof two \\\\ lines.'
    found = {}
    for line in lines[2:-1]:
        label, value = re.fullmatch(r'c_total\{label="(.*)"\} (\S+)', line.decode(), re.S).groups()
        found[re.sub(r"\\.", lambda m: UNESCAPE[m[0]], label)] = float(value)
    assert found == values


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_what_is_at_most_its_bounds(values):
    histogram = Histogram("h", "Help.", buckets=(0.5, 1, 10))
    for value in values:
        histogram.observe(value=value)
    samples = parse(render([histogram]))
    for bound, limit in (("0.5", 0.5), ("1", 1), ("10", 10), ("+Inf", float("inf"))):
        expected = sum(value <= limit for value in values)
        assert sample(samples, "h_bucket", le=bound) == expected
    assert sample(samples, "h_count") == len(values)
    assert sample(samples, "h_sum") == pytest.approx(sum(values))


def test_a_gauge_is_read_when_it_is_asked_for():
    values = iter([1.0, 2.5])
    gauge = Gauge("g", "Help.", read=lambda: next(values))
    assert render([gauge]).endswith(b"\ng 1\n")
    assert render([gauge]).endswith(b"\ng 2.5\n")


def test_series_are_bounded_and_labels_are_counted():
    counter = Counter("c_total", "Help.", ["a"], bound=3)
    for number in range(10):
        counter.add(str(number))
    samples = parse(render([counter]))
    assert len(samples) == 4
    assert sample(samples, "c_total", a="other") == 7
    with pytest.raises(ValueError, match="labels"):
        counter.add("1", "2")


# What is kept.


def closed(name, at=0.0):
    return TaskClosed(at, "p", "id", name, 1, Code.OK)


def test_the_series_of_tasks_that_ended_are_dropped_after_a_while():
    clock = ManualClock()
    metrics = ServerMetrics(clock, lambda: COUNTS)
    for name in ("a", "b"):
        metrics.event(TaskOpened(0.0, "p", "id", name, 1))
        metrics.event(Assigned(0.0, "p", "session", "id", name))
    metrics.event(TaskOpened(0.0, "p", "id2", "b", 1))
    metrics.event(closed("a"))
    metrics.event(closed("b"))  # its second round goes on
    clock.advance(KEPT - 1)
    assert sample(parse(metrics.render()), "fcp_assignments_total", population="p", task="a") == 1
    clock.advance(1)
    samples = parse(metrics.render())
    assert [key for key in samples if ("task", "a") in key[1]] == []
    assert sample(samples, "fcp_assignments_total", population="p", task="b") == 1
    # A task that is opened again within the time keeps its series.
    metrics.event(closed("b"))
    metrics.event(TaskOpened(0.0, "p", "id3", "b", 1))
    clock.advance(KEPT)
    assert sample(parse(metrics.render()), "fcp_assignments_total", population="p", task="b") == 1


def test_a_reason_that_is_no_short_word_is_other():
    metrics = ServerMetrics(ManualClock(), lambda: COUNTS)
    for reason in ("no_task", "The device 10.1.2.3 is too old", "x" * 50, ""):
        metrics.event(Rejected(0.0, "p", "session", reason))
    samples = parse(metrics.render())
    assert sample(samples, "fcp_rejections_total", population="p", reason="no_task") == 1
    assert sample(samples, "fcp_rejections_total", population="p", reason="other") == 3


def test_a_release_counts_and_says_what_ledgers_say():
    metrics = ServerMetrics(ManualClock(), lambda: COUNTS)
    for spent in (1.0, math.inf):
        metrics.event(Released(0.0, "p", "id", "a", {"privacy_spent": spent, "Not a word": 1}))
        samples = parse(metrics.render())
        assert sample(samples, "fcp_ledger", population="p", figure="privacy_spent") == spent
    assert sample(samples, "fcp_releases_total", population="p", task="a") == 2
    assert sample(samples, "fcp_ledger", population="p", figure="other") == 1


# On a server.


@pytest.fixture
def make_server(tmp_path):
    running = []

    def make(**overrides):
        plugins = Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path)
        thread = ServerThread(Server(plugins))
        running.append(thread)
        thread.start()
        return thread

    yield make
    for thread in running:
        thread.stop()


def scrape(port, path="/metrics", accept=None):
    with urllib3.PoolManager(retries=False, timeout=WAIT) as client:
        headers = {} if accept is None else {"Accept": accept}
        reply = client.request("GET", f"http://localhost:{port}{path}", headers=headers)
        return reply.status, reply.headers, reply.data


def test_silent_devices_are_counted_and_their_sender_gets_no_more(
    make_server, make_device, sum_task, monkeypatch
):
    monkeypatch.setattr(handler, "is_loopback", lambda key: False)
    thread = make_server(metrics="true", first_sign_timeout="50ms", max_silent_per_sender="4")
    services = thread.server.services
    task_id = thread.run(services.tasks.submit(sum_task(goal=3))).result(WAIT)
    for _ in range(4):
        make_device(thread.server.url, "people").assignment()
    for _ in range(int(WAIT) * 100):
        population = thread.run(services.admin.list_populations()).result(WAIT).populations[0]
        if population.silent == {"1": 4}:
            break
        time.sleep(0.01)
    assert (population.silent, population.at_work) == ({"1": 4}, 0)
    again = make_device(thread.server.url, "people").check_in()
    assert again.WhichOneof("result") == "rejection_info"
    body = write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1")
    for number in range(3):
        device = make_device(thread.server.url, "people")
        device.pool = urllib3.PoolManager(
            retries=False, timeout=WAIT, source_address=(f"127.0.0.{2 + number}", 0)
        )
        device.contribute(body)
    thread.run(services.tasks.wait(task_id)).result(WAIT)
    samples = parse(scrape(thread.server.metrics_port)[2])
    labels = {"population": "people", "task": "sum"}
    assert sample(samples, "fcp_silent_total", **labels, client_version="1") == 4
    assert sample(samples, "fcp_drops_total", **labels, phase="silent") == 4
    assert sample(samples, "fcp_rejections_total", population="people", reason="silent") == 1


def test_versions_of_clients_are_few_and_short_words():
    metrics = ServerMetrics(ManualClock(), dict)
    named = [metrics._version(text) for text in ("2026.1", "", "a b", "x" * 41, "1+2-rc_3")]
    assert named == ["2026.1", "unknown", "other", "other", "1+2-rc_3"]
    assert [metrics._version(f"v{n}") for n in range(60)].count("other") == 12
    assert metrics._version("2026.1") == "2026.1"


def test_a_round_is_counted(make_server, make_device, sum_task):
    thread = make_server(metrics="true")
    body = write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1")
    tasks = thread.server.services.tasks
    task_id = thread.run(tasks.submit(sum_task(goal=2))).result(WAIT)
    make_device(thread.server.url, "people").contribute(body)
    failing = make_device(thread.server.url, "people")
    task, _, _ = failing.assignment()
    failing.report(task, Code.INTERNAL)
    make_device(thread.server.url, "people").contribute(body)
    thread.run(tasks.wait(task_id)).result(WAIT)
    late = make_device(thread.server.url, "people").check_in()
    assert late.WhichOneof("result") == "rejection_info"

    status, headers, text = scrape(thread.server.metrics_port)
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    samples = parse(text)
    people = {"population": "people"}
    task_labels = {**people, "task": "sum"}
    assert sample(samples, "fcp_check_ins_total", **people) == 3
    assert sample(samples, "fcp_offers_total", **task_labels) == 3
    assert sample(samples, "fcp_assignments_total", **task_labels) == 3
    assert sample(samples, "fcp_contributions_total", **task_labels) == 2
    assert sample(samples, "fcp_contribution_bytes_total", **task_labels) == 2 * len(body)
    assert sample(samples, "fcp_drops_total", **task_labels, phase="computation") == 1
    assert sample(samples, "fcp_rejections_total", **people, reason="no_task") == 1
    assert sample(samples, "fcp_rounds_closed_total", **task_labels, code="OK") == 1
    for name in ("contribution", "upload", "fold"):
        assert sample(samples, f"fcp_{name}_seconds_count", **task_labels) == 2
        assert 0 <= sample(samples, f"fcp_{name}_seconds_sum", **task_labels) < WAIT
    check_in = "EligibilityEvalTasks.RequestEligibilityEvalTask"
    assert sample(samples, "fcp_requests_total", route=check_in, status="200") == 4
    assert sample(samples, "fcp_request_seconds_count", route="upload") == 2
    assert sample(samples, "fcp_received_bytes_total", route="upload") > 0
    assert sample(samples, "fcp_sessions") == 3
    assert sample(samples, "fcp_open_tasks") == 0
    assert sample(samples, "fcp_open_operations") == 0
    assert sample(samples, "fcp_connections") >= 1
    assert sample(samples, "fcp_in_flight_bytes") == 0


def test_no_device_is_in_the_metrics(make_server, make_device, sum_task):
    thread = make_server(metrics="true")
    thread.run(thread.server.services.tasks.submit(sum_task())).result(WAIT)
    device = make_device(thread.server.url, "people")
    task, _, _ = device.assignment()
    text = scrape(thread.server.metrics_port)[2].decode()
    for secret in (device.session_id, task.authorization_token, "127.0.0.1", "::1"):
        assert secret not in text


#: As Prometheus asks.
WANTED = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"


def test_both_formats_say_the_same_to_the_parsers_of_prometheus(make_server, make_device, sum_task):
    server = make_server(metrics="true")
    tasks = server.server.services.tasks
    task_id = server.run(tasks.submit(sum_task(goal=1))).result(WAIT)
    body = write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1")
    make_device(server.server.url, "people").contribute(body)
    server.run(tasks.wait(task_id)).result(WAIT)
    status, headers, plain = scrape(server.server.port, accept="text/plain")
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    status, headers, openmetrics = scrape(server.server.port, accept=WANTED)
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "application/openmetrics-text")
    assert openmetrics.endswith(b"\n# EOF\n")
    old = {f.name: f for f in text_parser.text_string_to_metric_families(plain.decode())}
    new = {
        f.name: f for f in openmetrics_parser.text_string_to_metric_families(openmetrics.decode())
    }
    assert new["fcp_server"].type == "info"
    assert new["fcp_contributions"].type == old["fcp_contributions"].type == "counter"
    assert new["fcp_contribution_seconds"].type == "histogram"
    counted = "fcp_contributions"
    assert [s.value for s in new[counted].samples] == [s.value for s in old[counted].samples] == [1]
    assert set(new) - {"fcp_server"} == set(old) - {"fcp_server_info"}


def test_units_are_seconds_and_bytes_and_counters_are_totals():
    for metric in ServerMetrics(ManualClock(), lambda: COUNTS)._metrics:
        assert metric.name.endswith("_total") == isinstance(metric, Counter), metric.name
        assert metric.name.endswith("_info") == isinstance(metric, Info)
        if isinstance(metric, Histogram):
            assert metric.name.endswith(("_seconds", "_bytes"))
        assert not re.search(r"_(ms|millis|minutes|hours|kb|mib|percent|age)$", metric.name)


def test_the_information_of_several_processes_is_no_sum():
    metrics = ServerMetrics(ManualClock(), lambda: COUNTS)
    text = metrics.render([metrics.dump(), metrics.dump()])
    (value,) = [v for (name, _), v in parse(text).items() if name == "fcp_server_info"]
    assert value == 1


def test_metrics_are_off_by_default_and_may_have_an_address_of_their_own(make_server):
    off = make_server()
    assert off.server.metrics_port == 0
    assert scrape(off.server.port)[0] == 404
    apart = make_server(metrics="true", metrics_address="localhost:0")
    assert apart.server.metrics_port not in (0, apart.server.port)
    assert scrape(apart.server.port)[0] == 404
    assert scrape(apart.server.metrics_port)[0] == 200
    assert scrape(apart.server.metrics_port, "/v1/operations/x")[0] == 404
    port = apart.server.metrics_port
    apart.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", port), timeout=WAIT)


@pytest.mark.parametrize("address", ["9100", "localhost:", "localhost:70000", "localhost:x"])
def test_an_address_that_is_none(tmp_path, address):
    overrides = {"metrics": "true", "metrics_address": address}
    plugins = Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path)
    with pytest.raises(UsageError, match="must be like localhost:9100"):
        Server(plugins)


def test_metrics_without_a_free_address_leave_nothing_listening(tmp_path, monkeypatch):
    bound = []

    def recorded(*arguments, **options):
        bound.extend(bind(*arguments, **options))
        return bound

    monkeypatch.setattr("fcp_core.server.http.listeners.bind", recorded)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        overrides = {"metrics": "true", "metrics_address": address}
        plugins = Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path)
        with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1"):
            Server(plugins)
    assert bound
    assert all(listener.fileno() == -1 for listener in bound)


def test_a_client_that_goes_away_is_counted(make_front, http, services):
    metrics = ServerMetrics(ManualClock(), lambda: COUNTS)
    front = make_front(services, metrics=metrics)
    with front.connect() as connection:
        connection.send(http.head("/upload/v1/media/known/upload", Content_Length=100), b"some")
        assert services.media.started.acquire(timeout=http.WAIT)
        connection.reset()
    assert services.media.abandoned.acquire(timeout=http.WAIT)

    async def text():
        return metrics.render()

    assert sample(parse(front.run(text())), "fcp_requests_total", route="upload", status="499") == 1


@pytest.fixture
def services(http):
    return http.Services()


def test_the_docs_list_every_metric_and_no_other():
    listed = re.findall(r"^\| `(fcp_\w+)` \| (\w+) \|", DOCS.read_text(encoding="utf-8"), re.M)
    metrics = ServerMetrics(ManualClock(), lambda: COUNTS)
    text = metrics.render().decode()
    assert sorted(listed) == sorted(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
