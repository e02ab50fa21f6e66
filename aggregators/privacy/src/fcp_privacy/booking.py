"""Entries that a person makes: for releases that the storage does not know of any more."""

from __future__ import annotations

import msgspec

from fcp_core.errors import UsageError
from fcp_core.storage.contract import Storage, Transaction
from fcp_core.storage.records import AccountRecord, EntryRecord
from fcp_privacy.account import Balance
from fcp_privacy.events import Event, spent, to_cost
from fcp_privacy.ledger import PrivacyLedger
from fcp_privacy.policy import SECTION, UNITS


async def book_by_hand(
    storage: Storage,
    ledger: PrivacyLedger,
    account: str,
    event: Event,
    releases: int,
    why: str,
    entry: str,
) -> int:
    """Add an event to an account; return its version.

    :param account: without the ledger's name in front.
    :param releases: how many entries are made up for.
    :param entry: the key of the new entry.
    :raises UsageError: if there is no such account name, or the cost is none.
    """
    population, unit = _parts(account)
    try:
        spent([event])
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    policy = ledger.policy(population)
    name = f"{SECTION}/{account}"

    def body(tx: Transaction) -> int:
        known = tx.get(AccountRecord, name)
        before = Balance(unit, policy.relation) if known is None else Balance.read(known.data)
        version = (0 if known is None else known.version) + releases
        after = msgspec.structs.replace(
            before.with_events([event]), releases=before.releases + releases
        )
        tx.put(AccountRecord(name, population, version, after.to_bytes()))
        release = msgspec.json.encode({"costs": [to_cost(event)], "noise": [], "why": why})
        tx.put(EntryRecord(entry, population, "by hand", tx.now(), {name: version}, release))
        return version

    await storage.start()
    try:
        return await storage.transact(body)
    finally:
        await storage.stop()


def _parts(account: str) -> tuple[str, str]:
    for unit in UNITS:
        population, found, _ = account.partition(f"/{unit}")
        if found and population and (account.endswith(f"/{unit}") or unit == "device-day"):
            return population, unit
    raise UsageError(f"{account!r} is no account; they end with /device, or /device-day/DAY.")
