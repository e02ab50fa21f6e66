"""Buffered linear Toeplitz matrices: noise that is correlated over rounds, from few buffers.

The matrix has the first column ``1, c_1, c_2, ...`` with ``c_k = sum(scale * decay ** (k - 1))``,
one term for each buffer, so that a round costs as many buffers of the model's size as there are
terms, however many rounds there were. Sources: McMahan, Pillutla, Steinke, Thakurta and others,
"Efficient and near-optimal noise generation for streaming differential privacy" (2024), and
"A hassle-free algorithm for private learning in practice" (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fcp_privacy.matrix import optimal_coefficients, toeplitz_sensitivity

Floats = NDArray[np.float64]

#: How often the decays are improved, and by how much at first.
_PASSES, _STRIDE = 60, 1.0


@dataclass(frozen=True)
class BLT:
    """A matrix.

    :param scales: one for each buffer, above 0.
    :param decays: one for each buffer, from 0 to 1.
    """

    scales: tuple[float, ...]
    decays: tuple[float, ...]

    def column(self, rounds: int) -> Floats:
        """Return the first column."""
        powers = np.arange(rounds - 1)
        terms = np.array(self.decays)[:, None] ** powers
        return np.concatenate(([1.0], np.array(self.scales) @ terms))

    def inverse_column(self, rounds: int) -> Floats:
        """Return the first column of the inverse: what becomes of the noise of one round."""
        scales, decays = np.array(self.scales), np.array(self.decays)
        buffers, column = np.zeros(len(scales)), np.empty(rounds)
        for index in range(rounds):
            column[index] = (index == 0) - scales @ buffers
            buffers = decays * buffers + column[index]
        return column

    def sensitivity(self, rounds: int, separation: int) -> float:
        """Return the squared sensitivity for devices that come again after *separation* rounds."""
        return toeplitz_sensitivity(self.column(rounds), separation)

    def error(self, rounds: int) -> float:
        """Return the standard deviation of the sum over all rounds, for noise of 1 a round."""
        sums = np.cumsum(self.inverse_column(rounds))
        return float(np.sqrt(np.dot(sums, sums)))


@lru_cache
def fit(rounds: int, buffers: int) -> BLT:
    """Return a matrix that is close to the best Toeplitz matrix for so many rounds.

    :raises ValueError: if one of them is below 1.
    """
    if buffers < 1:
        raise ValueError(f"there must be at least 1 buffer, not {buffers}")
    target = optimal_coefficients(rounds)[1:]
    if not target.size:
        return BLT((0.5,), (0.0,))
    buffers = min(buffers, target.size)
    # The logarithms of how much a buffer loses in a round.
    losses = np.linspace(np.log(0.5), np.log(0.5 / rounds), buffers)
    best, scales = _fitted(target, losses)
    stride = _STRIDE
    for _ in range(_PASSES):
        improved = False
        for place in range(buffers):
            for change in (stride, -stride):
                moved = losses.copy()
                moved[place] = min(moved[place] + change, -1e-6)
                error, found = _fitted(target, moved)
                if error < best * (1 - 1e-9):
                    best, losses, scales, improved = error, moved, found, True
        if not improved:
            stride /= 2
    return BLT(tuple(scales.tolist()), tuple((1 - np.exp(losses)).tolist()))


def _fitted(target: Floats, losses: Floats) -> tuple[float, Floats]:
    """Return how far the best scales for some losses are from the target, and the scales."""
    decays = 1 - np.exp(losses)
    # Every coefficient matters as much as it is large, so errors are relative.
    terms = (decays[:, None] ** np.arange(target.size) / target).T
    used = np.ones(decays.size, bool)
    while True:
        found, *_ = np.linalg.lstsq(terms[:, used], np.ones(target.size), rcond=None)
        if (found > 0).all():
            break
        used[np.flatnonzero(used)[found <= 0]] = False
    scales = np.zeros(decays.size)
    scales[used] = found
    if scales.sum() > 1:
        scales /= scales.sum()  # the coefficients must not increase
    residual = terms @ scales - 1
    return float(np.dot(residual, residual)), scales
