"""How many neighbours and shares a cohort needs, for what one is ready to assume.

Two things are to hold but for a chance of 2**-40: the neighbours that are honest and stay are
connected, and nobody's key can be put together by too few. A third, that there are enough shares to
take the masks off, holds but for a chance of 2**-20. If no sub-graph does, all are neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from fcp_secagg.graphs import FullGraph, Graph, HararyGraph, shuffled
from fcp_secagg.primitives import Secrets

#: Against floats that are a little less than the fraction they stand for.
_SLACK = 1e-14
_LARGEST = 1_000_000
_SECURITY_BITS, _CORRECTNESS_BITS = 41, 20
#: Up to this size all are neighbours: it costs little, and a few who work with the server learn
#: nothing of anybody.
_SMALL = 64


class Adversary(Enum):
    """Against whom the parameters are to protect."""

    NONE = "none"
    CURIOUS_SERVER = "curious_server"
    SEMI_MALICIOUS_SERVER = "semi_malicious_server"


@dataclass(frozen=True)
class Requirements:
    """What an operator assumes, and wants.

    :param adversary: what the server may do beyond its part.
    :param adversarial_rate: the fraction of the devices that may work with it.
    :param dropout_rate: the fraction of the devices that may drop out.
    :param minimum: how many devices a sum that the server sees must have at least.
    """

    adversary: Adversary
    adversarial_rate: float
    dropout_rate: float
    minimum: int


@dataclass(frozen=True)
class Parameters:
    """What a cohort runs with.

    :param size: how many devices it has.
    :param degree: how many neighbours each has, itself among them.
    :param threshold: how many shares put a key together.
    :param minimum: how many devices must be left in each round.
    :param full: whether all are neighbours.
    """

    size: int
    degree: int
    threshold: int
    minimum: int
    full: bool

    def graph(self, secrets: Secrets) -> Graph:
        """Make a graph."""
        if self.full:
            return FullGraph(self.size, self.threshold)
        return HararyGraph(shuffled(self.size, secrets), self.degree, self.threshold)

    def __str__(self) -> str:
        """Say what they promise."""
        kind = "all are neighbours" if self.full else f"{self.degree - 1} neighbours each"
        return (
            f"cohorts of {self.size} devices, {kind}; {self.threshold} shares put a key together; "
            f"a sum has at least {self.minimum} devices, so up to {self.size - self.minimum} may "
            "drop out"
        )


class UnmetRequirementsError(ValueError):
    """No parameters meet the requirements; the message says which one they fail."""


def choose(size: int, wanted: Requirements) -> Parameters:
    """Return the parameters of a cohort: of a large one a sub-graph, if one is enough.

    :param size: how many devices it has.
    :raises UnmetRequirementsError: if there are none.
    """
    _check_rates(size, wanted)
    minimum = max(wanted.minimum, math.ceil(size * (1 - wanted.dropout_rate) - 1e-9))
    if minimum > size:
        raise UnmetRequirementsError(
            f"a cohort of {size} devices can make no sum of at least {minimum}"
        )
    if size <= _SMALL:
        return _full(size, minimum, wanted)
    try:
        degree, threshold = find_subgraph(size, wanted)
    except UnmetRequirementsError:
        return _full(size, minimum, wanted)
    return Parameters(size, degree, threshold, minimum, full=False)


def _full(size: int, minimum: int, wanted: Requirements) -> Parameters:
    rate = wanted.adversarial_rate
    # A little less than the product, as a float may lie above it.
    above = {
        Adversary.NONE: 1,
        Adversary.CURIOUS_SERVER: math.ceil(rate * size - 1e-9),
        Adversary.SEMI_MALICIOUS_SERVER: math.ceil((size + rate * size) / 2 - 1e-9),
    }[wanted.adversary]
    threshold = max(minimum, above + 1, 2)
    if threshold > size:
        raise UnmetRequirementsError(
            f"a cohort of {size} devices of which {rate:.0%} may work with the server would need "
            f"{threshold} shares to put a key together: it needs more devices"
        )
    return Parameters(size, size, threshold, threshold, full=True)


def find_subgraph(size: int, wanted: Requirements) -> tuple[int, int]:
    """Return the least degree, the client itself included, and the threshold of a sub-graph.

    :raises UnmetRequirementsError: if there is none that is not the full graph.
    """
    _check_rates(size, wanted)
    adversaries = math.floor((wanted.adversarial_rate + _SLACK) * size)
    dropouts = math.floor((wanted.dropout_rate + _SLACK) * size)
    survivors = math.ceil((1 - wanted.dropout_rate - _SLACK) * size)
    for others in range(2, size - 1, 2):
        if _log_disconnected(size, others, adversaries + dropouts) >= -_SECURITY_BITS * math.log(2):
            continue
        corrupt = Hypergeometric(size, adversaries, others)
        low = corrupt.upper_quantile(2.0**-_SECURITY_BITS / size)
        high = Hypergeometric(size, survivors, others).lower_quantile(
            2.0**-_CORRECTNESS_BITS / size
        )
        if wanted.adversary is Adversary.SEMI_MALICIOUS_SERVER:
            low = math.ceil((low + others - 1.25) / 2)
        if high > low:
            return others + 1, max(low + 1, 2)
    raise UnmetRequirementsError(f"no sub-graph of {size} devices does")


def _check_rates(size: int, wanted: Requirements) -> None:
    adversarial, dropout = wanted.adversarial_rate, wanted.dropout_rate
    if not 0 < size <= _LARGEST:
        raise UnmetRequirementsError(f"a cohort has from 1 to {_LARGEST} devices, not {size}")
    for what, rate in (("adversarial", adversarial), ("drop-out", dropout)):
        if not 0 <= rate < 1:
            raise UnmetRequirementsError(f"the {what} rate must be from 0 to below 1, not {rate}")
    if wanted.adversary is Adversary.NONE and adversarial:
        raise UnmetRequirementsError("without an adversary the adversarial rate must be 0")
    lying = wanted.adversary is Adversary.SEMI_MALICIOUS_SERVER
    together = adversarial + (2 if lying else 1) * dropout
    if together > 0.9:
        twice = "twice " if lying else ""
        raise UnmetRequirementsError(
            f"the adversarial rate and {twice}the drop-out rate come to {together:.2f}; "
            "nothing protects above 0.9"
        )


def _log_disconnected(size: int, others: int, gone: int) -> float:
    """Return the logarithm of a bound on the chance that a graph without those falls apart."""
    if others > gone:
        return -math.inf
    ln = math.lgamma
    return (
        math.log(size)
        + math.log(size - others - 1)
        - math.log(2)
        + ln(gone + 1)
        + ln(size - others + 1)
        - ln(size + 1)
        - ln(gone - others + 1)
    )


class Hypergeometric:
    """How many marked ones are among *drawn* of *total*, of which *marked* are marked."""

    def __init__(self, total: int, marked: int, drawn: int) -> None:
        self._total, self._marked, self._drawn = total, marked, drawn

    def lower_quantile(self, chance: float) -> int:
        """Return the least count whose cumulative chance reaches *chance*."""
        return self._quantile(chance, self._chance)

    def upper_quantile(self, chance: float) -> int:
        """Return the greatest count such that the chance of so many or more reaches *chance*."""
        rest = Hypergeometric(self._total, self._total - self._marked, self._drawn)
        return self._drawn - rest.lower_quantile(chance)

    @property
    def _least(self) -> int:
        return max(0, self._drawn + self._marked - self._total)

    def _quantile(self, chance: float, of: Callable[[int], float]) -> int:
        count, found = self._least, 0.0
        while True:
            found += of(count)
            if found >= chance or count == min(self._marked, self._drawn):
                return count
            count += 1

    def _chance(self, count: int) -> float:
        unmarked = self._total - self._marked
        missed = self._drawn - count
        if not (0 <= count <= self._marked and 0 <= missed <= unmarked):
            return 0.0
        return math.exp(
            _log_choices(self._marked, count)
            + _log_choices(unmarked, missed)
            - _log_choices(self._total, self._drawn)
        )


def _log_choices(total: int, taken: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(taken + 1) - math.lgamma(total - taken + 1)
