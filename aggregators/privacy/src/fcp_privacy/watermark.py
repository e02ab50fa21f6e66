"""A small file outside of the storage that remembers how far the ledgers were.

A backup that is restored takes the ledger back with the results, and what was released since is
known to those who have it and booked nowhere. The file is not in the backup, so it tells.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Container, Mapping
from pathlib import Path

from fcp_core.errors import UsageError
from fcp_core.rounds.ledger import Account


def problem(
    path: Path | None,
    population: str,
    accounts: Mapping[str, Account],
    names: Container[str] | None = None,
) -> str:
    """Compare the accounts of a population with the file; return what is wrong, or nothing.

    :param path: None: there is no file.
    :param accounts: by name; those that are not among them are not there.
    :param names: of the accounts that are compared; None: all of the population's.
    :raises UsageError: if the file cannot be read.
    """
    if path is None or not path.exists():
        return ""
    for name, version in _read(path).items():
        known = accounts[name].version if name in accounts else 0
        of = name.partition("/")[2].partition("/device")[0]
        if of == population and (names is None or name in names) and known < version:
            return (
                f"the privacy ledger was taken back: {version} releases were booked in {name}, as "
                f"{path} says, and the storage has {known}. A backup was restored, and "
                f"{version - known} results that were released since are booked nowhere. Restore "
                "a newer one; or book what they have cost: fcp privacy book "
                f"{name.partition('/')[2]} --releases {version - known} ... (docs/privacy.md)."
            )
    return ""


def check(path: Path | None) -> None:
    """Refuse a file that could not be written once something is booked.

    :raises UsageError: if it is a folder, or in none that can be written to.
    """
    if path is None:
        return
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"the watermark of the privacy ledger {path} cannot be written: name a file in a "
            "folder that there is."
        )


def write(path: Path | None, accounts: Mapping[str, Account]) -> None:
    """Note the versions of accounts.

    :param path: None: nothing is noted.
    """
    if path is None:
        return
    # Tasks end in threads of their own, and of other members maybe.
    with open(path.with_name(path.name + ".lock"), "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = _read(path) if path.exists() else {}
        for name, account in accounts.items():
            known[name] = max(account.version, known.get(name, 0))
        new = path.with_name(path.name + ".new")
        with open(new, "w", encoding="utf-8") as file:
            json.dump(known, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def _read(path: Path) -> dict[str, int]:
    try:
        found: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the watermark of the privacy ledger {path} cannot be read: {error}."
        ) from None
    return found
