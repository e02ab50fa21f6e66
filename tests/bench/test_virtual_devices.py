"""Virtual devices against real servers."""

import asyncio
import dataclasses

import pytest

from fcp_core.bench import Load, drive
from fcp_core.bench.load import allow_files
from fcp_core.bench.report import StepTimes
from fcp_core.bench.task import BenchTask
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import write_checkpoint

TASK = BenchTask(elements=3)


def load(clients, made=TASK, **fields):
    fields = {"population": "people", "connections": 4, "retry_delay": 0.0, **fields}
    bodies = made.bodies(fields.get("gzip", False))
    return Load(clients=clients, bodies=bodies, **fields)


def offer(server, task=TASK, name="bench/load", goal=6, **fields):
    return server.submit(task.spec("people", name, goal, 60.0).replace(**fields))


def result(server, task_id):
    """Return the task's result as bytes; it is there, since all have contributed."""
    tensors = server.result(task_id)
    return write_checkpoint({name: tensors[name] for name in tensors}, "federated_compute")


@pytest.mark.parametrize("checkpoint_format", ["tf_v1", "federated_compute"])
@pytest.mark.parametrize("gzip", [False, True])
def test_a_round_is_complete_and_exact(fcp_server, checkpoint_format, gzip):
    inline = "0B" if gzip else "1MiB"
    server = fcp_server(overrides={"inline_resources_below": inline})
    task = BenchTask(300, checkpoint_format, broadcast=True, seed=5)
    task_id = offer(server, task)
    report = asyncio.run(drive(server.url, load(6, task, gzip=gzip)))
    assert report.outcomes == {"contributed": 6}
    assert report.by_body == [2, 2, 1, 1]
    assert task.is_result(result(server, task_id), report.by_body)
    assert not task.is_result(result(server, task_id), [2, 1, 1, 1])
    assert not task.is_result(result(server, task_id), [2, 2, 1, 2])
    requests = {name: times.count for name, times in report.steps.items()}
    assert requests.pop("download", 0) == (12 if gzip else 0)
    assert requests == dict.fromkeys(
        ["check-in", "start", "assignment", "report", "begin upload", "upload", "submit"]
        + ["session"],
        6,
    )
    assert report.timeline[-1] == report.contributed == 6
    assert report.connections == 6
    assert report.bytes_sent > sum(map(len, task.bodies(gzip)))
    assert report.bytes_received > 0


def test_devices_that_wait_let_others_talk(fcp_server):
    """Six must wait together before anybody is assigned, and only two may talk at a time."""
    overrides = {"selection": "cohort", "polling_interval": "5ms"}
    server = fcp_server(overrides=overrides)
    task_id = offer(server)
    report = asyncio.run(drive(server.url, load(6, connections=2, keep=True)))
    assert report.outcomes == {"contributed": 6}
    assert report.connections == 2
    assert report.steps["poll"].count >= 5
    assert TASK.is_result(result(server, task_id), report.by_body)


def test_who_is_not_needed_is_sent_away(fcp_server):
    server = fcp_server()
    offer(server, goal=2)
    report = asyncio.run(drive(server.url, load(5, connections=1)))
    assert report.outcomes == {"contributed": 2, "rejected": 3}


def test_a_server_that_keeps_few_sessions_turns_nobody_away(fcp_server):
    server = fcp_server(overrides={"max_sessions": 3})
    offer(server)
    report = asyncio.run(drive(server.url, load(5, connections=1, retries=2)))
    assert report.outcomes == {"contributed": 5}
    assert report.retries == 0
    assert report.steps["check-in"].count == 5


def test_the_devices_want_one_task_of_those_that_are_open(fcp_server):
    """With an eligibility policy they say that they are eligible for that one only."""
    options = {"minimum_separation": {"minimum_separation": 1}}
    server = fcp_server(overrides={"eligibility": "minimum_separation"})
    offer(server, name="first", goal=3, options=options)
    wanted = offer(server, name="second", goal=3, options=options)
    report = asyncio.run(drive(server.url, load(3, task="second")))
    assert report.outcomes == {"contributed": 3}
    assert report.steps["eligibility"].count == 3
    assert TASK.is_result(result(server, wanted), report.by_body)


def test_a_device_that_is_given_another_task_says_so(fcp_server):
    server = fcp_server()
    offer(server, name="first")
    report = asyncio.run(drive(server.url, load(1, task="second")))
    assert report.outcomes == {"start: another task (first)": 1}


def test_a_checkpoint_that_does_not_fit_is_counted(fcp_server):
    server = fcp_server()
    task_id = offer(server, goal=1)
    report = asyncio.run(drive(server.url, load(1, BenchTask(elements=4))))
    assert report.outcomes == {"submit: HTTP 400": 1}
    assert server.status(task_id).contributed == 0


def test_the_run_ends_at_its_time_limit():
    async def swallow(reader, writer):
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async def run():
        server = await asyncio.start_server(swallow, "127.0.0.1", 0)
        try:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return await drive(url, load(9, time_limit=0.2))
        finally:
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)

    report = asyncio.run(run())
    # The others have not even begun.
    assert report.outcomes == {"not finished": 4}
    assert report.steps == {}


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(UsageError, match=r"http://127\.0\.0\.1:9/ cannot be reached: "):
        asyncio.run(drive("http://127.0.0.1:9/", load(1)))
    with pytest.raises(UsageError, match="'localhost:9' is no http"):
        asyncio.run(drive("localhost:9", load(1)))


def test_files_beyond_what_the_system_allows_are_told(monkeypatch):
    import resource

    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: set_to.append(limits))
    with pytest.raises(UsageError, match=r"5000 connections need: .*ulimit -n.*--connections"):
        allow_files(5000)
    allow_files(100)
    assert set_to == []
    allow_files(3000)
    allow_files(100, 5000)
    assert set_to == [(3064, 4096), (4096, 4096)]


@pytest.mark.parametrize(
    "fields",
    [{"clients": 0}, {"connections": 0}, {"bodies": []}, {"time_limit": 0.0}, {"retries": -1}],
)
def test_what_cannot_be_run_is_refused(fields):
    with pytest.raises(UsageError):
        dataclasses.replace(load(1), **fields).check()


def test_the_times_of_a_step():
    times = StepTimes.of([0.001 * n for n in range(200, 0, -1)])
    assert times.count == 200
    assert (times.p50, times.p99, times.longest) == pytest.approx((101.0, 199.0, 200.0))
    assert StepTimes.of([0.5]).p99 == 500.0
