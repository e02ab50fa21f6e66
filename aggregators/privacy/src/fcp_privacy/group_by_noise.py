"""The noise of one sum of a group-by: which mechanism, how much, on which grid, and the threshold.

Noise and sums are multiples of powers of two, so that adding them gives nothing away in the low
bits: see :mod:`fcp_privacy.noise`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fcp_privacy.accounting import gaussian_sigma, laplace_scale
from fcp_privacy.noise import discrete_gaussian, discrete_laplace
from fcp_privacy.partitions import gaussian_threshold, laplace_threshold
from fcp_privacy.randomness import Randomness

#: The scale of the noise is at least half of it in units of the noise's grid: rounding it up to
#: whole units adds less than 2 ** -28 of it.
_UNITS = 1 << 30
#: In how many parts a device's largest contribution is divided, at least; sums of half a billion
#: of them are exact in double precision.
_PARTS = 1 << 24


@dataclass(frozen=True)
class Mechanism:
    """Noise for one sum.

    :param scale: of Laplace noise, or the standard deviation of Gaussian noise.
    :param epsilon: what it costs.
    :param delta: the same, with the threshold; 0 for Laplace noise without one.
    :param threshold: what a group's noisy sum must reach; None: groups are found another way.
    """

    kind: Literal["laplace", "gaussian"]
    scale: float
    epsilon: float
    delta: float
    threshold: float | None = None

    @property
    def stddev(self) -> float:
        """The standard deviation."""
        return self.scale * math.sqrt(2) if self.kind == "laplace" else self.scale

    @property
    def grid(self) -> float:
        """Of what power of two the noise is a multiple."""
        return power_of_two(self.scale) / _UNITS * 2

    def draw(self, count: int, randomness: Randomness) -> NDArray[np.int64]:
        """Draw noise.

        :returns: shape ``(count,)``, in units of the grid.
        """
        sample = discrete_laplace if self.kind == "laplace" else discrete_gaussian
        return sample(round(self.scale / self.grid), count, randomness)


def choose_mechanism(
    epsilon: float, delta: float, l1: float, l2: float, by_value: tuple[float, int] | None = None
) -> Mechanism:
    """Return the mechanism with the smaller variance.

    :param delta: 0: only Laplace noise can be had.
    :param l1: how much all sums change with one device, in the L1 norm; infinite: not bounded.
    :param l2: the same in the L2 norm.
    :param by_value: what a device may add to a group, and to how many groups, if groups are shown
        by their noisy sums; Gaussian noise then has half of delta.
    :raises ValueError: if there is none.
    """
    found: list[Mechanism] = []
    if l1 < math.inf:
        found.append(_laplace(epsilon, delta, l1, by_value))
    if l2 < math.inf and delta > 0:
        found.append(_gaussian(epsilon, delta, l2, by_value))
    if not found:
        raise ValueError(
            "with its bounds there is no noise: Laplace noise needs the L1 norm bounded, or what a "
            "device may add to a group; Gaussian noise a delta above 0 and the L2 norm, or that"
        )
    return min(found, key=lambda mechanism: mechanism.stddev)


def grid_of_sums(mechanism: Mechanism | None, most: float, integer: bool) -> float:
    """Return of what power of two each device's contribution is a multiple.

    :param mechanism: the noise that comes to the sum; None: none does.
    :param most: the largest contribution.
    """
    finest = 1.0 if integer else power_of_two(most) / _PARTS
    return finest if mechanism is None else max(finest, mechanism.grid)


def add_noise(
    sums: NDArray[np.int64], unit: float, mechanism: Mechanism, randomness: Randomness
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return sums with noise: in double precision, and as whole numbers.

    Both follow from the exact noisy sums, so they give nothing else away.

    :param sums: in units of *unit*, which is a multiple of the noise's grid, or 1 and they are.
    :returns: both of shape ``(n,)``; the second one holds Python's integers.
    """
    noise = mechanism.draw(sums.size, randomness)
    real = sums.astype(np.float64) * unit + noise.astype(np.float64) * mechanism.grid
    if unit != 1:
        return real, np.rint(real).astype(object)
    if mechanism.grid < 1:
        # To the nearest whole number, which does not depend on the sum.
        shift = round(math.log2(1 / mechanism.grid))
        whole = (noise + (1 << (shift - 1))) >> shift
        return real, sums.astype(object) + whole.astype(object)
    return real, sums.astype(object) + noise.astype(object) * int(mechanism.grid)


def power_of_two(number: float) -> float:
    """Return the largest power of two that is not above a number above 0."""
    return math.ldexp(0.5, math.frexp(number)[1])


def _laplace(
    epsilon: float, delta: float, l1: float, by_value: tuple[float, int] | None
) -> Mechanism:
    scale = _whole_units(laplace_scale(epsilon, l1))
    if by_value is None:
        return Mechanism("laplace", scale, epsilon, 0.0)
    most, groups = by_value
    threshold = laplace_threshold(epsilon, delta, most, groups, scale * epsilon)
    return Mechanism("laplace", scale, epsilon, delta, threshold)


def _gaussian(
    epsilon: float, delta: float, l2: float, by_value: tuple[float, int] | None
) -> Mechanism:
    own = delta if by_value is None else delta / 2
    scale = _whole_units(gaussian_sigma(epsilon, own, l2))
    threshold = None
    if by_value is not None:
        most, groups = by_value
        threshold = gaussian_threshold(delta - own, most, groups, scale)
    return Mechanism("gaussian", scale, epsilon, delta, threshold)


def _whole_units(scale: float) -> float:
    """Return the scale rounded up to a multiple of its grid, and one unit more.

    That one, about 1e-9 of the scale, pays for what bounds in floating point may be exceeded by.
    """
    unit = power_of_two(scale) / _UNITS * 2
    return (math.ceil(scale / unit) + 1) * unit
