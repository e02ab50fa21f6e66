"""Aggregators that look at each coordinate alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fcp_core.aggregation.aggregator import Options
from fcp_core.aggregation.checks import bad
from fcp_robust.kept import KeptUpdates, by_column
from fcp_robust.updates import Vector


class CoordinateMedian(KeptUpdates):
    """The median of each coordinate."""

    def combine(self, rows: Sequence[Vector]) -> Vector:
        """Return the medians."""
        return by_column(rows, "median")


class TrimmedMean(KeptUpdates):
    """The mean of each coordinate without its smallest and its largest values.

    With the fraction ``b``, ``floor(b n)`` of ``n`` values are left out at each end.
    """

    def configure(self, options: Options) -> None:
        """Take the fraction."""
        self._fraction = float(options["fraction"])
        if not 0 <= self._fraction < 0.5:
            raise bad(
                self._updates.intrinsic,
                f"fraction must be at least 0 and below 0.5, not {self._fraction:g}",
            )

    def combine(self, rows: Sequence[Vector]) -> Vector:
        """Return the trimmed means."""
        # 0.29 * 100 is a little less than 29.
        return by_column(rows, "mean", trim=math.floor(self._fraction * len(rows) + 1e-9))
