"""The engine obeys the laws, on a cluster of which the kit kills workers."""

from __future__ import annotations

import asyncio
import os

import psutil
import pytest

from fcp_core.aggregation.engine import start_engine, stop_engine
from fcp_core.testing import EngineConformance
from fcp_dask.plugin import FACTORY

pytestmark = pytest.mark.slow


class TestDaskEngine(EngineConformance):
    factory = FACTORY
    expendable = True

    @pytest.fixture(autouse=True)
    def _cluster(self, dask_cluster, monkeypatch):
        monkeypatch.setattr(type(self), "options", dask_cluster.options())


def test_without_an_address_there_is_a_cluster_of_this_machine(dask_cluster):
    engine = FACTORY.make({}, dask_cluster.options(address=None, workers=2))
    asyncio.run(start_engine(engine))
    try:
        jobs = [engine.run("fcp_core.testing.engine_jobs:where", b"") for _ in range(2)]
        pids = {int(job.result(60)) for job in jobs}
        assert os.getpid() not in pids
        parents = {psutil.Process(pid).ppid() for pid in pids}
        assert parents == {os.getpid()}
    finally:
        asyncio.run(stop_engine(engine))
    # Nothing is left of it.
    assert not any(map(psutil.pid_exists, pids))
