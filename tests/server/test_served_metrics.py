"""The metrics of a server that runs: over HTTP, and of devices that come."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest
import urllib3
from prometheus_client import parser as text_parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.status import Code
from fcp_core.rounds.machine import ManualClock
from fcp_core.server import Server
from fcp_core.server.http import handler
from fcp_core.server.http.listeners import bind
from fcp_core.server.http.metrics import ServerMetrics
from fcp_core.server.services import task_factory
from tests.server.fronts import WAIT
from tests.server.series import COUNTS, parse, sample


def scrape(port, path="/metrics", accept=None):
    with urllib3.PoolManager(retries=False, timeout=WAIT) as client:
        headers = {} if accept is None else {"Accept": accept}
        reply = client.request("GET", f"http://localhost:{port}{path}", headers=headers)
        return reply.status, reply.headers, reply.data


def test_silent_devices_are_counted_and_their_sender_gets_no_more(
    make_server, make_device, sum_task, monkeypatch
):
    monkeypatch.setattr(handler, "is_loopback", lambda key: False)
    monkeypatch.setattr(task_factory, "FIRST_SIGN", 1e-4)
    thread = make_server({"metrics": "true", "max_silent_per_sender": "4"})
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
    thread = make_server({"metrics": "true"})
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
    thread = make_server({"metrics": "true"})
    thread.run(thread.server.services.tasks.submit(sum_task())).result(WAIT)
    device = make_device(thread.server.url, "people")
    task, _, _ = device.assignment()
    text = scrape(thread.server.metrics_port)[2].decode()
    for secret in (device.session_id, task.authorization_token, "127.0.0.1", "::1"):
        assert secret not in text


#: As Prometheus asks.
WANTED = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"


def test_both_formats_say_the_same_to_the_parsers_of_prometheus(make_server, make_device, sum_task):
    server = make_server({"metrics": "true"})
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


def test_metrics_are_off_by_default_and_may_have_an_address_of_their_own(make_server):
    off = make_server()
    assert off.server.metrics_port == 0
    assert scrape(off.server.port)[0] == 404
    apart = make_server({"metrics": "true", "metrics_address": "localhost:0"})
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
