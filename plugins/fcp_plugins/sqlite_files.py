"""The files of an open SQLite database: whether what is written to them will be found again."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path


class OpenFiles:
    """Knows which files a database was opened with; make it when the first commit is over.

    SQLite goes on with a file that has lost its name: it writes, and says that it has written, to
    what is gone once the process ends.

    :param path: the database's file; its log lies beside it.
    """

    def __init__(self, path: Path) -> None:
        real = os.path.realpath(path)
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


def _identity(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino
