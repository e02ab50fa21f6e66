"""Rounds of a series on a server: each goes on where the last one ended, also after a restart."""

import numpy as np
import pytest

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import CallableStore, Client
from fcp_core.client.python_tasks import PythonTaskExecutor
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.python_plan import KIND
from fcp_core.server import Server, ServerThread
from fcp_core.tasks.python import ArraySpec, PythonTask
from fcp_core.testing import make_device, query_task
from fcp_privacy.plugin import PrivacyPlugin

SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("v", DataType.DOUBLE, (2,)),),
    (TensorSpec("sum", DataType.DOUBLE, (2,)),),
)


@pytest.fixture
def serve(tmp_path):
    def serve(**overrides):
        options = {
            "storage": "sqlite",
            "storage.sqlite.path": str(tmp_path / "fcp.sqlite"),
            "retry_min": "0s",
            "retry_max": "0s",
            "check_in_hold": "5s",
            **{name.replace("__", "."): str(value) for name, value in overrides.items()},
        }
        plugins = Plugins.load(
            environ={}, working_folder=tmp_path, overrides=options, extra=[PrivacyPlugin()]
        )
        server = Server(plugins)
        server.services.add_population("people")
        return ServerThread(server)

    return serve


def test_the_noise_of_a_series_goes_on_over_restarts(serve):
    """What all rounds cost so far takes the place of what they had cost before."""
    totals = []
    for _ in range(2):
        with serve(
            aggregator="dp_tree",
            aggregator__dp_tree__clip=1000,
            aggregator__dp_tree__noise_multiplier=1,
            privacy__rho=14,
        ) as running:
            for _ in range(2):
                spec = query_task(SUM, name="ftrl")
                task = running.run(running.server.services.tasks.submit(spec)).result(60)
                with make_device(running.server.url, {"v": [3.0, 4.0]}) as device:
                    device.run_once()
                result = running.run(running.server.services.tasks.wait(task)).result(60)
                status = running.run(running.server.services.tasks.status(task)).result(60)
                totals.append((result, status.release))
    rounds = [release["noise"][0]["round"] for _, release in totals]
    assert rounds == [1, 2, 3, 4]
    costs = [release["costs"][0]["event"]["rho"] for _, release in totals]
    # A device that is in all rounds counts in each node as often as that has rounds.
    assert costs == [0.5, (2 + 4) / 2, (3 + 4) / 2, (4 + 8 + 16) / 2]
    assert [release["costs"][0]["name"] for _, release in totals] == [
        "series/people/ftrl/dp_tree/0"
    ] * 4


def test_a_device_learns_the_clip_of_its_round(serve):
    seen = []

    def clip_here(arrays, examples, options):
        seen.append(float(arrays["clip"]))
        update = np.array([3.0, 4.0])
        return {"update": update * min(1.0, seen[-1] / 5.0)}, 1

    task = PythonTask(
        "people",
        "adaptive",
        "clip",
        goal_count=1,
        outputs={"update": ArraySpec("float64", (2,))},
        aggregation="mean",
        sum_weights=False,
        more={
            "aggregators": {"federated_mean": "dp_gaussian_adaptive"},
            "options": {
                "dp_gaussian_adaptive": {
                    "noise_multiplier": 0.001,
                    "clipped_count_stddev": 0.001,
                    "clients": 1,
                    "initial_clip": 1.0,
                    "clip_learning_rate": 1.0,
                    "clip_tensor": "clip",
                }
            },
        },
    )
    results = []
    with serve() as running:
        store = CallableStore(lambda selector: iter([b""]))
        executors = {KIND: PythonTaskExecutor({"clip": clip_here})}
        with Client(running.server.url, "people", stores=store, executors=executors) as client:
            for _ in range(3):
                spec = task.to_spec({"model": np.zeros(2)})
                id_ = running.run(running.server.services.tasks.submit(spec)).result(60)
                client.run_once()
                data = running.run(running.server.services.tasks.wait(id_)).result(60)
                results.append(task.decode(data).arrays["update"])
    # All are within the clip, as the device sees to that; so the clip falls by the rate's half.
    assert seen == pytest.approx([1.0, np.exp(-0.5), np.exp(-1.0)], rel=0.01)
    for clip, result in zip(seen, results, strict=True):
        assert np.linalg.norm(result) == pytest.approx(clip, rel=0.02)
