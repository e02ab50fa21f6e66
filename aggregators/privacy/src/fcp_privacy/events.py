"""What releases cost, as events that compose; and what many of them come to.

An event is a struct that JSON holds, tagged by ``type``: that is the form in which an aggregator
states its cost (:class:`fcp_core.aggregation.release.Promise`) and the ledger keeps it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from fcp_privacy.accounting import gaussian_rho, rho_epsilon

#: Which neighbouring data an event speaks of: one device's contribution is replaced by nothing
#: (which is what adding or removing a device comes to as well), or by any other.
Relation: TypeAlias = Literal["zero_out", "replace_one"]


class _Event(
    msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True, forbid_unknown_fields=True
):
    pass


class _Basic(_Event, frozen=True, kw_only=True):
    """An event of one mechanism.

    :param relation: that its numbers are stated for.
    """

    relation: Relation = "zero_out"


class Gaussian(_Basic, frozen=True, tag="gaussian"):
    """Gaussian noise on sums, once.

    :param noise_multiplier: its standard deviation divided by the L2 sensitivity of all the sums.
    """

    noise_multiplier: float


class Laplace(_Basic, frozen=True, tag="laplace"):
    """Laplace noise on sums, once: epsilon is ``1 / scale``.

    :param scale: of the noise, divided by the L1 sensitivity of all the sums.
    """

    scale: float


class EpsilonDelta(_Basic, frozen=True, tag="epsilon_delta"):
    """Anything that is (epsilon, delta)-private, such as a selection of groups."""

    epsilon: float
    delta: float


class ZCDP(_Basic, frozen=True, tag="zcdp"):
    """Anything that is rho-zCDP."""

    rho: float


class Composed(_Event, frozen=True, tag="composed"):
    """Several of them, one after the other or at once."""

    events: tuple[Event, ...]


class Series(_Event, frozen=True, tag="series"):
    """All rounds of a series so far, whose noise is correlated.

    In a ledger it takes the place of what was booked for the series before.

    :param name: of the series in its population.
    :param event: what all its rounds together cost.
    """

    name: str
    event: Event


class PoissonSampled(_Event, frozen=True, tag="poisson_sampled"):
    """An event for which each device was drawn by itself with a probability.

    Only where the operator draws from a list of all devices; needs dp-accounting.
    """

    probability: float
    event: Event


Event: TypeAlias = Gaussian | Laplace | EpsilonDelta | ZCDP | Composed | Series | PoissonSampled


def to_cost(event: Event) -> dict[str, Any]:
    """Return an event as a :class:`Promise` has it."""
    cost: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(event))
    return cost


def from_cost(cost: Mapping[str, Any]) -> Event:
    """Read an event.

    :raises ValueError: if it is none.
    """
    try:
        event: Event = msgspec.convert(dict(cost), Event)
        return event
    except msgspec.ValidationError as error:
        raise ValueError(f"{cost!r} is no event of a privacy ledger: {error}") from None


@dataclass(frozen=True)
class Spent:
    """What events come to.

    :param rho: of those that are zCDP.
    :param pure: the epsilons of those without a delta.
    :param epsilon: the sum of the others' epsilons.
    :param delta: the sum of theirs.
    """

    rho: float = 0.0
    pure: tuple[float, ...] = ()
    epsilon: float = 0.0
    delta: float = 0.0

    def at(self, delta: float) -> float:
        """Return the epsilon at a delta; infinite if more delta was spent.

        Pure epsilons are summed, or taken as zCDP (epsilon ** 2 / 2), whichever is less.
        """
        left = delta - self.delta
        if left < 0 or (left == 0 and self.rho > 0):
            return math.inf
        summed = self.epsilon + sum(self.pure)
        if left == 0 or not 0 < left < 1:
            return summed if self.rho == 0 else math.inf
        concentrated = self.rho + sum(pure * pure / 2 for pure in self.pure)
        return min(
            rho_epsilon(self.rho, left) + summed,
            rho_epsilon(concentrated, left) + self.epsilon,
        )

    def as_rho(self) -> float:
        """Return it as zCDP; infinite if something was spent that is not."""
        if self.epsilon or self.delta:
            return math.inf
        return self.rho + sum(pure * pure / 2 for pure in self.pure)

    def scaled(self, factor: float) -> Spent:
        """Return about what it is if it is spent so often, in parts too."""
        pure = math.sqrt(sum(each * each for each in self.pure) * factor)
        return Spent(
            self.rho * factor,
            (pure,) if pure else (),
            self.epsilon * factor,
            self.delta * factor,
        )

    def twice(self) -> Spent:
        """Return what it is for two changes in place of one: group privacy."""
        return Spent(
            4 * self.rho,
            tuple(2 * pure for pure in self.pure),
            2 * self.epsilon,
            min(1.0, (1 + math.exp(min(self.epsilon, 700.0))) * self.delta),
        )

    def times(self, count: int) -> Spent:
        """Return what it is if it is spent so often."""
        return Spent(count * self.rho, self.pure * count, count * self.epsilon, count * self.delta)

    def __add__(self, other: Spent) -> Spent:
        """Compose."""
        return Spent(
            self.rho + other.rho,
            self.pure + other.pure,
            self.epsilon + other.epsilon,
            self.delta + other.delta,
        )


def spent(
    events: Iterable[Event], *, relation: Relation = "zero_out", delta: float = 1e-10
) -> Spent:
    """Return what events come to together.

    :param relation: that the sum is stated for. An event that is stated for ``zero_out`` costs as
        much as two where a contribution is replaced by another; one that is stated for
        ``replace_one`` is taken as it is.
    :param delta: at which events are taken that dp-accounting computes.
    :raises ValueError: for an event whose parameter is out of range.
    """
    total = Spent()
    for event in events:
        total += _of(event, relation, delta)
    return total


def _of(event: Event, relation: Relation, delta: float) -> Spent:
    if isinstance(event, Composed):
        return spent(event.events, relation=relation, delta=delta)
    if isinstance(event, Series):
        return _of(event.event, relation, delta)
    if isinstance(event, PoissonSampled):
        return sampled([(event, 1)], relation, delta)
    once = _once(event)
    return once.twice() if event.relation == "zero_out" and relation == "replace_one" else once


def _once(event: Gaussian | Laplace | EpsilonDelta | ZCDP) -> Spent:
    if isinstance(event, Gaussian):
        return Spent(rho=gaussian_rho(event.noise_multiplier))
    if isinstance(event, Laplace):
        return Spent(pure=(1 / _positive("scale", event.scale),))
    if isinstance(event, EpsilonDelta):
        if not (event.epsilon >= 0 and 0 <= event.delta < 1):
            raise ValueError(
                "epsilon must not be negative, and delta from 0 to below 1, not "
                f"{event.epsilon:g} and {event.delta:g}"
            )
        if event.delta == 0:
            return Spent(pure=(event.epsilon,)) if event.epsilon else Spent()
        return Spent(epsilon=event.epsilon, delta=event.delta)
    if not 0 <= event.rho < math.inf:
        raise ValueError(f"rho must be finite and not negative, not {event.rho}")
    return Spent(rho=event.rho)


def sampled(
    events: Sequence[tuple[PoissonSampled, int]], relation: Relation, delta: float
) -> Spent:
    """Return what sampled Gaussian events cost together at a delta, by Renyi accounting.

    :param events: with how often each happened.
    :raises ValueError: if there is another event, or dp-accounting is not installed.
    """
    for event, _ in events:
        if relation != "zero_out" or not isinstance(event.event, Gaussian):
            raise ValueError("only Gaussian events can be sampled, and not where one is replaced")
        if not 0 < event.probability <= 1:
            raise ValueError(f"the probability must be in (0, 1], not {event.probability}")
    try:
        # It takes seconds to be imported.
        accounting: Any = importlib.import_module("dp_accounting")
        rdp: Any = importlib.import_module("dp_accounting.rdp")
    except ImportError as error:
        raise ValueError(
            f"sampled events need dp-accounting, which is not installed: {error}"
        ) from None
    accountant = rdp.RdpAccountant()
    for event, count in events:
        assert isinstance(event.event, Gaussian)  # see above
        gaussian = accounting.GaussianDpEvent(event.event.noise_multiplier)
        accountant.compose(accounting.PoissonSampledDpEvent(event.probability, gaussian), count)
    return Spent(epsilon=float(accountant.get_epsilon(delta)), delta=delta)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, not {value}")
    return value
