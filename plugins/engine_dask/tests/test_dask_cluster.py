"""Jobs on a Dask cluster of real processes, of which some are killed."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import signal
import sys
import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fcp_core.aggregation import jobs
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob, start_engine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_dask.plugin import FACTORY
from fcp_dask.versions import mismatches

pytestmark = pytest.mark.slow

LIMIT = 180.0
JOBS = "fcp_core.testing.engine_jobs"
INTRINSIC = Intrinsic(
    "kept_sum",
    (TensorSpec("v", DataType.INT64, ()),),
    (TensorSpec("out", DataType.INT64, (2,)),),
)
JOB = FoldJob(configuration_to_proto([INTRINSIC]).SerializeToString())


@pytest.fixture
def kept(monkeypatch):
    """The aggregator of the tests, which workers can import as well."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "worker_path"))
    import fcp_dask_kept

    return {each.name: each for each in (fcp_dask_kept.KEPT, fcp_dask_kept.HEAVY)}


def waiting(folder, more=0):
    """Return the arguments of a job that waits."""
    folder.mkdir(exist_ok=True)
    return str(folder).encode() + b"\0" + bytes(more)


def running(folder):
    return [int(path.name.partition("-")[2]) for path in folder.glob("running-*")]


def until(condition):
    limit = threading.Event()
    for _ in range(int(LIMIT / 0.02)):
        if found := condition():
            return found
        limit.wait(0.02)
    raise AssertionError("waited too long")


def message_of(future, code):
    error = future.exception(LIMIT)
    assert isinstance(error, StatusError), error
    assert error.code is code
    return error.message


def reported(fold):
    return open_checkpoint(fold.report().result(LIMIT))["out"].tolist()


def contribute(fold, numbers):
    for number in numbers:
        blob = write_checkpoint({"v": np.array(number, np.int64)}, "tf_v1")
        fold.add(str(number), blob).result(LIMIT)


def test_a_large_report_is_made_by_a_worker(dask_cluster, engine_of, kept, caplog):
    with engine_of(dask_cluster.options(), kept) as engine:
        fold = engine.open(JOB)
        contribute(fold, (1, 2, 4))
        total, pid = reported(fold)
        assert total == 7
        assert pid != os.getpid()
    with engine_of(dask_cluster.options(report_bytes=1000), kept) as engine:
        fold = engine.open(JOB)
        contribute(fold, (1, 2, 4))
        assert reported(fold) == [7, os.getpid()]
        heavy = replace(INTRINSIC, uri="heavy_sum")
        fold = engine.open(FoldJob(configuration_to_proto([heavy]).SerializeToString()))
        contribute(fold, (1, 2, 4))
        total, pid = reported(fold)
        assert total == 7
        assert pid != os.getpid()
        # One that no other process can import stays here, too.
        local = AggregatorFactory(
            "kept_sum",
            frozenset({"kept_sum"}),
            "local",
            lambda intrinsic, options: kept["kept_sum"].make(intrinsic, options),
            lambda intrinsic, options, data: kept["kept_sum"].load(intrinsic, options, data),
            needs_all_inputs=True,
        )
    caplog.set_level(logging.INFO)
    with engine_of(dask_cluster.options(), {"kept_sum": local}) as engine:
        fold = engine.open(JOB)
        contribute(fold, (8,))
        assert reported(fold) == [8, os.getpid()]
    assert "kept_sum reports in the server's own process" in caplog.text


def test_a_merge_is_done_here_and_needs_no_worker(dask_cluster, engine_of, kept, monkeypatch):
    parts = []
    with engine_of(dask_cluster.options(), kept) as engine:
        monkeypatch.setattr(engine._cluster, "run", lambda *job: pytest.fail("it was sent"))
        for number in (1, 2):
            fold = engine.open(JOB)
            contribute(fold, (number,))
            parts.append(fold.partial().result(LIMIT))
        packed = jobs.pack(kept, JOB, parts)
        assert engine.run(jobs.MERGE, packed).result(LIMIT) == jobs.merge(packed)


def test_a_report_waits_for_what_is_being_added(dask_cluster, engine_of, kept):
    with engine_of(dask_cluster.options(), kept) as engine:
        fold = engine.open(JOB)
        numbers = [1 << bit for bit in range(40)]
        blobs = [write_checkpoint({"v": np.array(n, np.int64)}, "tf_v1") for n in numbers]
        futures = [fold.add(str(n), blob) for n, blob in zip(numbers, blobs, strict=True)]
        report = fold.report()
        assert not any(future.exception(LIMIT) for future in futures)
        assert open_checkpoint(report.result(LIMIT))["out"].tolist()[0] == sum(numbers)


