"""The files of an SQLite database: whether they belong together, and are still there."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from fcp_core.errors import UsageError

#: In the header of a database that has no log, such as a copy: how it is read and written.
_NO_LOG = b"\x01\x01"

#: The databases that this process has open.
_open: list[str] = []


def check_log(path: Path) -> None:
    """Check, before a database is opened, that no other one's log lies beside it.

    SQLite takes any log for its own, and mixes the two.

    :raises UsageError: if one does: a copy that is put back has none.
    """
    real = os.path.realpath(path)
    if real in _open:
        return  # it is its own; and to close a file frees all locks that the process has on it
    with contextlib.suppress(OSError):
        if not os.path.getsize(f"{real}-wal"):
            return
        with open(real, "rb") as file:
            alone = file.read(20)[18:] == _NO_LOG
        if alone:
            raise UsageError(
                f"the storage file {path} is a copy, and {real}-wal beside it is of another file: "
                f"SQLite would mix them. Delete {real}-wal and {real}-shm, or put that file back."
            )


class OpenFiles:
    """Knows which files a database was opened with; make it when the first commit is over.

    SQLite goes on with a file that has lost its name: it writes, and says that it has written, to
    what is gone once the process ends.

    :param path: the database's file; its log lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self._real = real = os.path.realpath(path)
        _open.append(real)
        known = {name: _identity(name) for name in (real, f"{real}-wal")}
        self._known = {name: found for name, found in known.items() if found is not None}

    def problem(self, db: sqlite3.Connection) -> str:
        """Say which file is not where it was; ``""`` if all are."""
        for name, identity in self._known.items():
            if _identity(name) != identity:
                # If it is the log, what was written last is in no other file yet.
                with contextlib.suppress(sqlite3.Error):
                    db.execute("PRAGMA wal_checkpoint")
                return (
                    f"{name} was removed or replaced while this server had it open, so that "
                    "nothing is written any more; put the same file back, or restart"
                )
        return ""

    def close(self) -> None:
        """Forget them; call it when the database is closed."""
        _open.remove(self._real)


def _identity(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino
