"""Bounds within which a fair count lies, for tests of random choices."""

from __future__ import annotations

import math
from collections.abc import Sequence


def binomial_bounds(trials: int, probability: float, alarm: float) -> tuple[int, int]:
    """Return between which counts a binomial variable stays.

    :param alarm: the probability that it does not, on either side together.
    """
    if not 0 < probability < 1:
        return (0, 0) if probability <= 0 else (trials, trials)
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(probability)
        + (trials - count) * math.log1p(-probability)
        for count in range(trials + 1)
    ]
    masses = [math.exp(value) for value in logs]

    def first(values: Sequence[float]) -> int:
        total = 0.0
        for count, mass in enumerate(values):
            total += mass
            if total > alarm / 2:
                return count
        return trials

    return first(masses), trials - first(masses[::-1])