def test_the_scheduler_goes_away_and_comes_back(new_cluster, engine_of, tmp_path):
    cluster = new_cluster()
    cluster.start_scheduler()
    worker = cluster.start_worker()
    with engine_of(cluster.options()) as engine:
        for more in (0, 3 << 20):
            folder = tmp_path / str(more)
            arguments = waiting(folder, more)
            result = engine.run(f"{JOBS}:wait", arguments)
            until(lambda folder=folder: running(folder))
            cluster.kill(cluster.scheduler)
            cluster.kill(worker)
            cluster.start_scheduler()
            worker = cluster.start_worker()
            until(lambda folder=folder: len(running(folder)) == 2)
            (folder / "go").touch()
            assert result.result(LIMIT) == str(len(arguments)).encode()
        # Nothing was under way this time.
        cluster.kill(cluster.scheduler)
        cluster.kill(worker)
        cluster.start_scheduler()
        cluster.start_worker()
        assert engine.run(f"{JOBS}:double", b"1").result(LIMIT) == b"11"


def test_what_the_cluster_cannot_do_is_done_here(new_cluster, engine_of, tmp_path, caplog):
    cluster = new_cluster()
    cluster.start_scheduler()
    caplog.set_level(logging.INFO, "fcp.services")  # which is what "fcp serve" shows
    with engine_of(cluster.options(patience=1.0)) as engine:
        assert f"heavy work goes to {cluster.address}" in caplog.text
        assert "the Dask cluster has no workers yet" in caplog.text
        assert engine.run(f"{JOBS}:where", b"").result(LIMIT) == str(os.getpid()).encode()
        assert "has had no worker for 1 s" in caplog.text
        worker = cluster.start_worker()
        assert until(lambda: int(engine.run(f"{JOBS}:where", b"").result(LIMIT)) != os.getpid())
        # All workers go, in the middle.
        waits = engine.run(f"{JOBS}:wait", waiting(tmp_path / "1"))
        until(lambda: running(tmp_path / "1"))
        cluster.kill(worker)
        until(lambda: os.getpid() in running(tmp_path / "1"))
        (tmp_path / "1" / "go").touch()
        waits.result(LIMIT)
        # The scheduler sleeps, and then it goes.
        os.kill(cluster.scheduler.pid, signal.SIGSTOP)
        assert engine.run(f"{JOBS}:where", b"").result(LIMIT) == str(os.getpid()).encode()
        assert "the Dask scheduler has not answered for 1 s" in caplog.text
        cluster.kill(cluster.scheduler)
        assert engine.run(f"{JOBS}:where", b"").result(LIMIT) == str(os.getpid()).encode()
        assert f"no Dask scheduler answers at {cluster.address}" in caplog.text


@pytest.mark.parametrize("size", [0, 3 << 20])
def test_a_job_that_kills_workers_is_given_up(dask_cluster, engine_of, kept, size):
    with engine_of(dask_cluster.options(), kept) as engine:
        message = message_of(engine.run("fcp_dask_kept:die", bytes(size)), Code.INTERNAL)
        assert "the job fcp_dask_kept:die was given up: 4 Dask workers died with it" in message
        # The nannies brought them back.
        assert engine.run(f"{JOBS}:double", b"2").result(LIMIT) == b"22"


def test_what_nobody_wants_any_more_is_cancelled(dask_cluster, engine_of, kept, tmp_path):
    with engine_of(dask_cluster.options(), kept) as engine:
        jobs = [engine.run(f"{JOBS}:wait", waiting(tmp_path / "1")) for _ in range(6)]
        until(lambda: len(running(tmp_path / "1")) == 2)
        for job in jobs:
            assert job.cancel()
        fold = engine.open(JOB)
        contribute(fold, (1,))
        report = fold.report()
        fold.abort()
        assert "aborted" in message_of(report, Code.ABORTED)
        (tmp_path / "1" / "go").touch()
        # As many as there are workers have begun, and the workers are free for others.
        others = [engine.run(f"{JOBS}:where", b"") for _ in range(6)]
        assert {int(job.result(LIMIT)) for job in others} <= set(running(tmp_path / "1"))
        with pytest.raises(CancelledError):
            jobs[0].result(0)


def test_stopping_aborts_what_is_under_way(dask_cluster, engine_of, tmp_path):
    with engine_of(dask_cluster.options()) as engine:
        job = engine.run(f"{JOBS}:wait", waiting(tmp_path / "1"))
        until(lambda: running(tmp_path / "1"))
    assert "the server has stopped" in message_of(job, Code.ABORTED)
    assert "the server has stopped" in message_of(engine.run(f"{JOBS}:where", b""), Code.ABORTED)
    (tmp_path / "1" / "go").touch()


def test_the_start_does_not_hold_up_the_event_loop(dask_cluster):
    engine = FACTORY.make({}, dask_cluster.options())

    async def main():
        started = asyncio.ensure_future(start_engine(engine))
        turns = 0
        while not started.done():
            turns += 1
            await asyncio.sleep(0)
        await started
        await engine.stop()
        return turns

    # What waits for a connection leaves the loop many turns.
    assert asyncio.run(main()) > 10


