"""What is in the ledger of a storage, read while servers go on; and the words for it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fcp_core.storage.codec import CodecError, decode
from fcp_core.storage.records import AccountRecord, EntryRecord
from fcp_core.storage.upkeep import Upkeep
from fcp_privacy.account import Balance
from fcp_privacy.ledger import PrivacyLedger
from fcp_privacy.policy import SECTION, Policy

#: What each unit's promise is about.
_UNITS = {
    "device": "all that one device ever contributed",
    "device-day": "what one device contributed on one day (UTC, by when a task was submitted)",
}
_RELATIONS = {
    "zero_out": "as if the device had contributed zeros instead",
    "add_or_remove": "as if the device had not taken part",
    "replace_one": "as if the device had contributed anything else instead",
}


@dataclass(frozen=True)
class Account:
    """An account, with the policy of its population as it is configured now."""

    name: str
    population: str
    version: int
    balance: Balance
    policy: Policy

    @property
    def left(self) -> float | None:
        """What may still be spent, in the budget's unit; None if there is no budget."""
        most = self.policy.rho if self.policy.rho is not None else self.policy.epsilon
        return None if most is None else max(0.0, most - self.spent)

    @property
    def spent(self) -> float:
        """What was spent, in the budget's unit."""
        return self.policy.measure(self.balance.spent(self.policy.sums_for, self.policy.delta))

    @property
    def shown(self) -> str:
        """What was spent, in words."""
        return self.policy.say(self.balance.spent(self.policy.sums_for, self.policy.delta))

    def forecast(self) -> int | None:
        """Return how many more releases like those before fit the budget; None: without end."""
        if not self.policy.bounded or not self.balance.releases:
            return None
        each = self.balance.spent(self.policy.sums_for, self.policy.delta).times(1)
        share = 1 / self.balance.releases
        fitting = 0
        for step in (1 << power for power in range(20, -1, -1)):
            total = each.scaled(1 + (fitting + step) * share)
            if self.policy.allows(total):
                fitting += step
        return fitting if fitting < (1 << 21) - 1 else None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        total = self.balance.spent(self.policy.sums_for, self.policy.delta)
        epsilon = total.at(self.policy.delta)
        return {
            "account": self.name,
            "population": self.population,
            "unit": self.balance.unit,
            "relation": self.balance.relation,
            "releases": self.balance.releases,
            "version": self.version,
            "budget": {
                "epsilon": self.policy.epsilon,
                "delta": self.policy.delta,
                "rho": self.policy.rho,
            },
            "spent": {
                "epsilon": None if epsilon == float("inf") else epsilon,
                "delta": self.policy.delta,
                "rho": None if total.as_rho() == float("inf") else total.as_rho(),
            },
            "releases_left": self.forecast(),
            "events": [
                {"event": dict(line.event), "count": line.count} for line in self.balance.lines
            ],
        }


@dataclass(frozen=True)
class Books:
    """All accounts of the privacy ledger and its entries, by time."""

    accounts: list[Account] = field(default_factory=list)
    entries: list[EntryRecord] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return them as JSON has them. What takes noise off is never in it."""
        return {
            "accounts": [account.to_json() for account in self.accounts],
            "entries": [_entry(entry) for entry in self.entries],
        }


async def read_books(upkeep: Upkeep, ledger: PrivacyLedger, population: str | None) -> Books:
    """Read the ledger from a storage.

    :param population: None: of all populations.
    :raises UsageError: if the storage cannot be read.
    """
    books = Books()
    async for _, _, data in upkeep.scan(AccountRecord.KIND):
        record = decode(AccountRecord, data)
        if record.account.startswith(f"{SECTION}/") and population in (None, record.population):
            books.accounts.append(
                Account(
                    record.account,
                    record.population,
                    record.version,
                    Balance.read(record.data),
                    ledger.policy(record.population),
                )
            )
    async for _, _, data in upkeep.scan(EntryRecord.KIND):
        with contextlib.suppress(CodecError):
            entry = decode(EntryRecord, data)
            if population in (None, entry.population):
                books.entries.append(entry)
    books.accounts.sort(key=lambda account: account.name)
    books.entries.sort(key=lambda entry: (entry.time, entry.task_id))
    return books


def statement(account: Account) -> str:
    """Return what a data protection officer is to know of an account."""
    policy, balance = account.policy, account.balance
    total = balance.spent(policy.sums_for, policy.delta)
    correlated = [line.event for line in balance.lines if line.event["type"] == "series"]
    assumption = policy.participation or (
        "nothing is configured that makes sure of it; a device may contribute to every result, "
        "and is taken to contribute to each at most once"
    )
    if correlated:
        assumption += (
            f". {len(correlated)} series of rounds are counted with a minimum separation, which "
            "the devices themselves keep (their history and the policy minimum_separation): the "
            "server cannot check it, and the promise holds for devices that do"
        )
    used = ", ".join(sorted({str(line.event["type"]) for line in balance.lines})) or "none"
    rho = total.as_rho()
    lines = [
        f"Privacy statement for the population {account.population}",
        "",
        f"What was released: {balance.releases} results, with noise. What they reveal of",
        f"{_UNITS[balance.unit]} is bounded:",
        f"the results are nearly as likely {_RELATIONS[balance.relation]}.",
        "",
        f"Unit:             {balance.unit}",
        f"Relation:         {balance.relation}",
        f"Spent:            {policy.say(total)}"
        + ("" if rho == float("inf") or policy.rho is not None else f" (rho {rho:.4g})"),
        f"Budget:           {policy.say_budget()}",
        f"Mechanisms:       {used}",
        f"Participation:    {assumption}.",
        "Trusted:          the server and its storage, which see contributions, or sums of them, "
        "without noise.",
        "Not covered:      how many devices took part, when, and from where; results of tasks "
        "without noise",
        "                  ("
        + ("refused" if policy.required else "allowed")
        + " here); what was chosen by trying (hyper-parameters).",
        "Post-processing:  whatever is computed from the released results costs nothing more.",
    ]
    return "\n".join(lines)


def _entry(entry: EntryRecord) -> dict[str, Any]:
    release: Mapping[str, Any] = msgspec.json.decode(entry.release)
    return {
        "task_id": entry.task_id,
        "population": entry.population,
        "name": entry.name,
        "time": entry.time,
        "accounts": dict(entry.accounts),
        **release,
    }
