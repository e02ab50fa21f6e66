"""The ledger: what a population's devices have spent, and what may still be released."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins.config import Config
from fcp_core.rounds.ledger import Account, Ledger, Planned, ReleaseRefusedError
from fcp_privacy import watermark
from fcp_privacy.account import Balance, flat
from fcp_privacy.events import EpsilonDelta, Event, Series, from_cost, spent
from fcp_privacy.policy import SECTION, Policy

#: An epsilon from here on is upstream's way to say that there is no noise.
OFF = 1e20


class PrivacyLedger(Ledger):
    """Books what releases cost, for each population and privacy unit.

    :raises UsageError: if the options of a population contradict each other.
    """

    name = SECTION
    summary = "books what each release costs in privacy, and refuses what is too much"

    def __init__(self, config: Config) -> None:
        self._config = config
        self._policies: dict[str, Policy] = {}
        for population in ("", *config.scopes("population")):
            self.policy(population)

    def policy(self, population: str) -> Policy:
        """Return what the operator promises of a population."""
        if population not in self._policies:
            self._policies[population] = Policy.of(self._config, population)
        return self._policies[population]

    def accounts(self, planned: Planned) -> Sequence[str]:
        """Return the account of the task's population, and day."""
        spec = planned.spec
        return [self.policy(spec.population).account(spec.population, planned.created)]

    def check(
        self, planned: Planned, accounts: Mapping[str, Account], others: Sequence[Planned]
    ) -> Iterable[str]:
        """Refuse what is not private enough, and what would be beyond the budget."""
        population = planned.spec.population
        policy = self.policy(population)
        # A storage that is empty has no populations that could be verified at the start.
        names = self.accounts(planned)
        if went_back := watermark.problem(policy.watermark, population, accounts, names):
            yield went_back
        try:
            events = _events(planned)
        except ValueError as error:
            yield f"{error}."
            return
        if problem := _word(policy, planned):
            yield problem
        off = any(_is_off(event) for event in flat(events))
        if off or not events:
            if policy.required:
                yield (
                    f"the population {planned.spec.population} demands differential privacy, and "
                    + (
                        f"an epsilon of {OFF:g} or more means that there is no noise"
                        if off
                        else f"the results of {_list(planned.exact)} have no noise"
                    )
                    + "; choose an aggregator with noise, such as dp_gaussian, and an epsilon."
                )
            return
        if planned.exact and not planned.spec.costs:
            yield (
                f"the results of {_list(planned.exact)} would be released without noise beside "
                "those with noise, and give them away. Robust rules, weighted means, minima and "
                "maxima have no bound on what one device can change: let everything be a sum or "
                "an unweighted mean of an aggregator with noise."
            )
        cost = spent(events, relation=policy.sums_for, delta=policy.delta)
        if policy.max_epsilon is not None and cost.at(policy.delta) > policy.max_epsilon:
            yield (
                f"it costs epsilon {cost.at(policy.delta):.4g} at delta {policy.delta:g}, and one "
                f"task may cost {policy.max_epsilon:g} here (max_epsilon): take more noise."
            )
        name = self.accounts(planned)[0]
        balance = self._balance(policy, accounts[name])
        for other in others:
            if self.accounts(other) == [name]:
                balance = balance.with_events(_events(other))
        before = balance.spent(policy.sums_for, policy.delta)
        after = balance.with_events(events).spent(policy.sums_for, policy.delta)
        if not policy.allows(after):
            yield (
                f"it would bring what the population has spent from {policy.say(before)} (open "
                f"tasks included) to {policy.say(after)}; the budget is {policy.say_budget()}. "
                "Take more noise, or fewer rounds."
            )

    def book(self, planned: Planned, accounts: Mapping[str, Account]) -> Mapping[str, bytes]:
        """Add the costs to the account, unless that is too much."""
        policy = self.policy(planned.spec.population)
        name = self.accounts(planned)[0]
        before = self._balance(policy, accounts[name])
        after = before.with_events(_events(planned))
        total = after.spent(policy.sums_for, policy.delta)
        if not policy.allows(total):
            so_far = before.spent(policy.sums_for, policy.delta)
            raise ReleaseRefusedError(
                f"the privacy budget of the population {planned.spec.population} is used up: "
                f"{policy.say(so_far)} is spent, with this task it would be {policy.say(total)}, "
                f"and the budget is {policy.say_budget()}. Its result was dropped."
            )
        return {name: after.to_bytes()}

    def statement(self, planned: Planned) -> Mapping[str, Any]:
        """Say what the release costs a device, at the population's delta if that is enough."""
        events = list(flat(_events(planned)))
        if not events or planned.exact or any(map(_is_off, events)):
            return {}
        policy = self.policy(planned.spec.population)
        cost = spent(events, relation=policy.sums_for, delta=policy.delta)
        delta = max(policy.delta, min(2 * cost.delta, 0.5))
        series = [event.name for event in events if isinstance(event, Series)]
        said: dict[str, Any] = {
            "epsilon": cost.at(delta),
            "delta": delta,
            "relation": policy.relation,
            "unit": policy.unit,
            "mechanism": "central",
        }
        if len(series) == len(events) == 1:
            said["series"] = f"{planned.spec.population}/{series[0]}"
        return said if math.isfinite(said["epsilon"]) else {}

    def verify(self, population: str, accounts: Mapping[str, Account]) -> None:
        """Refuse a ledger that went back, or that is kept for another unit or relation."""
        policy = self.policy(population)
        if went_back := watermark.problem(policy.watermark, population, accounts):
            raise UsageError(went_back)
        for name, account in accounts.items():
            balance = Balance.read(account.data)
            kept = balance.relation
            if name.startswith(policy.account(population, 0.0).split("/1970")[0]) and (
                kept != policy.relation
            ):
                raise UsageError(
                    f"the ledger's account {name} is kept for the relation {kept}, and "
                    f"[fcp:privacy] relation is {policy.relation} now: what was spent cannot be "
                    "restated. Set it back."
                )

    def booked(self, population: str, accounts: Mapping[str, Account]) -> Mapping[str, float]:
        """Write down how far the ledger is; return what is spent, and the budget."""
        watermark.write(self.policy(population).watermark, accounts)
        return self.figures(population, accounts)

    def figures(self, population: str, accounts: Mapping[str, Account]) -> Mapping[str, float]:
        """Return what is spent, and the budget; of accounts by day those of the last one."""
        policy = self.policy(population)
        figures = {}
        for account in accounts.values():
            total = Balance.read(account.data).spent(policy.sums_for, policy.delta)
            figures["privacy_spent"] = policy.measure(total)
        if policy.bounded:
            most = policy.rho if policy.rho is not None else policy.epsilon
            figures["privacy_budget"] = float(most or 0.0)
        return figures

    @staticmethod
    def _balance(policy: Policy, account: Account) -> Balance:
        if not account.version:
            return Balance(policy.unit, policy.relation)
        return Balance.read(account.data)


def _events(planned: Planned) -> list[Event]:
    return [from_cost(cost) for cost in planned.costs]


def _word(policy: Policy, planned: Planned) -> str | None:
    """Return what is against a program that says that it adds the noise itself."""
    if not planned.spec.costs or not policy.required or policy.trust_programs:
        return None
    return (
        f"the population {planned.spec.population} demands differential privacy, and takes "
        "nobody's word for it: the task says that its program adds the noise (costs). Let the "
        "server add it, by an aggregator such as dp_gaussian or FederatedContext(dp='server'); or "
        "the operator trusts programs with results that have none yet (trust_programs)."
    )


def _is_off(event: Event) -> bool:
    return isinstance(event, EpsilonDelta) and event.epsilon >= OFF


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "the task"
