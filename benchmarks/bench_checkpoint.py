"""How the checkpoint codecs compare with moving the same bytes in NumPy.

Run ``python benchmarks/bench_checkpoint.py``. Each line is the median of several runs, given as a
multiple of ``np.copy`` and of ``np.add(a, b, out=a)`` on as many float32 values in the same run:
ratios hold from one machine to the next, seconds do not. ``read + add`` opens the file, checks its
checksums and adds the tensor to a running sum, which is what a server does with a contribution.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from fcp_core.protocol.checkpoint import Format, open_checkpoint, write_checkpoint


def median(action: Callable[[], Any], repeats: int) -> float:
    """Return the median time of *action* in seconds, after one run that does not count."""
    action()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(size: int, repeats: int) -> list[tuple[str, float]]:
    """Return the medians for one tensor of *size* float32 values, the two references first."""
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    total = np.zeros_like(values)
    rows = [
        ("np.copy", median(lambda: np.copy(values), repeats)),
        ("np.add", median(lambda: np.add(total, values, out=total), repeats)),
    ]
    for format in get_args(Format):
        data = write_checkpoint({"update/0": values}, format)

        def add(verify: bool, data: bytes = data) -> None:
            np.add(total, open_checkpoint(data, verify=verify)["update/0"], out=total)

        def write(format: Format = format) -> bytes:
            return write_checkpoint({"update/0": values}, format)

        def read(data: bytes = data) -> Any:
            return open_checkpoint(data)["update/0"]

        rows += [
            (f"{format}: write", median(write, repeats)),
            (f"{format}: read", median(read, repeats)),
            (f"{format}: read + add", median(lambda: add(True), repeats)),
        ]
        if format == "tf_v1":
            rows.append(("tf_v1: read + add, unverified", median(lambda: add(False), repeats)))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7], metavar="N")
    parser.add_argument("--repeats", type=int, default=15, metavar="N")
    options = parser.parse_args(arguments)
    print(f"{'values':>10}  {'what':30}{'ms':>9}{'/ np.copy':>11}{'/ np.add':>10}")
    for size in map(int, options.sizes):
        rows = measure(size, options.repeats)
        copy, add = rows[0][1], rows[1][1]
        for what, seconds in rows:
            print(
                f"{size:>10}  {what:30}{seconds * 1e3:9.3f}{seconds / copy:11.2f}"
                f"{seconds / add:10.2f}"
            )


if __name__ == "__main__":
    main()
