"""Correlated noise over rounds: trees and Toeplitz matrices, and what repeated participation costs.

A device takes part in rounds that are at least *separation* rounds apart. Sources: Kairouz et al.,
"Practical and private (deep) learning without sampling or shuffling" (2021), for trees; McMahan,
Xu and Zhang, "A hassle-free algorithm for strong differential privacy in federated learning
systems" (2024), theorem 2, for Toeplitz matrices with a minimum separation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def tree_sensitivity(rounds: int, separation: int) -> int:
    """Return the squared sensitivity of a tree over all rounds that is never restarted.

    A node counts the rounds below it in which one device takes part. The worst device takes part
    in every *separation*-th round from some first one on.

    :raises ValueError: if one is below 1.
    """
    _check(rounds, separation)
    worst = 0
    for first in range(min(separation, rounds)):
        counts = np.zeros(rounds, np.int64)
        counts[first::separation] = 1
        total = 0
        while counts.size:
            total += int(np.dot(counts, counts))
            # A node without a sibling has no parent.
            counts = counts[: counts.size // 2 * 2].reshape(-1, 2).sum(axis=1)
        worst = max(worst, total)
    return worst


def toeplitz_sensitivity(
    coefficients: Sequence[float] | Floats, separation: int, most: int | None = None
) -> float:
    """Return the squared sensitivity of a lower triangular Toeplitz matrix.

    :param coefficients: its first column, one a round; not negative and not increasing.
    :param most: in how many rounds a device takes part at most; None: as the separation allows.
    :raises ValueError: if the coefficients do not fit the theorem.
    """
    column = np.asarray(coefficients, np.float64)
    rounds = column.size
    _check(rounds, separation)
    if column[-1] < 0 or bool(np.any(np.diff(column) > 0)):
        raise ValueError("the coefficients must not be negative and must not increase")
    possible = -(-rounds // separation)
    times = possible if most is None else min(most, possible)
    summed = np.zeros(rounds)
    for start in range(0, times * separation, separation):
        summed[start:] += column[: rounds - start]
    return float(np.dot(summed, summed))


def optimal_coefficients(rounds: int) -> Floats:
    """Return the Toeplitz column with the least largest error for devices that come once.

    :returns: shape ``(rounds,)``: the coefficients of the series of ``(1 - x) ** -0.5``.
    """
    _check(rounds, 1)
    steps = np.arange(1, rounds, dtype=np.float64)
    return np.concatenate(([1.0], np.cumprod((2 * steps - 1) / (2 * steps))))


def _check(rounds: int, separation: int) -> None:
    if rounds < 1 or separation < 1:
        raise ValueError(f"rounds and separation must be at least 1, not {rounds} and {separation}")
