"""A server, devices and the policy lab with a Dask cluster of real processes."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.lab import DeviceModel, Run, Scenario, sweep
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.policies import Selection, SelectionPolicy
from fcp_core.server import Server
from fcp_core.testing import RunningServer, make_device, query_task, run_devices
from fcp_dask import plugin

pytestmark = pytest.mark.slow

SMALL = Scenario(devices=DeviceModel(count=200), hours=2)


def test_devices_contribute_and_a_worker_reports(dask_cluster, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(dask_cluster.path[0])
    import fcp_dask_kept

    plugins = Plugins.load(
        environ={},
        working_folder=tmp_path,
        overrides={
            "engine": "dask",
            "engine.dask.address": dask_cluster.address,
            "engine.dask.report_bytes": 0,
            "storage": "memory",
        },
        extra=[plugin, fcp_dask_kept],
    )
    kept = Intrinsic(
        "kept_sum",
        (TensorSpec("x", DataType.INT64, (1,)),),
        (TensorSpec("out", DataType.INT64, (2,)),),
    )
    with RunningServer(Server(plugins, populations=["people"])) as server:
        task = server.submit(query_task(kept, goal_count=4))
        devices = [make_device(server.url, {"x": np.array([1 << n])}) for n in range(4)]
        run_devices(devices)
        total, pid = server.result(task)["out"].tolist()
    assert total == 0b1111
    assert pid not in (0, os.getpid())


def same(one, other):
    """Whether two reports say the same."""
    return (
        (one.policy, one.seed, one.rounds, one.turned_away, one.held, one.late)
        == (other.policy, other.seed, other.rounds, other.turned_away, other.held, other.late)
        and np.array_equal(one.contributions, other.contributions)
        and np.array_equal(one.check_ins, other.check_ins)
    )


def test_a_sweep_on_a_cluster_gives_the_same_reports(dask_cluster, engine_of):
    runs = [Run(p, SMALL, seed, f"{p}-{seed}") for p in ("fifo", "uniform") for seed in (1, 2)]
    here = sweep(runs)
    with engine_of(dask_cluster.options()) as engine:
        there = sweep(runs, engine=engine)
        assert [report.policy for report in there] == [run.label for run in runs]
        assert all(map(same, here, there))

        class Local(SelectionPolicy):
            def select(self, view):
                return Selection()

        with pytest.raises(Exception, match=r"Local cannot be sent to other processes.*only what"):
            sweep([Run(Local(), SMALL)], engine=engine)


def test_the_command_takes_a_clusters_address(dask_cluster, tmp_path):
    def simulate(*arguments):
        environment = {name: v for name, v in os.environ.items() if not name.startswith("FCP_")}
        command = [sys.executable, "-m", "fcp_core", "--set", "plugins=fcp_dask.plugin"]
        command += ["simulate", "fifo", "--devices", "200", "--hours", "2", "--vary", "seed=1,2"]
        return subprocess.run(
            [*command, "--csv", "-", *arguments],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    there = simulate("--cluster", dask_cluster.address)
    assert (there.returncode, there.stderr) == (0, "")
    assert there.stdout == simulate().stdout
    assert "fifo seed=2," in there.stdout
    nobody = simulate("--cluster", "nonsense://127.0.0.1:9")
    assert nobody.returncode == 2
    assert "no Dask scheduler answers at nonsense://127.0.0.1:9" in " ".join(nobody.stderr.split())
