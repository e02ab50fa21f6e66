"""What ledgers have to say of a storage that a server begins to act for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from fcp_core.errors import UsageError, plugin_errors
from fcp_core.rounds.events import LedgerRead
from fcp_core.rounds.ledger import Account, Ledger
from fcp_core.server.services.store import Loaded

logger = logging.getLogger("fcp.services")


async def read_ledgers(
    loaded: Loaded, ledgers: Sequence[Ledger], now: float, notify: Callable[[LedgerRead], None]
) -> None:
    """Check what is booked, and tell observers how it stands.

    :raises UsageError: if there is a result that is not booked, or a ledger that has gone back.
    """
    populations = verify(loaded, ledgers)
    for population in sorted({entry.population for entry in loaded.entries}):
        accounts = populations.get(population, {})
        times = [entry.time for entry in loaded.entries if entry.population == population]
        figures = await asyncio.to_thread(_figures, ledgers, population, accounts)
        notify(LedgerRead(now, population, figures, len(times), max(times)))


def _figures(
    ledgers: Sequence[Ledger], population: str, accounts: Mapping[str, Account]
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for ledger in ledgers:
        try:
            figures.update(ledger.figures(population, of_ledger(ledger, accounts)))
        except plugin_errors():
            logger.exception("the ledger %s failed to say how it stands", ledger.name)
    return figures


def of_ledger(ledger: Ledger, accounts: Mapping[str, Account]) -> dict[str, Account]:
    """Return the accounts that are a ledger's, in the order of their names."""
    prefix = f"{ledger.name}/"
    return {name: accounts[name] for name in sorted(accounts) if name.startswith(prefix)}


def verify(loaded: Loaded, ledgers: Sequence[Ledger]) -> dict[str, dict[str, Account]]:
    """Check that what is stored of results and what is booked belong together.

    :returns: the accounts of each population.
    :raises UsageError: if there is a result that is not booked, or a ledger that has gone back.
    """
    populations: dict[str, dict[str, Account]] = {}
    for account in loaded.accounts:
        of = populations.setdefault(account.population, {})
        of[account.account] = Account(account.account, account.version, account.data)
    booked = {entry.task_id for entry in loaded.entries}
    for task in loaded.tasks:
        if task.record.release and task.record.task_id not in booked:
            raise UsageError(
                f"the result of task {task.record.name} ({task.record.task_id}) is not booked in "
                "the ledger: the ledger is older than the results, as after a backup that was "
                "restored in parts. What was released since is not accounted for. Restore the "
                "whole storage, or delete the results that are newer: docs/privacy.md."
            )
    for entry in loaded.entries:
        for name, version in entry.accounts.items():
            known = populations.get(entry.population, {}).get(name)
            if known is None or known.version < version:
                raise UsageError(
                    f"the ledger's account {name} is older than its entries: entry {version} is "
                    f"there, the account is at {0 if known is None else known.version}. Restore "
                    "the whole storage from one backup: docs/privacy.md."
                )
    for ledger in ledgers:
        names = {*populations, *(task.record.population for task in loaded.tasks)}
        for population in sorted(names):
            ledger.verify(population, of_ledger(ledger, populations.get(population, {})))
    return populations
