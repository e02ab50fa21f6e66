"""What a mechanism costs: noise, concentrated privacy (rho) and epsilon at a delta.

A device is added or removed (or replaced by nothing), so the sensitivity of a clipped sum is its
bound. Formulas: Balle and Wang, "Improving the Gaussian mechanism" (2018), theorem 8; Bun and
Steinke, "Concentrated differential privacy" (2016); Canonne, Kamath and Steinke, "The discrete
Gaussian for differential privacy" (2020), proposition 12.
"""

from __future__ import annotations

import math
from collections.abc import Callable

#: How close to the answer a search comes, relative to it.
_PRECISION = 1e-12


def log_normal_tail(x: float) -> float:
    """Return the logarithm of the probability that a standard normal value exceeds *x*."""
    if x < 25:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    # The error function is zero in double precision out there; four terms of the series do.
    square = 1 / (x * x)
    series = square * (-1 + square * (3 + square * (-15 + square * 105)))
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(series)


def gaussian_delta(sigma: float, epsilon: float, sensitivity: float = 1.0) -> float:
    """Return the exact delta of Gaussian noise at an epsilon.

    :param sigma: the noise's standard deviation, above 0.
    :param sensitivity: in the L2 norm, above 0.
    """
    _positive(sigma=sigma, epsilon=epsilon, sensitivity=sensitivity)
    half, shift = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    first = math.exp(log_normal_tail(shift - half))
    # It is below the first; of a very large epsilon no digit is left that says so.
    second = math.exp(min(0.0, epsilon + log_normal_tail(shift + half)))
    return max(0.0, first - second)


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """Return the smallest standard deviation of Gaussian noise for (epsilon, delta).

    :raises ValueError: if epsilon or the sensitivity is not above 0, or delta not between 0 and 1.
    """
    _positive(epsilon=epsilon, sensitivity=sensitivity)
    check_delta(delta)
    found = _first(lambda sigma: gaussian_delta(sigma, epsilon) <= delta)
    return found * sensitivity


def gaussian_rho(noise_multiplier: float) -> float:
    """Return the rho of Gaussian noise, continuous or discrete.

    :param noise_multiplier: the standard deviation divided by the L2 sensitivity.
    """
    _positive(noise_multiplier=noise_multiplier)
    return 1 / (2 * noise_multiplier * noise_multiplier)


def rho_multiplier(rho: float) -> float:
    """Return the noise multiplier that costs *rho*."""
    _positive(rho=rho)
    return math.sqrt(1 / (2 * rho))


def laplace_scale(epsilon: float, sensitivity: float = 1.0) -> float:
    """Return the scale of Laplace noise for epsilon.

    :param sensitivity: in the L1 norm.
    """
    _positive(epsilon=epsilon, sensitivity=sensitivity)
    return sensitivity / epsilon


def rho_epsilon(rho: float, delta: float) -> float:
    """Return the epsilon that *rho* promises at *delta*; 0 for a rho of 0.

    :raises ValueError: if rho is negative, or delta not between 0 and 1.
    """
    check_delta(delta)
    if rho == 0:
        return 0.0
    _positive(rho=rho)

    def epsilon(log_order: float) -> float:
        above = math.exp(log_order)  # the order less one
        order = 1 + above
        return rho * order + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / above

    return max(0.0, epsilon(_lowest(epsilon, math.log(1e-9), math.log(1e12))))


def epsilon_rho(epsilon: float, delta: float) -> float:
    """Return the largest rho that stays within (epsilon, delta)."""
    _positive(epsilon=epsilon)
    check_delta(delta)
    # The search goes upwards to the first rho that is too much; the last below it is the answer.
    return _first(lambda rho: rho_epsilon(rho, delta) > epsilon) * (1 - 2 * _PRECISION)


def check_delta(delta: float) -> None:
    """Check a delta.

    :raises ValueError: if it is not between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, not {delta}")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, not {value}")


def _first(holds: Callable[[float], bool]) -> float:
    """Return about the smallest number above 0 for which *holds*; it holds for all above."""
    low = high = 1.0
    while not holds(high):
        high *= 2
    while holds(low):
        low /= 2
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function with one valley is lowest: golden section search."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > 1e-10:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2
