"""What it costs to fold a contribution, compared with adding its numbers.

Run ``python benchmarks/bench_fold.py``. Each line is the time of one fold (open the checkpoint,
check its checksums unless the line says otherwise, validate, accumulate) as a multiple of
``np.add(total, values, out=total)`` on as many float32 values, or for a weighted mean of the same
product and sum in NumPy, fused through a small scratch array. Reference and fold take turns, over
contributions that take turns as well, so that both meet the same machine and neither finds its
input in the processor's cache. The shortest time of each counts, for other processes can only add
to it: ratios hold from one machine to the next, seconds do not.
``--numpy`` leaves the compiled loops out.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import numpy as np
from goals import Goal

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import CheckpointFormat, FoldJob
from fcp_core.aggregation.fold import bind_job
from fcp_core.aggregation.local import LocalEngine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import CheckpointReader, write_checkpoint
from fcp_core.protocol.checkpoint.kernels import Kernels, NumpyKernels, default_kernels

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}
WEIGHT = TensorSpec("weight", DataType.FLOAT)

#: What is measured: a title, and the sizes of the tensors.
CASES = (
    ("1e6 float32", (1_000_000,)),
    ("1e7 float32", (10_000_000,)),
    ("500 tensors of 2,000 float32", (2_000,) * 500),
)

#: Bytes of contributions that take turns: more than a processor's cache holds.
_ROTATION = 256 << 20

#: Elements that the reference of the weighted mean multiplies at a time.
_CHUNK = 1 << 16

Action = Callable[[Any], Any]


def interleaved(
    actions: Sequence[Action], inputs: Sequence[Sequence[Any]], repeats: int
) -> list[float]:
    """Return the shortest time of each action in seconds; they and their inputs take turns."""
    turns: list[Iterator[Any]] = list(map(itertools.cycle, inputs))
    times: list[list[float]] = [[] for _ in actions]
    for index in range(repeats + 3):
        for action, items, seconds in zip(actions, turns, times, strict=True):
            item = next(items)
            start = time.perf_counter()
            action(item)
            # The first contributions are parsed, and their layout is remembered.
            if index >= 3:
                seconds.append(time.perf_counter() - start)
    return list(map(min, times))


def job(uri: str, sizes: Sequence[int]) -> FoldJob:
    """Return a job of one intrinsic for each tensor."""
    intrinsics = []
    for index, size in enumerate(sizes):
        value = TensorSpec(f"update/{index}", DataType.FLOAT, (size,))
        inputs = (value,) if uri == "federated_sum" else (value, WEIGHT)
        output = TensorSpec(f"out/{index}", DataType.FLOAT, (size,))
        intrinsics.append(Intrinsic(uri, inputs, (output,)))
    return FoldJob(configuration_to_proto(intrinsics).SerializeToString())


def fused_loop(total: Any, size: int) -> Action:
    """Return the reference of a weighted mean: ``total += values * 2`` through a scratch array."""
    scratch = np.empty(min(_CHUNK, size), np.float32)
    weight = np.float32(2)

    def run(values: Any) -> None:
        for start in range(0, size, _CHUNK):
            part = total[start : start + _CHUNK]
            product = scratch[: part.size]
            np.multiply(values[start : start + _CHUNK], weight, out=product)
            np.add(part, product, out=part)

    return run


def measure(
    sizes: Sequence[int], repeats: int, kernels: Kernels
) -> list[tuple[str, float, float, float | None]]:
    """Return what was folded, the ratio to its reference, the reference's seconds and the limit."""
    size = sum(sizes)
    count = max(2, min(16, _ROTATION // (8 * size)))
    rng = np.random.default_rng(0)
    updates = [
        {f"update/{i}": rng.normal(size=size).astype("f4") for i, size in enumerate(sizes)}
        | {"weight": np.array(2, "f4")}
        for _ in range(count)
    ]
    flat = [np.concatenate(list(update.values())[:-1]) for update in updates]
    sums = np.zeros_like(flat[0])
    references: dict[str, tuple[str, Action]] = {
        "federated_sum": ("np.add", lambda values: np.add(sums, values, out=sums)),
        "federated_weighted_mean": ("fused loop", fused_loop(sums, size)),
    }
    rows: list[tuple[str, float, float, float | None]] = []
    formats: Sequence[CheckpointFormat] = get_args(CheckpointFormat)
    for checkpoint_format in formats:
        # The server has a contribution in an array of bytes.
        blobs = [
            np.frombuffer(bytearray(write_checkpoint(update, checkpoint_format)), np.uint8)
            for update in updates
        ]
        for uri, (name, reference) in references.items():
            for verify in (True, False) if checkpoint_format == "tf_v1" else (False,):
                reader = CheckpointReader(verify=verify, kernels=kernels)
                bound = bind_job(FACTORIES, job(uri, sizes))
                aggregator = CheckpointAggregator(bound, kernels=kernels)

                def fold(
                    blob: Any,
                    reader: CheckpointReader = reader,
                    target: CheckpointAggregator = aggregator,
                ) -> None:
                    target.accumulate(reader.open(blob))

                base, seconds = interleaved([reference, fold], [flat, blobs], repeats)
                checked = ", unverified" if checkpoint_format == "tf_v1" and not verify else ""
                limit = 1.6 if verify and uri == "federated_sum" else 1.3
                if len(sizes) > 1:
                    limit = 3.0
                what = f"{checkpoint_format}: {uri}{checked} / {name}"
                rows.append((what, seconds / base, base, limit))
        (base,) = interleaved([references["federated_sum"][1]], [flat], repeats)
        shared = threaded(sizes, blobs, repeats, kernels)
        rows.append(
            (f"{checkpoint_format}: federated_sum, 2 threads / np.add", shared / base, base, None)
        )
    return rows


def threaded(sizes: Sequence[int], blobs: Sequence[Any], repeats: int, kernels: Kernels) -> float:
    """Return the time a contribution of a local engine with two threads, many at once."""
    engine = LocalEngine(
        FACTORIES,
        workers=2,
        inline_bytes=0,
        inline_added_bytes=0,
        compiled=not isinstance(kernels, NumpyKernels),
    )
    engine.start()
    fold = engine.open(job("federated_sum", sizes))
    ids = itertools.count()

    def contribute(blobs: Sequence[Any]) -> None:
        futures = [
            fold.add(str(next(ids)), memoryview(blob).toreadonly()) for blob in [*blobs, *blobs]
        ]
        for future in futures:
            future.result()

    batch = 2 * len(blobs)
    (seconds,) = interleaved([contribute], [[blobs]], max(5, repeats // batch))
    engine.stop()
    return seconds / batch


def goals(quick: bool) -> list[Goal]:
    """Return the goals of the fold; *quick* measures fewer times."""
    return [
        Goal("fold", f"{title}, {what}", ratio, limit)
        for title, sizes in CASES
        for what, ratio, _, limit in measure(sizes, 50 if quick else 200, default_kernels())
        if limit is not None
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--numpy", action="store_true", help="leave the compiled loops out")
    options = parser.parse_args(arguments)
    kernels = NumpyKernels() if options.numpy else default_kernels()
    print(f"loops: {kernels.name}")
    for title, sizes in CASES:
        print(title)
        for name, ratio, seconds, limit in measure(sizes, options.repeats, kernels):
            verdict = (
                ""
                if limit is None
                else f"  at most {limit}: {'met' if ratio <= limit else 'not met'}"
            )
            print(f"  {ratio:6.2f} x {seconds * 1e3:6.3f} ms  {name}{verdict}")


if __name__ == "__main__":
    main()
