"""Client processes against the real server, over HTTP and HTTPS."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import CallableStore, Client, Outcome, RetryPolicy, make_query_result
from fcp_core.client.transport import Transport
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import client_runner_example_data_pb2, data_type_pb2, plan_pb2
from fcp_core.protocol.status import Code
from fcp_core.rounds.tasks import AssignmentMode, TaskSpec
from fcp_core.server import Server, ServerThread

pytestmark = pytest.mark.slow

POPULATION = "phones/all"
URI = "app:/values"
FCV1 = "federated_compute_checkpoint_aggregation"
TF_V1 = "tf_v1_checkpoint_aggregation"


def make_plan(kind=FCV1, **types):
    plan = plan_pb2.ClientOnlyPlan()
    query = plan.phase.example_query_spec.example_queries.add()
    query.example_selector.collection_uri = URI
    for name, data_type in types.items():
        query.output_vector_specs[name].vector_name = name
        query.output_vector_specs[name].data_type = data_type
        aggregation = plan.phase.federated_example_query.aggregations[name]
        getattr(aggregation, kind).SetInParent()
    return plan.SerializeToString()


def sum_task(goal, *, kind=FCV1, name="sum", **options):
    """Sum an int64 vector of two elements."""
    intrinsic = Intrinsic(
        "federated_sum",
        (TensorSpec("v", DataType.INT64, (2,)),),
        (TensorSpec("total", DataType.INT64, (2,)),),
    )
    return TaskSpec(
        population=POPULATION,
        name=name,
        plan=make_plan(kind, v=data_type_pb2.INT64),
        aggregation=configuration_to_proto([intrinsic]).SerializeToString(),
        goal_count=goal,
        **options,
    )


def histogram_task(goal):
    """SELECT word, SUM(n) GROUP BY word."""
    unknown = (-1,)
    intrinsic = Intrinsic(
        "fedsql_group_by",
        (TensorSpec("word", DataType.STRING, unknown),),
        (TensorSpec("word", DataType.STRING, unknown),),
        nested=(
            Intrinsic(
                "GoogleSQL:sum",
                (TensorSpec("n", DataType.INT64, unknown),),
                (TensorSpec("n", DataType.INT64, unknown),),
            ),
        ),
    )
    return TaskSpec(
        population=POPULATION,
        name="histogram",
        plan=make_plan(word=data_type_pb2.STRING, n=data_type_pb2.INT64),
        aggregation=configuration_to_proto([intrinsic]).SerializeToString(),
        goal_count=goal,
    )


@pytest.fixture
def start_server(tmp_path):
    running = []

    def start(overrides=None, **arguments):
        plugins = Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path)
        thread = ServerThread(Server(plugins, populations=[POPULATION], **arguments))
        running.append(thread)
        thread.start()
        return thread

    yield start
    for thread in running:
        thread.stop()


def submit(thread, spec):
    return thread.run(thread.server.services.tasks.submit(spec)).result(60)


def result(thread, task_id):
    return open_checkpoint(thread.run(thread.server.services.tasks.wait(task_id)).result(60))


def status(thread, task_id):
    return thread.run(thread.server.services.tasks.status(task_id)).result(60)


def device_processes(tmp_path, url, devices, *flags):
    """Run one ``fcp client`` per element of *devices*, vectors by name; return their outputs."""
    processes = []
    for number, vectors in enumerate(devices):
        data = client_runner_example_data_pb2.ClientRunnerExampleData()
        examples = data.examples_by_collection_uri[URI].examples
        examples.append(make_query_result(vectors).SerializeToString())
        path = tmp_path / f"device_{number}"
        path.write_bytes(data.SerializeToString())
        command = [sys.executable, "-m", "fcp_core", "client", f"--server={url}"]
        command += [f"--population={POPULATION}", f"--example_data_path={path}", *flags]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = []
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        outputs.append(output)
    return outputs


@pytest.mark.parametrize("kind", [FCV1, TF_V1])
def test_federated_sum_over_processes(start_server, tmp_path, kind):
    thread = start_server()
    task_id = submit(thread, sum_task(5, kind=kind))
    # Each device has a bit of its own: the sum tells who is in it, and how often.
    outputs = device_processes(tmp_path, thread.server.url, [{"v": [1 << n, 1]} for n in range(5)])
    assert all("session 1: contributed; sum contributed" in output for output in outputs)
    assert result(thread, task_id)["total"].tolist() == [31, 5]


def test_sql_group_by_over_processes(start_server, tmp_path):
    thread = start_server()
    task_id = submit(thread, histogram_task(5))
    devices = [{"word": ["all", f"only {n}"], "n": [n, 100 + n]} for n in range(5)]
    device_processes(tmp_path, thread.server.url, devices)
    rows = result(thread, task_id)
    found = dict(zip(rows["word"].tolist(), rows["n"].tolist(), strict=True))
    assert found == {b"all": 10, **{b"only %d" % n: 100 + n for n in range(5)}}


@pytest.fixture
def device():
    """Makes clients that hold one int64 vector."""
    clients = []

    def make(url, vector, **options):
        store = CallableStore(
            lambda selector: [make_query_result({"v": vector}).SerializeToString()]
        )
        client = Client(
            url, POPULATION, stores={URI: store}, retry=RetryPolicy(delay=0.01), **options
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def test_two_multiple_tasks_in_one_session(start_server, device):
    thread = start_server()
    tasks = [
        submit(thread, sum_task(2, name=name, assignment_mode=AssignmentMode.MULTIPLE))
        for name in ("one", "two")
    ]
    for number in range(2):
        done = device(thread.server.url, [1 << number, 1]).run_once()
        assert done.outcome is Outcome.CONTRIBUTED
        assert sorted(task.task_name for task in done.tasks) == ["one", "two"]
    for task_id in tasks:
        assert result(thread, task_id)["total"].tolist() == [3, 2]


def test_many_devices_at_once(start_server, device):
    thread = start_server()
    count = 24
    task_id = submit(thread, sum_task(count))
    clients = [device(thread.server.url, [1 << n, 1]) for n in range(count)]
    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(lambda client: client.run_once().outcome, clients))
    assert outcomes == [Outcome.CONTRIBUTED] * count
    assert result(thread, task_id)["total"].tolist() == [(1 << count) - 1, count]


def uniform(candidates):
    """Return settings under which a device waits until so many are there."""
    return {
        "selection": "uniform",
        "selection.uniform.window": "1h",
        "selection.uniform.min_candidates": str(candidates),
        "polling_interval": "10ms",
    }


def test_devices_wait_for_their_draw(start_server, device):
    thread = start_server(uniform(3))
    task_id = submit(thread, sum_task(3))
    clients = [device(thread.server.url, [1 << n, 1]) for n in range(3)]
    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(lambda client: client.run_once().outcome, clients))
    assert outcomes == [Outcome.CONTRIBUTED] * 3
    assert result(thread, task_id)["total"].tolist() == [7, 3]


def test_an_interrupted_device_gives_up_its_place(start_server, device, monkeypatch):
    thread = start_server(uniform(2))
    task_id = submit(thread, sum_task(2))
    sessions, polled = [], threading.Event()
    send = Transport.send

    def poll(transport, request):
        if request.name == "Operations.GetOperation":
            polled.set()
        return send(transport, request)

    monkeypatch.setattr(Transport, "send", poll)
    waiting = device(thread.server.url, [1, 1])
    runner = threading.Thread(target=lambda: sessions.append(waiting.run_once()))
    runner.start()
    # It waits for ever, since no other device comes.
    assert polled.wait(60)
    waiting.interrupt()
    runner.join(60)
    assert sessions[0].error.code is Code.CANCELLED
    clients = [device(thread.server.url, [1 << n, 1]) for n in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda client: client.run_once().outcome, clients))
    assert outcomes == [Outcome.CONTRIBUTED] * 2
    assert result(thread, task_id)["total"].tolist() == [6, 2]


def test_a_failing_device_does_not_spoil_the_round(start_server, device):
    thread = start_server()
    task_id = submit(thread, sum_task(1))
    failed = device(thread.server.url, []).run_once()  # a vector that does not fit the task
    assert failed.outcome is Outcome.FAILED
    assert failed.tasks[0].error.code is Code.INVALID_ARGUMENT
    assert status(thread, task_id).contributed == 0
    assert device(thread.server.url, [4, 1]).run_once().outcome is Outcome.CONTRIBUTED
    assert result(thread, task_id)["total"].tolist() == [4, 1]


def test_a_population_that_is_not(start_server):
    thread = start_server()
    with Client(thread.server.url, "nobody", stores={}) as client:
        assert client.run_once().error.code is Code.NOT_FOUND


def test_interrupting_a_device_between_sessions(start_server, device):
    thread = start_server()
    client = device(thread.server.url, [1, 1])
    first = client.run_once()
    assert first.outcome in (Outcome.REJECTED, Outcome.NO_TASK)
    results = []
    runner = threading.Thread(target=lambda: results.extend(client.run(-1)))
    runner.start()
    client.interrupt()
    runner.join(60)
    assert not runner.is_alive()


def test_https(start_server, tmp_path, certificates, device):
    thread = start_server(certfile=certificates / "server.pem")
    url = thread.server.url
    assert url.startswith("https://")
    task_id = submit(thread, sum_task(1))
    stranger = device(url, [1, 1])
    assert (
        stranger.run_once().error.code is Code.FAILED_PRECONDITION
    )  # the certificate is not trusted
    cert = certificates / "authority.pem"
    device_processes(tmp_path, url, [{"v": np.array([2, 1])}], f"--test-cert={cert}")
    assert result(thread, task_id)["total"].tolist() == [2, 1]
