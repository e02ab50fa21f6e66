"""What a job costs on a Dask cluster of two workers, compared with the local engine.

Run ``python benchmarks/bench_dask.py``. Both take turns, on one machine: the cluster has no more
processors than the local engine, so the ratio says what the way there and back costs. The shortest
time of each counts.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
from goals import Goal

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation import jobs
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import Engine, FoldJob, Partial, start_engine, stop_engine
from fcp_core.aggregation.fold import fold
from fcp_core.aggregation.local import LocalEngine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# Workers get the path of this process.
for folder in ("plugins/engine_dask/src", "aggregators/robust/src"):
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))

from fcp_dask.cluster import Settings  # noqa: E402
from fcp_dask.engine import DaskEngine  # noqa: E402
from fcp_robust.plugin import FACTORIES as ROBUST  # noqa: E402

AGGREGATORS = {factory.name: factory for factory in (*fcp_register_aggregators(), *ROBUST)}
#: What is measured: a title, the intrinsic, its aggregator, the job.
CASES = (
    ("merge {} partials of {:g} MB", "federated_sum", "federated_sum", jobs.MERGE),
    ("median of {} kept updates of {:g} MB", "federated_mean", "median", jobs.REPORT),
    ("Krum of {} kept updates of {:g} MB", "federated_mean", "krum", jobs.REPORT),
)


def arguments_of(uri: str, aggregator: str, count: int, size: int) -> bytes:
    """Return the arguments of a job with *count* partials of one contribution each."""
    value = TensorSpec("v", DataType.FLOAT, (size,))
    intrinsic = Intrinsic(uri, (value,), (TensorSpec("out", DataType.FLOAT, (size,)),))
    configuration = configuration_to_proto([intrinsic]).SerializeToString()
    job = FoldJob(configuration, {uri: aggregator}, {"krum": {"byzantine": 1}})
    rng = np.random.default_rng(0)
    partials: list[Partial] = []
    for number in range(count):
        update = write_checkpoint({"v": rng.normal(size=size).astype("f4")}, "federated_compute")
        one, refused = fold(AGGREGATORS, job, [(str(number), update)])
        assert not refused
        partials.append(one)
    return jobs.pack(AGGREGATORS, job, partials)


def times(runs: Sequence[Callable[[], Future[bytes]]], repeats: int) -> list[float]:
    """Return the shortest time of each in seconds; they take turns and agree."""
    seconds: list[list[float]] = [[] for _ in runs]
    results: list[bytes] = [b""] * len(runs)
    for _ in range(repeats):
        for place, run in enumerate(runs):
            start = time.perf_counter()
            results[place] = run().result()
            seconds[place].append(time.perf_counter() - start)
    assert len(set(results)) == 1, "the cluster and the local engine do not agree"
    return list(map(min, seconds))


def measure(count: int, size: int, repeats: int) -> list[tuple[str, float, float]]:
    """Return the title of each case, and the seconds on the cluster and here.

    The last one is a merge that is sent all the same.
    """
    settings = Settings(address=None, workers=2, tls={}, patience=60.0)
    dask = DaskEngine(AGGREGATORS, settings, 0)
    engines: list[Engine] = [dask, LocalEngine(AGGREGATORS)]
    for engine in engines:
        asyncio.run(start_engine(engine))
    try:
        rows = []
        for title, uri, aggregator, job in CASES:
            data = arguments_of(uri, aggregator, count, size)
            runs = [partial(engine.run, job, data) for engine in engines]
            cluster, local = times(runs, repeats)
            rows.append((title.format(count, size * 4 / 1e6), cluster, local))
        data = arguments_of(*CASES[0][1:3], count, size)
        runs = [partial(run, jobs.MERGE, data) for run in (dask._cluster.run, engines[1].run)]
        cluster, local = times(runs, repeats)
        return [*rows, ("the merge, sent to a worker", cluster, local)]
    finally:
        for engine in engines:
            asyncio.run(stop_engine(engine))


def goals(quick: bool) -> list[Goal]:
    """Return the goals; the engine does a merge here, since the way there takes longer."""
    rows = measure(8 if quick else 32, 1_000_000, 3 if quick else 5)
    return [
        Goal("cluster", f"{title}: a Dask cluster of two workers / the local engine", a / b, 2.0)
        for title, a, b in rows[: len(CASES)]
    ]


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--size", type=int, default=1_000_000, help="float32 in each update")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    for title, cluster, local in measure(given.count, given.size, given.repeats):
        print(f"{cluster / local:7.2f} x  {cluster * 1e3:7.0f} ms / {local * 1e3:6.0f} ms  {title}")


if __name__ == "__main__":
    main()
