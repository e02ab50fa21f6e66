"""A Dask cluster of real processes, as ``dask scheduler`` and ``dask worker`` start one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcp_dask.plugin import FACTORY

#: Generous: other things take the processor.
LIMIT = 180.0
TLS = ("tls_ca_file", "tls_client_cert", "tls_client_key")


def until(condition, what):
    """Wait for a condition and return what it returns."""
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited too long for {what}")


class DaskCluster:
    """A scheduler, and workers that its nannies start again."""

    def __init__(self, folder, scheduler_options=(), worker_options=(), path=()):
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.file = folder / "scheduler.json"
        self.scheduler_options, self.worker_options = scheduler_options, worker_options
        self.path = [*map(str, path), *sys.path]
        self.processes = []
        self.port = 0
        self.scheduler = None

    def spawn(self, *arguments, path=()):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*map(str, path), *self.path]),
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "30s",
        }
        number = len(self.processes)
        with (self.folder / f"log-{number}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *map(str, arguments)],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,  # a nanny and its worker end together
            )
        self.processes.append(process)
        return process

    def start_scheduler(self):
        self.file.unlink(missing_ok=True)
        self.scheduler = self.spawn(
            *("scheduler", "--host", "127.0.0.1", "--port", self.port, "--no-dashboard"),
            *("--dashboard-address", "127.0.0.1:0", "--scheduler-file", self.file),
            *self.scheduler_options,
        )
        until(lambda: self.file.exists() and self.file.read_text(), "the scheduler")
        self.address = json.loads(self.file.read_text())["address"]
        self.port = int(self.address.rpartition(":")[2])

    def start_worker(self, path=()):
        return self.spawn(
            *("worker", self.address, "--nthreads", "1", "--nworkers", "1", "--host", "127.0.0.1"),
            *("--no-dashboard", "--local-directory", self.folder, *self.worker_options),
            path=path,
        )

    def wait_for_workers(self, count):
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=LIMIT)

    def kill(self, process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self):
        for process in self.processes:
            self.kill(process)

    def options(self, **more):
        return {
            "address": self.address,
            "workers": 0,
            "patience": LIMIT,
            "report_bytes": 0,
            **dict.fromkeys(TLS),
            **more,
        }


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory):
    """A scheduler and two workers that can import what is in ``tests/worker_path``."""
    folder = tmp_path_factory.mktemp("dask")
    cluster = DaskCluster(folder, path=[Path(__file__).parent / "worker_path"])
    try:
        cluster.start_scheduler()
        for _ in range(2):
            cluster.start_worker()
        cluster.wait_for_workers(2)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def new_cluster(tmp_path_factory):
    """Make further clusters; they end with the tests."""
    clusters = []

    def make(*arguments, **more):
        clusters.append(DaskCluster(tmp_path_factory.mktemp("dask"), *arguments, **more))
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.stop()


@pytest.fixture(scope="session")
def engine_of():
    """Return what runs an engine within a block."""
    import asyncio

    from fcp_core.aggregation.engine import start_engine, stop_engine

    @contextlib.contextmanager
    def run(options, factories=()):
        engine = FACTORY.make(dict(factories), options)
        asyncio.run(start_engine(engine))
        try:
            yield engine
        finally:
            asyncio.run(stop_engine(engine))

    return run
