"""One task, four ways to aggregate it: a sum, a weighted mean, a sum under masks, one with noise.

Twelve devices each know for how many minutes they were used on each day of a week. The server asks
them four times. Devices, server and task stay the same; what differs is one line of ``WAYS``.

    python examples/four_ways/run.py
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from fcp_core.client import CallableStore, Client, Outcome, task
from fcp_core.plugins.manager import Plugins
from fcp_core.server.server import Server
from fcp_core.server.thread import ServerThread
from fcp_core.tasks.python import ArraySpec, PythonTask
from fcp_secagg.device import SecureAggregationDevice

POPULATION = "phones"
DEVICES = 12
DAY = 24 * 60

NOISE = {"aggregators": {"federated_sum": "dp_gaussian"}}

WAYS: Mapping[str, Mapping[str, Any]] = {
    "sum": {"aggregation": "sum"},
    "weighted mean": {"aggregation": "weighted_mean", "dtype": "float64"},
    "secure sum": {"aggregation": "secure_sum", "more": {"protocol": "secagg"}},
    "sum with noise": {"aggregation": "sum", "dtype": "float64", "weights": False, "more": NOISE},
}


def minutes(device: int) -> np.ndarray:
    """Return what a device knows: ``int64[7]``."""
    return np.random.default_rng(device).integers(0, DAY // 2, 7)


def weight(device: int) -> float:
    """Return what a device counts by in a weighted mean: how many people use it."""
    return 1.0 + device % 3


@task("minutes")
def answer(
    arrays: Mapping[str, np.ndarray], examples: Any, settings: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], float]:
    """Answer as a device does, whatever becomes of it."""
    (device,) = (int(example) for example in examples)
    return {"minutes": minutes(device)}, weight(device)


def asked(
    aggregation: Any,
    dtype: str = "int64",
    weights: bool = True,
    more: Mapping[str, Any] | None = None,
) -> PythonTask:
    """Return the task, aggregated in one of the ways."""
    return PythonTask(
        population=POPULATION,
        name="minutes",
        task="minutes",
        goal_count=DEVICES,
        outputs={"minutes": ArraySpec(dtype, (7,), largest=DAY)},
        aggregation=aggregation,
        sum_weights=weights,
        more={"over_selection": 1.0, **(more or {})},
    )


def make_device(url: str, number: int) -> Client:
    """Return a device that takes part in all of it."""
    store = CallableStore(lambda selector: [str(number).encode()])
    return Client(url, POPULATION, stores=store, protocols=[SecureAggregationDevice()])


def contribute(client: Client) -> None:
    """Come back until it has contributed, and then no more."""
    for result in client.run(num_rounds=-1):
        if result.outcome is Outcome.CONTRIBUTED:
            return


def main() -> int:
    """Ask four times; return 0 if all is as it should be."""
    plugins = Plugins.load(config_file=Path(__file__).parent / "fcp.cfg")
    found = {}
    with ExitStack() as stack:
        server = stack.enter_context(ServerThread(Server(plugins, populations=[POPULATION])))
        devices = [
            stack.enter_context(make_device(server.server.url, number)) for number in range(DEVICES)
        ]
        threads = stack.enter_context(ThreadPoolExecutor(DEVICES))
        for name, way in WAYS.items():
            one = asked(**way)
            done = [threads.submit(contribute, device) for device in devices]
            found[name] = one.decode(server.complete(one.to_spec({}))).arrays["minutes"]
            for device in done:
                device.result()
            shown = " ".join(f"{value:8.1f}" for value in found[name])
            print(f"{name:15} {shown}", flush=True)
    return check(found)


def check(found: Mapping[str, np.ndarray]) -> int:
    """Compare with what the devices know; return 0 if it is that, but for the noise."""
    known = np.array([minutes(device) for device in range(DEVICES)])
    weights = [weight(device) for device in range(DEVICES)]
    total = known.sum(axis=0)
    noise = found["sum with noise"] - total
    right = {
        "the sums are those of the devices": np.array_equal(found["sum"], total),
        "so is the weighted mean": np.allclose(
            found["weighted mean"], np.average(known, axis=0, weights=weights)
        ),
        "the sum under masks is the plain one": np.array_equal(found["secure sum"], total),
        # Its standard deviation is clip times noise_multiplier, 200.
        "the noise is there, and no more": bool(noise.any() and np.abs(noise).max() < 8 * 200),
    }
    for what, is_so in right.items():
        print(f"{what}: {'yes' if is_so else 'NO'}")
    return 0 if all(right.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