def refusal(options):
    """Return why an engine does not start; nothing of it is left."""
    engine = FACTORY.make({}, options)
    with pytest.raises(UsageError) as caught:
        asyncio.run(start_engine(engine))
    assert "fcp-dask" not in {thread.name for thread in threading.enumerate()}
    return str(caught.value)


def test_nobody_answers(dask_cluster):
    why = refusal(dask_cluster.options(address="tcp://127.0.0.1:9", patience=0.3))
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in why
    assert "dask scheduler" in why


def test_workers_with_other_versions_are_refused(new_cluster, tmp_path):
    cluster = new_cluster()
    cluster.start_scheduler()
    other = tmp_path / "fcp_server-9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: fcp-server\nVersion: 9.9\n")
    cluster.start_worker(path=[tmp_path])

    cluster.wait_for_workers(1)
    message = refusal(cluster.options())
    assert "need the same packages as the server" in message
    here = importlib.metadata.version("fcp-server")
    assert f"fcp-server: this server has {here}, the worker tcp://127.0.0.1" in message
    assert message.endswith("has 9.9.")


def test_differences_that_matter():
    mine = {"python": "3.11.7.final.0", "numpy": "1.25.2", "fcp-server": "0.1.0", "here": None}
    assert mismatches(mine, {}, ["fcp-server", "here"]) == []
    fine = {**mine, "python": "3.11.9.final.0", "numpy": "1.26.0", "here": "1"}
    assert mismatches(mine, {"a": fine}, ["fcp-server", "here"]) == []
    assert mismatches(mine, {"a": {**mine, "python": "3.12.1.final.0"}}, []) == [
        "python: this server has 3.11.7, the worker a has 3.12.1"
    ]
    two = {name: {**mine, "numpy": "2.0.1", "fcp-server": None} for name in "ab"}
    assert mismatches(mine, two, ["fcp-server"]) == [
        "numpy: this server has 1.25.2, each of 2 workers (a, ...) has 2.0.1",
        "fcp-server: this server has 0.1.0, each of 2 workers (a, ...) lacks it",
    ]


def test_what_workers_lack_is_named_and_done_here(new_cluster, engine_of, kept, caplog):
    cluster = new_cluster()
    cluster.start_scheduler()
    cluster.path = [path for path in sys.path if not path.endswith("worker_path")]
    cluster.start_worker()
    with engine_of(cluster.options(), kept) as engine:
        fold = engine.open(JOB)
        contribute(fold, (1,))
        assert reported(fold) == [1, os.getpid()]
        assert "kept_sum (No module named 'fcp_dask_kept')" in caplog.text
        assert "install the same packages there" in caplog.text
        assert engine.run("fcp_dask_kept:here", b"1").result(LIMIT) == b"1"
        assert "No module named 'fcp_dask_kept'; the job" in caplog.text


def test_an_encrypted_cluster(new_cluster, engine_of, tmp_path):
    from distributed import Security

    temporary = Security.temporary()
    files = {}
    for name in ("tls_ca_file", "tls_client_cert", "tls_client_key"):
        files[name] = tmp_path / name
        files[name].write_text(getattr(temporary, name))
    given = ("--protocol", "tls", "--tls-ca-file", files["tls_ca_file"])
    given += ("--tls-cert", files["tls_client_cert"], "--tls-key", files["tls_client_key"])
    cluster = new_cluster(given, given)
    cluster.start_scheduler()
    cluster.start_worker()
    assert cluster.address.startswith("tls://")
    with engine_of(cluster.options(**files)) as engine:
        assert int(engine.run(f"{JOBS}:where", b"").result(LIMIT)) != os.getpid()
    # A stranger is not let in.
    assert "no Dask scheduler answers" in refusal(cluster.options(patience=1.0))
    with pytest.raises(UsageError, match="tls_ca_file: the address must begin with tls://"):
        FACTORY.make({}, cluster.options(address="tcp://127.0.0.1:9", tls_ca_file=tmp_path))


def test_a_worker_dies_in_the_middle(dask_cluster, engine_of, tmp_path):
    with engine_of(dask_cluster.options()) as engine:
        for more in (0, 3 << 20):
            folder = tmp_path / str(more)
            result = engine.run(f"{JOBS}:wait", waiting(folder, more))
            (pid,) = until(lambda folder=folder: running(folder))
            os.kill(pid, signal.SIGKILL)
            until(lambda folder=folder: len(running(folder)) == 2)
            (folder / "go").touch()
            assert result.result(LIMIT) == str(len(waiting(folder, more))).encode()


def test_dasks_own_configuration_names_the_cluster(dask_cluster, engine_of, monkeypatch):
    import dask

    with dask.config.set({"scheduler-address": dask_cluster.address}):
        options = dask_cluster.options(address=None)
        with engine_of(options) as engine:
            assert int(engine.run(f"{JOBS}:where", b"").result(LIMIT)) != os.getpid()
    with pytest.raises(UsageError, match="workers: a cluster of this machine needs one"):
        FACTORY.make({}, options)
