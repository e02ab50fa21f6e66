"""Accounts and ledger entries in storage: what is read and written with a release."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.ledger import Account, ReleaseRefusedError
from fcp_core.storage.contract import Transaction
from fcp_core.storage.records import AccountRecord, EntryRecord, TaskRecord

#: What the accounts of series begin with.
SERIES = "series/"

#: Returns what becomes of accounts; raises ReleaseRefusedError.
Change: TypeAlias = Callable[[Mapping[str, Account]], Mapping[str, bytes]]


@dataclass(frozen=True)
class Booking:
    """What is written with the result of a task, or nothing is.

    :param names: the accounts that *change* is given and may change.
    :param change: is called in the transaction, perhaps twice.
    :param series: accounts with the version that the release was drawn from, and their new data.
    :param release: the costs and the noise, as JSON.
    """

    names: Sequence[str]
    change: Change
    series: Mapping[str, tuple[int, bytes]]
    release: bytes


def read(tx: Transaction, names: Iterable[str]) -> dict[str, Account]:
    """Return accounts by name; those that are not there are empty."""
    found = {}
    for name in names:
        record = tx.get(AccountRecord, name)
        found[name] = (
            Account(name) if record is None else Account(name, record.version, record.data)
        )
    return found


def of_ledgers(tx: Transaction, population: str | None) -> list[AccountRecord]:
    """Return the accounts of ledgers, of one population or of all.

    Those of series may be as large as models, and are not read.
    """
    which = {} if population is None else {"population": population}
    names = tx.keys(AccountRecord, **which)
    found = (tx.get(AccountRecord, name) for name in names if not name.startswith(SERIES))
    return [record for record in found if record is not None]


def book(tx: Transaction, task: TaskRecord, booking: Booking) -> dict[str, Account]:
    """Write a booking; return the accounts after it. May run twice.

    :param task: that ends with it.
    :raises ReleaseRefusedError: if the release may not be; ABORTED if another of its series was
        booked since it was drawn.
    """
    if tx.get(EntryRecord, task.task_id) is not None:
        raise ReleaseRefusedError(f"a result of task {task.name} is booked in the ledger already")
    before = read(tx, booking.names)
    after = {}
    for name, data in booking.change(before).items():
        after[name] = Account(name, before[name].version + 1, data)
    for name, account in read(tx, booking.series).items():
        version, data = booking.series[name]
        if account.version != version:
            raise StatusError(
                Code.ABORTED,
                f"another task of the series {name} was released meanwhile; submit the task again",
            )
        tx.put(AccountRecord(name, task.population, version + 1, data))
    for account in after.values():
        tx.put(AccountRecord(account.name, task.population, account.version, account.data))
    versions = {name: account.version for name, account in after.items()}
    tx.put(
        EntryRecord(task.task_id, task.population, task.name, tx.now(), versions, booking.release)
    )
    return after
