"""What a device remembers of its contributions, for the policies that ask."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator

from fcp_core.errors import UsageError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS beginning (time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS contributions (
    id INTEGER PRIMARY KEY,
    population TEXT NOT NULL,
    task_name TEXT NOT NULL,
    session TEXT NOT NULL,
    time REAL NOT NULL,
    separation_index INTEGER
);
CREATE INDEX IF NOT EXISTS by_task ON contributions (population, task_name, time);
"""


class History:
    """The contributions of one device, in a SQLite file that nothing but the device reads.

    :param path: the file, or ``":memory:"`` for a history that ends with the process.
    :param now: the time in seconds since the epoch; a new history begins then.
    :raises UsageError: if the file cannot be opened as a database.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, now: Callable[[], float] = time.time
    ) -> None:
        self._lock = threading.Lock()
        with contextlib.ExitStack() as undo, _as_usage_error(path):
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            undo.callback(self._database.close)
            self._database.executescript(_SCHEMA)
            # Two processes that open a new file at once agree on one beginning.
            self._database.execute(
                "INSERT INTO beginning SELECT ? WHERE NOT EXISTS (SELECT * FROM beginning)",
                (now(),),
            )
            undo.pop_all()

    def beginning(self) -> float:
        """Return when the history began, in seconds since the epoch."""
        with self._lock:
            row = self._database.execute("SELECT min(time) FROM beginning").fetchone()
        return float(row[0])

    def add(
        self,
        population: str,
        task_name: str,
        when: float,
        *,
        session: str = "",
        separation_index: int | None = None,
    ) -> int:
        """Note a contribution and return a number to withdraw it by.

        :param separation_index: the index that the plan gave for minimum separation, if any.
        """
        with self._lock:
            cursor = self._database.execute(
                "INSERT INTO contributions (population, task_name, session, time, separation_index)"
                " VALUES (?, ?, ?, ?, ?)",
                (population, task_name, session, when, separation_index),
            )
        # An INSERT that did not raise always has the id of its row.
        return int(cursor.lastrowid or 0)

    def withdraw(self, contribution: int) -> None:
        """Forget a contribution that the server refused."""
        with self._lock:
            self._database.execute("DELETE FROM contributions WHERE id = ?", (contribution,))

    def last_time(self, population: str, task_pattern: re.Pattern[str]) -> float | None:
        """Return when the device last contributed to any task whose whole name matches."""
        with self._lock:
            rows = self._database.execute(
                "SELECT task_name, max(time) FROM contributions WHERE population = ?"
                " GROUP BY task_name",
                (population,),
            ).fetchall()
        times = [float(when) for name, when in rows if task_pattern.fullmatch(name)]
        return max(times, default=None)

    def last_separation_index(self, population: str, task_name: str) -> int | None:
        """Return the index of the last contribution to a task that carried one."""
        with self._lock:
            row = self._database.execute(
                "SELECT separation_index FROM contributions WHERE population = ? AND task_name = ?"
                " AND separation_index IS NOT NULL ORDER BY time DESC, id DESC LIMIT 1",
                (population, task_name),
            ).fetchone()
        return None if row is None else int(row[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()


@contextlib.contextmanager
def _as_usage_error(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise UsageError(
            f"{os.fspath(path)} cannot be used as a client's history: {error}"
        ) from error
