"""A group-by of a million rows and a hundred thousand keys, plain and with noise.

Compared with what NumPy does for all rows at once, ``unique`` and ``add.at``, in the same run: all
contributions are validated and accumulated, and the result is made. Times are processor times, the
best of several.

    python benchmarks/bench_group_by.py [--quick]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from goals import Goal, main

sys.path.insert(0, str(Path(__file__).parents[1] / "aggregators" / "privacy" / "src"))

from fcp_aggregators.group_by import GroupBy
from fcp_core.aggregation.aggregator import Accumulator
from fcp_core.aggregation.release import ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, Tensor, TensorSpec
from fcp_privacy.group_by import DpGroupByAccumulator

ROWS, KEYS = 1_000_000, 100_000
DEVICES = 1000

KEY = TensorSpec("key", DataType.INT64, (-1,))
VALUE = TensorSpec("value", DataType.INT64, (-1,))
SUM = TensorSpec("sum", DataType.INT64, (-1,))
PLAIN = Intrinsic(
    "fedsql_group_by", (KEY,), (KEY,), nested=(Intrinsic("GoogleSQL:sum", (VALUE,), (SUM,)),)
)
BOUNDS = tuple(Parameter("", np.array(bound)) for bound in (100.0, -1.0, -1.0))
DP_SUM = Intrinsic("GoogleSQL:$differential_privacy_sum", (VALUE,), (SUM,), BOUNDS)
NOISY = Intrinsic(
    "fedsql_dp_group_by",
    (KEY,),
    (KEY,),
    (
        Parameter("epsilon", np.array(1.0)),
        Parameter("delta", np.array(1e-6)),
        Parameter("max_groups_contributed", np.array(ROWS)),
    ),
    (DP_SUM,),
)

Columns = tuple[Tensor, Tensor]


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the least processor time that a call takes."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def limit(columns: Columns) -> Tensor:
    """Add up as NumPy does."""
    keys, ordinals = np.unique(columns[0], return_inverse=True)
    sums = np.zeros(keys.size, np.int64)
    np.add.at(sums, ordinals, columns[1])
    return sums


def fold(accumulator: Accumulator, contributions: Sequence[Columns]) -> Accumulator:
    """Accumulate contributions, as the engine does."""
    for contribution in contributions:
        accumulator.validate(contribution)
        accumulator.accumulate(contribution)
    return accumulator


def goals(quick: bool = False) -> list[Goal]:
    """Return the times as multiples of NumPy's."""
    repeats = 2 if quick else 5
    rng = np.random.default_rng(1)
    whole = rng.integers(0, KEYS, ROWS), rng.integers(0, 100, ROWS)
    parts = list(
        zip(np.array_split(whole[0], DEVICES), np.array_split(whole[1], DEVICES), strict=True)
    )
    base = seconds(lambda: limit(whole), repeats)
    context = ReleaseContext(goal_count=DEVICES)
    found = []
    for words, contributions, plain, noisy in (
        ("in one contribution", [whole], 2.0, 3.0),
        (f"of {DEVICES} devices", parts, 8.0, 12.0),
    ):
        took = seconds(lambda c=contributions: fold(GroupBy(PLAIN), c).report(), repeats)  # type: ignore[misc]
        found.append(Goal("group-by", f"1e6 rows, 1e5 keys, {words}: NumPy's", took / base, plain))

        def draw(contributions: Sequence[Columns] = contributions) -> object:
            accumulator = DpGroupByAccumulator(NOISY)
            fold(accumulator, contributions)
            return accumulator.release(context)

        took = seconds(draw, repeats)
        found.append(Goal("group-by", f"the same, with noise, {words}", took / base, noisy))
    return found


if __name__ == "__main__":
    main(goals, __doc__)
