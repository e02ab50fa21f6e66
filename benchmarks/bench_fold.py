"""What it costs to fold a contribution, compared with adding its numbers.

Run ``python benchmarks/bench_fold.py``. Each line is the median time of one fold (open the
checkpoint, check its checksums unless the line says otherwise, validate, accumulate) as a multiple
of ``np.add(total, values, out=total)`` on as many float32 values in the same run: ratios hold from
one machine to the next, seconds do not. The contributions take turns, so that neither the reference
nor the fold finds its input in the processor's cache.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import numpy as np

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import CheckpointFormat, FoldJob
from fcp_core.aggregation.fold import bind_job
from fcp_core.aggregation.local import LocalEngine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}
WEIGHT = TensorSpec("weight", DataType.FLOAT)

#: Bytes of contributions that take turns: more than a processor's cache holds.
_ROTATION = 256 << 20


def median(action: Callable[[Any], Any], inputs: Sequence[Any], repeats: int) -> float:
    """Return the median time of *action* in seconds over *inputs* in turn."""
    turns: Iterator[Any] = itertools.cycle(inputs)
    action(next(turns))
    times = []
    for _ in range(repeats):
        item = next(turns)
        start = time.perf_counter()
        action(item)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def job(uri: str, sizes: Sequence[int]) -> FoldJob:
    """Return a job of one intrinsic for each tensor."""
    intrinsics = []
    for index, size in enumerate(sizes):
        value = TensorSpec(f"update/{index}", DataType.FLOAT, (size,))
        inputs = (value,) if uri == "federated_sum" else (value, WEIGHT)
        output = TensorSpec(f"out/{index}", DataType.FLOAT, (size,))
        intrinsics.append(Intrinsic(uri, inputs, (output,)))
    return FoldJob(configuration_to_proto(intrinsics).SerializeToString())


def measure(sizes: Sequence[int], repeats: int) -> list[tuple[str, float]]:
    """Return the medians for contributions of tensors of these sizes, the reference first."""
    total = sum(sizes)
    count = max(2, min(8, _ROTATION // (4 * total)))
    rng = np.random.default_rng(0)
    updates = [
        {f"update/{i}": rng.normal(size=size).astype("f4") for i, size in enumerate(sizes)}
        | {"weight": np.array(2, "f4")}
        for _ in range(count)
    ]
    flat = [np.concatenate(list(update.values())[:-1]) for update in updates]
    sums = np.zeros_like(flat[0])
    rows = [("np.add", median(lambda values: np.add(sums, values, out=sums), flat, repeats))]
    formats: Sequence[CheckpointFormat] = get_args(CheckpointFormat)
    for checkpoint_format in formats:
        blobs = [write_checkpoint(update, checkpoint_format) for update in updates]
        for uri in ("federated_sum", "federated_weighted_mean"):
            aggregator = CheckpointAggregator(bind_job(FACTORIES, job(uri, sizes)))
            for verify in (True, False) if checkpoint_format == "tf_v1" else (True,):

                def fold(
                    blob: bytes, target: CheckpointAggregator = aggregator, verify: bool = verify
                ) -> None:
                    target.accumulate(open_checkpoint(blob, verify=verify))

                name = f"{checkpoint_format}: {uri}" + ("" if verify else ", unverified")
                rows.append((name, median(fold, blobs, repeats)))
        rows.append(
            (f"{checkpoint_format}: federated_sum, 2 threads", threaded(sizes, blobs, repeats))
        )
    return rows


def threaded(sizes: Sequence[int], blobs: Sequence[bytes], repeats: int) -> float:
    """Return the time a contribution of a local engine with two threads, many at once."""
    engine = LocalEngine(FACTORIES, workers=2, inline_bytes=0)
    engine.start()
    fold = engine.open(job("federated_sum", sizes))
    ids = itertools.count()
    batch = 2 * len(blobs)

    def contribute(blobs: Sequence[bytes]) -> None:
        futures = [fold.add(str(next(ids)), blob) for blob in [*blobs, *blobs]]
        for future in futures:
            future.result()

    seconds = median(contribute, [blobs], max(1, repeats // batch))
    engine.stop()
    return seconds / batch


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args(arguments)
    cases = [(f"{size:,} float32", [size]) for size in options.sizes]
    cases.append(("500 tensors of 2,000 float32", [2_000] * 500))
    for title, sizes in cases:
        rows = measure(sizes, options.repeats)
        reference = rows[0][1]
        print(f"{title} (np.add: {reference * 1e3:.2f} ms)")
        for name, seconds in rows[1:]:
            print(f"  {seconds / reference:6.2f} x  {name}")


if __name__ == "__main__":
    main()
