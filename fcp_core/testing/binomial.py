"""Bounds within which a fair count lies, for tests of random choices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

#: The probability that a fair choice is taken for an unfair one, over all of a check's bounds.
_FALSE_ALARM = 1e-9


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


def assert_even(chosen: Callable[[int], set[int]], pool: int, rounds: int, what: str) -> None:
    """Check that all of a pool are chosen equally often, within what chance allows.

    :param chosen: returns who is chosen with a seed, as numbers below *pool*.
    :param rounds: with how many seeds.
    :param what: a number of the pool, in words.
    :raises AssertionError: if one is chosen too seldom or too often.
    """
    counts: Counter[int] = Counter()
    for seed in range(rounds):
        counts.update(chosen(seed))
    total = sum(counts.values())
    assert total, "nobody is ever assigned"
    # A policy that takes m of n at a time varies less than independent draws do.
    low, high = binomial_bounds(rounds, total / rounds / pool, _FALSE_ALARM / pool)
    for number in range(pool):
        assert low <= counts[number] <= high, (
            f"{what} {number} was chosen {counts[number]} times in {rounds} rounds; "
            f"equal chances give {low} to {high}"
        )
