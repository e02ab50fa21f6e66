"""The ``sqlite`` storage: one file, one writing thread, many transactions to a commit.

All transactions of a process run on one thread, in the order they came. Those that wait are run
together, each in a savepoint of its own, and answered after the commit that they share: that is
what makes a durable answer affordable when many devices report at once. Several processes may use
one file; SQLite then makes them take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_core.storage.codec import encode, encode_pieces, index_value
from fcp_core.storage.contract import (
    ChangedError,
    R,
    Record,
    Storage,
    StorageError,
    T,
    Transaction,
)
from fcp_core.storage.upkeep import Upkeep
from fcp_plugins.sqlite_files import OpenFiles, check_log
from fcp_plugins.sqlite_parts import put_parts, read

#: "fcps", in the header of our files.
APPLICATION_ID = 0x66637073
#: Raised when the tables change; an older file is then brought up to date when it is opened.
SCHEMA_VERSION = 3
#: Kinds of records that version 1 had, and that nothing reads any more.
_DROPPED = ("device_session", "token", "partial")

_SCHEMA = (
    "CREATE TABLE kinds (kind TEXT PRIMARY KEY, indexes TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE records (kind TEXT NOT NULL, key TEXT NOT NULL, data BLOB NOT NULL,"
    " PRIMARY KEY (kind, key))",
    "CREATE TABLE entries (kind TEXT NOT NULL, field TEXT NOT NULL, value BLOB NOT NULL,"
    " key TEXT NOT NULL, PRIMARY KEY (kind, field, value, key)) WITHOUT ROWID",
    "CREATE INDEX entries_by_key ON entries (kind, key)",
)
#: Since version 3.
_PARTS = (
    "CREATE TABLE IF NOT EXISTS parts (kind TEXT NOT NULL, key TEXT NOT NULL, n INTEGER NOT NULL,"
    " data BLOB NOT NULL, PRIMARY KEY (kind, key, n))"
)

#: After these the system may have dropped what it could not write, and would say that a second
#: attempt had written it.
_LOST_SYNC = ("SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC")

#: Bytes of a page of a new file: the largest there is. Each page is written by itself, so that 4 MB
#: in pages of 4 KiB take seven times as long; what is small waits for the disk in either case.
_PAGE = 1 << 16
#: Bytes in the log at which they are copied to the file: what was written again meanwhile, as the
#: aggregates of open tasks are, is copied once.
_CHECKPOINT = 64 << 20
#: Bytes of pages in memory: with less, a large record's are written before they are complete.
_CACHE = 12 << 20

#: How many transactions share a commit at most.
_MAX_BATCH = 256

#: Writes a record.
_PUT = """
INSERT INTO records VALUES (?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET data = excluded.data"""


class _SqliteTransaction(Transaction):
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._checked: set[str] = set()

    def now(self) -> float:
        return time.time()

    def get(self, kind: type[R], key: str) -> R | None:
        row = self._db.execute(
            "SELECT data FROM records WHERE kind = ? AND key = ?", (kind.KIND, key)
        ).fetchone()
        return None if row is None else read(self._db, kind, key, row[0])

    def put(self, record: Record) -> None:
        self._put(record, [encode(record)])

    def put_pieces(self, record: Record, pieces: Sequence[bytes | memoryview]) -> None:
        self._put(record, encode_pieces(record, pieces))

    def _put(self, record: Record, pieces: Sequence[bytes | memoryview]) -> None:
        kind, key = type(record), record.key
        self._check_indexes(kind)
        self._db.execute("DELETE FROM entries WHERE kind = ? AND key = ?", (kind.KIND, key))
        data = put_parts(self._db, kind.KIND, key, pieces)
        self._db.execute(_PUT, (kind.KIND, key, data))
        self._index(record)

    def delete(self, kind: type[Record], key: str) -> None:
        for table in ("records", "entries", "parts"):
            self._db.execute(f"DELETE FROM {table} WHERE kind = ? AND key = ?", (kind.KIND, key))

    def remove(self, kind: type[Record], key: str) -> None:
        query = "SELECT 1 FROM records WHERE kind = ? AND key = ?"
        if self._db.execute(query, (kind.KIND, key)).fetchone() is None:
            raise ChangedError(kind.KIND, key)
        self.delete(kind, key)

    def select(self, kind: type[R], **equals: Any) -> Iterator[R]:
        # Fetched at once, so that the caller may write while it goes over them.
        rows = self._select("key, data", kind, equals)
        return iter([read(self._db, kind, *row) for row in rows])

    def keys(self, kind: type[Record], **equals: Any) -> list[str]:
        return [row[0] for row in self._select("key", kind, equals)]

    def _select(self, column: str, kind: type[Record], equals: Mapping[str, Any]) -> list[Any]:
        self._check_indexes(kind)
        query = f"SELECT {column} FROM records WHERE kind = ?"
        values: list[Any] = [kind.KIND]
        for name, value in equals.items():
            if name not in kind.INDEXES:
                raise ValueError(f"{kind.KIND} is not indexed by {name}, only by {kind.INDEXES}")
            query += (
                " AND key IN (SELECT key FROM entries WHERE kind = ? AND field = ? AND value = ?)"
            )
            values += [kind.KIND, name, index_value(value)]
        return self._db.execute(f"{query} ORDER BY key", values).fetchall()

    def _index(self, record: Record) -> None:
        self._db.executemany(
            "INSERT INTO entries VALUES (?, ?, ?, ?)",
            [
                (record.KIND, name, index_value(getattr(record, name)), record.key)
                for name in record.INDEXES
            ],
        )

    def _check_indexes(self, kind: type[Record]) -> None:
        """Rebuild the indexes of a kind if another release wrote it with other indexes."""
        if kind.KIND in self._checked:
            return
        self._checked.add(kind.KIND)
        wanted = ",".join(sorted(kind.INDEXES))
        row = self._db.execute("SELECT indexes FROM kinds WHERE kind = ?", (kind.KIND,)).fetchone()
        if row is not None and row[0] == wanted:
            return
        self._db.execute("INSERT OR REPLACE INTO kinds VALUES (?, ?)", (kind.KIND, wanted))
        self._db.execute("DELETE FROM entries WHERE kind = ?", (kind.KIND,))
        for row in self._db.execute("SELECT key, data FROM records WHERE kind = ?", (kind.KIND,)):
            self._index(read(self._db, kind, *row))


class _Job:
    """A transaction that waits for its turn."""

    def __init__(self, body: Callable[[Transaction], Any]) -> None:
        self.body = body
        self.future: Future[Any] = Future()
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class SqliteStorage(Storage):
    """Keeps records in an SQLite file.

    :param path: the file; it is created if it does not exist, its folder is not.
    :param busy_timeout: how long to wait for another process that writes, in seconds.
    """

    durable = True
    path: Path

    def __init__(self, path: Path, busy_timeout: float = 30.0) -> None:
        self.path = path
        self._busy_timeout = busy_timeout
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        #: Why nothing is written to the file any more; "" while there is no such reason.
        self._suspect = ""

    async def start(self) -> None:
        """Open the file and start the writing thread.

        :raises UsageError: if the file cannot be opened or written, is no store of ours, or was
            written by a newer release.
        """
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name="fcp-sqlite", daemon=True
        )
        self._thread.start()
        try:
            await asyncio.wrap_future(opened)
        except UsageError:
            self._thread = None
            raise

    async def stop(self) -> None:
        """Finish what waits, and close the file."""
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def upkeep(self) -> Upkeep:
        """Return what looks after the file."""
        from fcp_plugins.sqlite_upkeep import SqliteUpkeep

        async def migrate() -> None:
            await self.start()
            await self.stop()

        return SqliteUpkeep(self.path, APPLICATION_ID, SCHEMA_VERSION, migrate)

    async def transact(self, body: Callable[[Transaction], T]) -> T:
        """Run *body* on the writing thread; returns when its writes are on disk.

        :raises StorageError: if the file is locked for too long or cannot be written.
        :raises StatusError: RESOURCE_EXHAUSTED if a record is too large for such a file.
        """
        if self._thread is None:
            raise RuntimeError("the storage is not started")
        job = _Job(body)
        self._jobs.put(job)
        return await asyncio.wrap_future(job.future)

    def _run(self, opened: Future[None]) -> None:
        try:
            connection = self._open()
        except BaseException as error:
            opened.set_exception(error)
            return
        self._files = OpenFiles(self.path)
        opened.set_result(None)
        going = True
        while going:
            batch = []
            job: _Job | None = self._jobs.get()
            while job is not None:
                if job.future.set_running_or_notify_cancel():
                    batch.append(job)
                if len(batch) == _MAX_BATCH:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            going = job is not None
            if batch:
                self._run_batch(connection, batch)
            while batch:
                batch.pop(0).settle()
            job = None  # or what it wrote would be kept until the next one comes
        connection.close()
        self._files.close()

    def _run_batch(self, connection: sqlite3.Connection, batch: list[_Job]) -> None:
        if why := self._suspect or self._files.problem(connection):
            for job in batch:
                job.error = StorageError(why)
            return
        begun = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            begun = True
            for job in batch:
                connection.execute("SAVEPOINT job")
                try:
                    job.result, job.error = job.body(_SqliteTransaction(connection)), None
                except sqlite3.Error:
                    raise
                except BaseException as error:
                    job.error = error
                    connection.execute("ROLLBACK TO job")
                connection.execute("RELEASE job")
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "") in _LOST_SYNC:
                self._suspect = (
                    f"the disk did not keep what was written to the storage file {self.path} "
                    f"({error}), so that it is not written to any more; check the disk and restart"
                )
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            if not begun:
                # Whoever keeps the file is waited for once.
                for job in batch:
                    job.error = _failure(self.path, error)
            elif len(batch) > 1:
                # Nothing of the batch was written; one that cannot be must not fail the others.
                for job in batch:
                    self._run_batch(connection, [job])
            else:
                batch[0].error = _failure(self.path, error)

    def _open(self) -> sqlite3.Connection:
        check_log(self.path)
        try:
            # What is in it is nobody else's business; SQLite gives its other files the same mode.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            connection = sqlite3.connect(
                self.path, timeout=self._busy_timeout, isolation_level=None
            )
        except (sqlite3.Error, OSError) as error:
            raise UsageError(
                f"the storage file {self.path} cannot be opened: {error}; its folder must exist "
                f"and be writable."
            ) from None
        try:
            self._prepare(connection)
        except (UsageError, sqlite3.Error) as error:
            connection.close()
            if isinstance(error, UsageError):
                raise
            mend = "it must be writable, and written by this server"
            if "locked" in str(error):
                mend = "end the program that holds it, such as a shell of SQLite"
            raise UsageError(
                f"the storage file {self.path} cannot be used: {error}; {mend}."
            ) from None
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA busy_timeout = {int(self._busy_timeout * 1000)}")
        # In this order: another process may make the tables, and say whose they are, in between.
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        if application != APPLICATION_ID and (application or tables):
            raise UsageError(
                f"the storage file {self.path} is a database of another program; name another."
            )
        connection.execute(f"PRAGMA page_size = {_PAGE}")
        self._use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT // size}")
        connection.execute(f"PRAGMA journal_size_limit = {_CHECKPOINT}")
        connection.execute(f"PRAGMA cache_size = {-_CACHE // 1024}")
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise UsageError(
                f"the storage file {self.path} was written by a newer release (its schema is "
                f"version {version}, this release knows {SCHEMA_VERSION}); upgrade fcp-server."
            )
        if version == 0:
            for statement in _SCHEMA:
                connection.execute(statement)
        if version < 3:
            connection.execute(_PARTS)
        for table in ("records", "entries", "kinds") if version == 1 else ():
            connection.executemany(
                f"DELETE FROM {table} WHERE kind = ?",
                [(kind,) for kind in _DROPPED],
            )
        if version < SCHEMA_VERSION:
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        # Written each time: a file that may only be read would be noticed at the first task.
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        # SQLite does not wait for its lock here, so two processes that open a new file collide.
        give_up = time.monotonic() + self._busy_timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.02)


def _failure(path: Path, error: sqlite3.Error) -> Exception:
    if isinstance(error, sqlite3.DataError):
        return StatusError(Code.RESOURCE_EXHAUSTED, f"too large for an SQLite file: {error}")
    if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
        return StorageError(f"the storage file {path} cannot be used: {error}")
    return error
