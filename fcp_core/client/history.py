"""What a device remembers: its contributions, for the policies that ask, and what ran on it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from fcp_core.errors import UsageError
from fcp_core.protocol.statement import digest_of, statement_of

_SCHEMA = """
CREATE TABLE IF NOT EXISTS beginning (time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS contributions (
    id INTEGER PRIMARY KEY,
    population TEXT NOT NULL,
    task_name TEXT NOT NULL,
    session TEXT NOT NULL,
    time REAL NOT NULL,
    separation_index INTEGER,
    statement TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY,
    population TEXT NOT NULL,
    task_name TEXT NOT NULL,
    session TEXT NOT NULL,
    time REAL NOT NULL,
    plan_sha256 TEXT NOT NULL,
    collections TEXT NOT NULL DEFAULT '',
    outcome TEXT NOT NULL DEFAULT 'began',
    statement TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS by_task ON contributions (population, task_name, time);
"""


#: Runs that are kept; the oldest go first.
_MAX_RUNS = 10_000


@dataclass(frozen=True)
class RunRecord:
    """What one plan did on the device.

    :param task_name: ``(eligibility)`` for a plan that weighs tasks.
    :param time: when it began, in seconds since the epoch.
    :param plan_sha256: of the serialized plan, in hexadecimal.
    :param collections: the URIs of the collections that it read.
    :param statement: what the task said of its privacy, as JSON.
    :param outcome: ``began`` if the device ended before the plan; ``computed`` if nothing more is
        known; else how it ended, in words.
    """

    population: str
    task_name: str
    session: str
    time: float
    plan_sha256: str
    collections: tuple[str, ...]
    outcome: str
    statement: str = ""


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
            for table in ("contributions", "runs"):
                self._add_statement(table)
            # Two processes that open a new file at once agree on one beginning.
            self._database.execute(
                "INSERT INTO beginning SELECT ? WHERE NOT EXISTS (SELECT * FROM beginning)",
                (now(),),
            )
            undo.pop_all()

    def _add_statement(self, table: str) -> None:
        """Give a table of an earlier release the column that it has now."""
        columns = self._database.execute(f"PRAGMA table_info({table})").fetchall()
        if "statement" not in {column[1] for column in columns}:
            self._database.execute(
                f"ALTER TABLE {table} ADD COLUMN statement TEXT NOT NULL DEFAULT ''"
            )

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> History:
        """Open a history that is there already.

        :raises UsageError: if the file is none; it stays as it is.
        """
        uri = f"file:{quote(os.path.abspath(path))}?mode=ro"
        with _as_usage_error(path), contextlib.closing(sqlite3.connect(uri, uri=True)) as found:
            found.execute("SELECT count(*) FROM runs, beginning")
        return cls(path)

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
        statement: str = "",
    ) -> int:
        """Note a contribution and return a number to withdraw it by.

        :param separation_index: the index that the plan gave for minimum separation, if any.
        :param statement: what the task said of its privacy, as JSON.
        """
        with self._lock:
            cursor = self._database.execute(
                "INSERT INTO contributions"
                " (population, task_name, session, time, separation_index, statement)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (population, task_name, session, when, separation_index, statement),
            )
        # An INSERT that did not raise always has the id of its row.
        return int(cursor.lastrowid or 0)

    def withdraw(self, contribution: int) -> None:
        """Forget a contribution that the server refused."""
        with self._lock:
            self._database.execute("DELETE FROM contributions WHERE id = ?", (contribution,))

    def statements(self, since: float) -> list[str]:
        """Return what the tasks said of their privacy that the device contributed to.

        :param since: in seconds since the epoch.
        """
        with self._lock:
            rows = self._database.execute(
                "SELECT statement FROM contributions WHERE time >= ? AND statement <> ''", (since,)
            ).fetchall()
        return [text for (text,) in rows]

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

    def begin_run(
        self, population: str, task_name: str, when: float, plan: bytes, *, session: str = ""
    ) -> int:
        """Note that a plan is about to run, and return a number to end it by."""
        digest = digest_of(plan)
        statement = statement_of(plan).text
        with self._lock:
            cursor = self._database.execute(
                "INSERT INTO runs (population, task_name, session, time, plan_sha256, statement)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (population, task_name, session, when, digest, statement),
            )
            run = int(cursor.lastrowid or 0)
            self._database.execute("DELETE FROM runs WHERE id <= ?", (run - _MAX_RUNS,))
        return run

    def end_run(self, run: int, outcome: str, collections: Iterable[str] | None = None) -> None:
        """Note what came of a run.

        :param collections: what it read; None leaves what was noted.
        """
        text = None if collections is None else json.dumps(list(collections))
        with self._lock:
            self._database.execute(
                "UPDATE runs SET outcome = ?, collections = coalesce(?, collections) WHERE id = ?",
                (outcome, text, run),
            )

    def runs(self) -> list[RunRecord]:
        """Return what ran on the device, in its order."""
        with self._lock:
            rows = self._database.execute(
                "SELECT population, task_name, session, time, plan_sha256, collections, outcome,"
                " statement FROM runs ORDER BY id"
            ).fetchall()
        return [
            RunRecord(
                population,
                name,
                session,
                when,
                digest,
                tuple(json.loads(read or "[]")),
                outcome,
                statement,
            )
            for population, name, session, when, digest, read, outcome, statement in rows
        ]

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
