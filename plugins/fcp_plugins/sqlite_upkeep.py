"""Looks after an SQLite file of records: reads it beside a server, and copies it online."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from fcp_core.errors import UsageError
from fcp_core.storage.upkeep import KindSize, StorageInfo, Upkeep
from fcp_plugins.sqlite_parts import whole

#: How many problems of the file are listed.
_PROBLEMS = 100
#: What stands for the bytes of records that are in parts.
_SIZES = "SELECT kind, key, data FROM records WHERE length(data) = 9 AND substr(data, 1, 1) = x'c1'"


def _parts(db: sqlite3.Connection) -> str:
    """Return the table of parts, for a query; a file of an earlier release has none."""
    known = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'parts'").fetchone()
    return "parts" if known else "(SELECT '' kind, '' key, 0 n, x'' data WHERE 0)"


def _copied(db: sqlite3.Connection, draft: Path) -> list[str]:
    """Copy a database to a file; return what SQLite says of the copy.

    :raises OSError: if it cannot be written.
    """
    try:
        with contextlib.closing(sqlite3.connect(draft)) as copy:
            # All pages at once: a copy in parts begins anew with each write of a server. In WAL
            # mode neither waits for the other.
            db.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # So that it is one file.
            return [row[0] for row in copy.execute("PRAGMA quick_check(1)")]
    except sqlite3.Error as error:
        raise OSError(str(error)) from None


class SqliteUpkeep(Upkeep):
    """Looks after a file.

    :param application: the number in the header of our files.
    :param newest: the version of the schema that this release makes.
    :param migrate: opens the file for writing, which brings it up to date, and closes it.
    """

    def __init__(
        self, path: Path, application: int, newest: int, migrate: Callable[[], Awaitable[None]]
    ) -> None:
        self._path = path
        self._application = application
        self._newest = newest
        self._migrate = migrate

    async def info(self) -> StorageInfo:
        """Return what there is."""
        return await asyncio.to_thread(self._info)

    async def scan(self, only: str | None = None) -> AsyncIterator[tuple[str, str, bytes]]:
        """Iterate over the records."""
        with self._opened() as db:
            # It sees the file as it is now, whatever is written meanwhile.
            db.execute("BEGIN")
            where, values = ("", ()) if only is None else (" WHERE kind = ?", (only,))
            for row in db.execute(f"SELECT kind, key, data FROM records{where}", values):
                yield (*row[:2], whole(db, *row))

    async def check(self) -> list[str]:
        """Check the file, and that the index has what is there and nothing else."""
        return await asyncio.to_thread(self._check)

    async def migrate(self) -> int:
        """Bring the schema up to date, or make the file."""
        version = await asyncio.to_thread(self._version) if self._path.exists() else 0
        await self._migrate()
        return version

    async def backup(self, target: Path) -> None:
        """Write a copy while servers go on writing."""
        await asyncio.to_thread(self._backup, target)

    def _info(self) -> StorageInfo:
        with self._opened() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            page = db.execute("PRAGMA page_size").fetchone()[0]
            rows = db.execute(
                "SELECT kind, count(*), sum(length(data)) + coalesce((SELECT sum(length(data))"
                f" FROM {_parts(db)} WHERE kind = records.kind), 0)"
                " FROM records GROUP BY kind ORDER BY kind"
            )
            kinds = tuple(KindSize(*row) for row in rows)
        place = f"SQLite file {self._path}"
        return StorageInfo(place, version, self._newest, pages * page, time.time(), kinds)

    def _check(self) -> list[str]:
        with self._opened() as db:
            try:
                rows = db.execute(f"PRAGMA integrity_check({_PROBLEMS})").fetchall()
                lost = db.execute(
                    "SELECT DISTINCT kind, key FROM entries EXCEPT SELECT kind, key FROM records"
                ).fetchall()
                sizes = {(kind, key): size for kind, key, size in db.execute(_SIZES)}
                parts = db.execute(
                    f"SELECT kind, key, sum(length(data)) FROM {_parts(db)} GROUP BY kind, key"
                ).fetchall()
            except sqlite3.DatabaseError as error:
                return [f"SQLite: {error}"]
        problems = [f"SQLite: {row[0]}" for row in rows if row[0] != "ok"]
        for kind, key, size in parts:
            data = sizes.pop((kind, key), b"")
            if int.from_bytes(data[1:], "big") != size:
                problems.append(f"the {size} bytes of parts of {kind} {key!r} are not its record's")
        problems += [f"the parts of {kind} {key!r} are lost" for kind, key in sizes]
        return problems + [
            f"the index of {kind!r} has an entry for {key!r}, of which there is no record"
            for kind, key in lost
        ]

    def _backup(self, target: Path) -> None:
        draft = target.with_name(f"{target.name}.part")
        try:
            # What is in it is nobody else's business.
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            if target.exists():
                draft.unlink()
                raise FileExistsError(0, "it exists already")
        except OSError as error:
            why = error.strerror
            if error.filename is not None and isinstance(error, FileExistsError):
                why = f"a backup writes {draft}, or was killed; if there is none, remove it"
            raise UsageError(f"the copy {target} cannot be made: {why}.") from None
        try:
            with self._opened() as db:
                problems = _copied(db, draft)
            if problems != ["ok"]:
                raise UsageError(f"the copy of {self._path} is damaged: {problems[0]}.")
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
            os.link(draft, target)  # Unlike a rename, it never replaces.
        except OSError as error:
            raise UsageError(f"the copy {target} cannot be made: {error}.") from None
        finally:
            draft.unlink()

    def _version(self) -> int:
        with self._opened(unmade=True) as db:
            return int(db.execute("PRAGMA user_version").fetchone()[0])

    @contextlib.contextmanager
    def _opened(self, *, unmade: bool = False) -> Iterator[sqlite3.Connection]:
        """Open the file for reading.

        :param unmade: whether a file to which nothing was written will do, as a server takes it
            and leaves it if it is killed in its first moment.
        :raises UsageError: if there is none, or it is no store of ours.
        """
        if not self._path.is_file():
            raise UsageError(
                f"there is no storage file {self._path}; a server makes it when it starts, and "
                "'-s storage.sqlite.path=FILE' before 'db' names another."
            )
        try:
            uri = f"{self._path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(
                sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
            ) as db:
                self._check_maker(db, unmade)
                yield db
        except sqlite3.Error as error:
            raise UsageError(f"the storage file {self._path} cannot be read: {error}.") from None

    def _check_maker(self, db: sqlite3.Connection, unmade: bool) -> None:
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        if application == self._application or (unmade and not application and not tables):
            return
        if application or tables:
            raise UsageError(f"the storage file {self._path} is a database of another program.")
        raise UsageError(
            f"the storage file {self._path} is empty; a server, or 'fcp db migrate', makes its "
            "tables."
        )
