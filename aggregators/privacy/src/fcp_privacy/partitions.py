"""Which groups of an open domain may be shown: thresholds and partition selection.

Sources: Desfontaines, Voss, Gipson and Mandayam, "Differentially private partition selection"
(2020), for the truncated geometric rule; its limits for Laplace and Gaussian noise are those of the
aggregation core's group-by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from fcp_privacy.accounting import check_delta


def delta_of_one(delta: float, groups: int) -> float:
    """Return the delta of each of *groups* independent decisions that together cost *delta*."""
    check_delta(delta)
    if groups < 1:
        raise ValueError(f"a device contributes to at least one group, not {groups}")
    return -math.expm1(math.log1p(-delta) / groups)


def laplace_threshold(
    epsilon: float, delta: float, most_of_a_group: float, groups: int, sensitivity: float
) -> float:
    """Return what a noisy sum must reach to be shown, for Laplace noise.

    :param most_of_a_group: what one device may add to one group at most.
    :param groups: to how many groups a device contributes at most; replacing a device changes twice
        as many.
    :param sensitivity: of all sums together, in the L1 norm.
    """
    each = delta_of_one(delta, 2 * groups)
    scale = sensitivity / epsilon
    if each > 0.5:
        return most_of_a_group + scale * math.log(2 * (1 - each))
    return most_of_a_group - scale * math.log(2 * each)


def gaussian_threshold(delta: float, most_of_a_group: float, groups: int, sigma: float) -> float:
    """Return what a noisy sum must reach to be shown, for Gaussian noise.

    :param delta: the part of it that the threshold may use.
    :param sigma: the noise's standard deviation.
    """
    each = delta_of_one(delta, 2 * groups)
    return most_of_a_group - sigma * NormalDist().inv_cdf(each)


@dataclass(frozen=True)
class PartitionSelection:
    """The nearly truncated geometric rule: how likely a group of so many devices is shown.

    No rule with the same cost shows more.

    :param epsilon: spent on the choice.
    :param delta: spent on the choice.
    :param groups: to how many groups a device contributes at most.
    :param least: groups of fewer devices are never shown.
    :raises ValueError: if one of them is out of range.
    """

    epsilon: float
    delta: float
    groups: int = 1
    least: int = 1

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, not {self.epsilon}")
        if self.least < 1:
            raise ValueError(f"least must be at least 1, not {self.least}")
        delta_of_one(self.delta, self.groups)

    @property
    def first_crossover(self) -> int:
        """Up to this many devices, the probability grows by the factor of epsilon."""
        epsilon, delta = self._one
        steps = math.log1p(math.tanh(epsilon / 2) * (1 / delta - 1)) / epsilon
        return self.least + math.floor(steps)

    @property
    def second_crossover(self) -> int:
        """From one more device on, a group is always shown."""
        epsilon, delta = self._one
        first = self.first_crossover
        rest = 1 - self._growing(first)
        return first + math.floor(math.log1p(math.expm1(epsilon) / delta * rest) / epsilon)

    def probability(self, devices: int) -> float:
        """Return how likely a group of *devices* is shown."""
        if devices < self.least:
            return 0.0
        epsilon, delta = self._one
        first = self.first_crossover
        if devices <= first:
            return min(1.0, self._growing(devices))
        if devices > self.second_crossover:
            return 1.0
        at_first = self._growing(first)
        share = delta / math.expm1(epsilon)
        further = (1 - at_first + share) * math.expm1(-(devices - first) * epsilon)
        return min(1.0, at_first - further)

    @property
    def _one(self) -> tuple[float, float]:
        """Epsilon and delta of one group."""
        return self.epsilon / self.groups, delta_of_one(self.delta, self.groups)

    def _growing(self, devices: int) -> float:
        epsilon, delta = self._one
        steps = devices - self.least + 1
        # Like expm1(steps * epsilon) / expm1(epsilon), where that would overflow.
        ratio = math.exp((steps - 1) * epsilon) * math.expm1(-steps * epsilon)
        return delta * ratio / math.expm1(-epsilon)
