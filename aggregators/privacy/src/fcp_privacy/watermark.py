"""A small file outside of the storage that remembers how far the ledgers were.

A backup that is restored takes the ledger back with the results, and what was released since is
known to those who have it and booked nowhere. The file is not in the backup, so it tells.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fcp_core.errors import UsageError
from fcp_core.rounds.ledger import Account


def check(path: Path | None, population: str, accounts: Mapping[str, Account]) -> None:
    """Compare the accounts of a population with the file.

    :param path: None: there is none.
    :raises UsageError: if an account is older than the file says, or the file cannot be read.
    """
    if path is None or not path.exists():
        return
    for name, version in _read(path).items():
        if not name.split("/")[1:-1] or not name.startswith(f"privacy/{population}/"):
            continue
        known = accounts[name].version if name in accounts else 0
        if known < version:
            raise UsageError(
                f"the privacy ledger was taken back: {version} releases were booked in {name}, as "
                f"{path} says, and the storage has {known}. A backup was restored, and "
                f"{version - known} results that were released since are booked nowhere. Restore "
                "a newer one; or, if the results of those releases are to be forgotten, say what "
                'they cost with "fcp privacy restate": docs/privacy.md.'
            )


def write(path: Path | None, accounts: Mapping[str, Account]) -> None:
    """Note the versions of accounts.

    :param path: None: nothing is noted.
    """
    if path is None:
        return
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
