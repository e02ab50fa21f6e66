"""Aggregators that go by the distances between whole updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcp_core.aggregation.aggregator import Options
from fcp_core.aggregation.checks import bad
from fcp_robust.kept import KeptUpdates, by_column
from fcp_robust.updates import CHUNK, Vector


class GeometricMedian(KeptUpdates):
    """The point whose distances to all updates have the smallest sum (RFA, smoothed Weiszfeld).

    It begins at the coordinates' medians, so that a huge update does not cost iterations. Distances
    below the smoothing count as the smoothing.
    """

    def configure(self, options: Options) -> None:
        """Take the limits of the iteration."""
        self._iterations = int(options["iterations"])
        self._tolerance = float(options["tolerance"])
        self._smoothing = float(options["smoothing"])
        if self._iterations < 1 or self._tolerance < 0 or self._smoothing <= 0:
            raise bad(
                self._updates.intrinsic,
                "iterations must be at least 1, tolerance at least 0 and smoothing above 0",
            )

    def combine(self, rows: Sequence[Vector]) -> Vector:
        """Return the geometric median."""
        point = by_column(rows, "median")
        for _ in range(self._iterations):
            weights = [1 / max(self._smoothing, distance(row, point)) for row in rows]
            moved = np.zeros_like(point)
            for row, weight in zip(rows, weights, strict=True):
                moved += row * np.float64(weight / sum(weights))
            step = distance(moved, point)
            point = moved
            if step <= self._tolerance * max(1.0, float(np.linalg.norm(point))):
                break
        return point


class MultiKrum(KeptUpdates):
    """The mean of the updates that lie closest to their neighbours.

    The score of an update is the sum of its squared distances to the ``n - f - 2`` updates that are
    nearest to it, where ``f`` of ``n`` may be hostile. It needs ``2 f + 3`` updates.
    """

    def configure(self, options: Options) -> None:
        """Take the number of hostile updates, and how many are averaged."""
        self._byzantine = int(options["byzantine"])
        self._selected = int(options["selected"])
        if self._byzantine < 0 or self._selected < 0:
            raise bad(self._updates.intrinsic, "byzantine and selected must be at least 0")

    def minimum(self) -> int:
        """Return how many updates it needs to report."""
        return minimum(self._byzantine)

    def combine(self, rows: Sequence[Vector]) -> Vector:
        """Return the mean of the updates with the lowest scores."""
        squares = squared_distances(rows)
        np.fill_diagonal(squares, np.inf)  # an update is no neighbour of its own
        nearest = np.sort(squares, axis=1)[:, : len(rows) - self._byzantine - 2]
        order = np.argsort(nearest.sum(axis=1), kind="stable")
        count = min(self._selected or len(rows) - self._byzantine, len(rows))
        result = np.zeros(rows[0].size)
        for index in order[:count]:
            result += rows[index]
        result /= count
        return result


class Krum(MultiKrum):
    """The one update that lies closest to its neighbours."""

    def configure(self, options: Options) -> None:
        """Take the number of hostile updates."""
        super().configure({**options, "selected": 1})


def minimum(byzantine: int) -> int:
    """Return how many updates Krum needs when so many may be hostile."""
    return 2 * byzantine + 3


def distance(one: Vector, other: Vector) -> float:
    """Return the Euclidean distance."""
    return float(np.sqrt(_square(one, other)))


def squared_distances(rows: Sequence[Vector]) -> Vector:
    """Return the squared distances of every row to every other."""
    squares = np.zeros((len(rows), len(rows)))
    for index, row in enumerate(rows):
        for other in range(index):
            squares[index, other] = squares[other, index] = _square(row, rows[other])
    return squares


def _square(one: Vector, other: Vector) -> float:
    # Differences, not products: those of close updates would drown in rounding.
    total = 0.0
    for start in range(0, one.size, CHUNK):
        end = start + CHUNK
        difference = np.subtract(one[start:end], other[start:end], dtype=np.float64)
        total += float(np.dot(difference, difference))
    return total
