"""Storages that are wrong on purpose, each in one way; the kit must tell."""

import asyncio
import sqlite3
import time

from fcp_core.storage.contract import Storage, StorageError
from fcp_plugins.storage_memory import MemoryStorage, _MemoryTransaction
from fcp_plugins.storage_sqlite import SqliteStorage, _SqliteTransaction


class NoRollback(MemoryStorage):
    """Writes what a failed transaction had written so far."""

    async def transact(self, body):
        transaction = _MemoryTransaction(self._tables)
        try:
            return body(transaction)
        finally:
            transaction.commit()


class LostUpdates(MemoryStorage):
    """Lets transactions overlap, and commits all of them."""

    async def transact(self, body):
        transaction = _MemoryTransaction(self._tables)
        result = body(transaction)
        await asyncio.sleep(0)
        transaction.commit()
        return result


class _Blind(_MemoryTransaction):
    def get(self, kind, key):
        return self._tables[kind.KIND].records.get(key)


class BlindToItself(MemoryStorage):
    """A transaction does not read its own writes."""

    async def transact(self, body):
        transaction = _Blind(self._tables)
        result = body(transaction)
        transaction.commit()
        return result


class _Unordered(_MemoryTransaction):
    def select(self, kind, **equals):
        return iter(sorted(super().select(kind, **equals), key=lambda r: (r.key.lower(), r.key)))


class Unordered(MemoryStorage):
    """Orders keys as a person would, not by code point."""

    async def transact(self, body):
        transaction = _Unordered(self._tables)
        result = body(transaction)
        transaction.commit()
        return result


class _Lenient(_MemoryTransaction):
    def select(self, kind, **equals):
        known = {name: value for name, value in equals.items() if name in kind.INDEXES}
        return super().select(kind, **known)


class Lenient(MemoryStorage):
    """Ignores filters by a field that is not indexed."""

    async def transact(self, body):
        transaction = _Lenient(self._tables)
        result = body(transaction)
        transaction.commit()
        return result


class _Lazy(_MemoryTransaction):
    def select(self, kind, **equals):
        for key in sorted({*self._tables[kind.KIND].records, *self._writes[kind.KIND]}):
            record = self.get(kind, key)
            if record and all(getattr(record, n) == v for n, v in equals.items()):
                yield record
        yield from (
            record
            for record in list(self._writes[kind.KIND].values())
            if record and record.key not in self._tables[kind.KIND].records
        )


class Lazy(MemoryStorage):
    """Lets a selection see what is written while it goes on."""

    async def transact(self, body):
        transaction = _Lazy(self._tables)
        result = body(transaction)
        transaction.commit()
        return result


class Forgetful(MemoryStorage):
    """Says that it is durable, and is not."""

    durable = True


class _Monotonic(_MemoryTransaction):
    def now(self):
        return time.monotonic()


class SinceTheStart(MemoryStorage):
    """Tells the time of a clock that begins when the machine does."""

    async def transact(self, body):
        return body(_Monotonic(self._tables))


class BackInTime(MemoryStorage):
    """Tells a time that goes back."""

    async def transact(self, body):
        self._calls = getattr(self, "_calls", 0) + 1
        transaction = _MemoryTransaction(self._tables)
        transaction.now = lambda: time.time() - self._calls
        return body(transaction)


class OneHost(MemoryStorage):
    """Says that servers of several hosts may use it."""

    shared = True


class _Unindexed(_SqliteTransaction):
    def put(self, record):
        kept = self._db.execute(
            "SELECT * FROM entries WHERE kind = ? AND key = ?", (record.KIND, record.key)
        ).fetchall()
        super().put(record)
        self._db.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)", kept)


class _Autocommit(Storage):
    """SQLite with one or the other mistake in how a transaction is run."""

    durable = True

    def __init__(self, path):
        self._sqlite = SqliteStorage(path, busy_timeout=0.1)

    async def start(self):
        self._db = self._sqlite._open()

    async def stop(self):
        self._db.close()


class StaleIndex(_Autocommit):
    """Keeps the index entries of a record that was replaced."""

    async def transact(self, body):
        self._db.execute("BEGIN IMMEDIATE")
        try:
            result = body(_Unindexed(self._db))
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return result


class HalfTransactions(_Autocommit):
    """Commits every statement by itself, and undoes nothing when it is killed."""

    async def transact(self, body):
        return body(_SqliteTransaction(self._db))


class EarlyAnswers(_Autocommit):
    """Answers before the commit, which comes when the storage is stopped."""

    async def transact(self, body):
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        return body(_SqliteTransaction(self._db))


class NoWaiting(_Autocommit):
    """Reads before it takes the lock, so that two processes overwrite each other."""

    async def transact(self, body):
        transaction = _Recorded(self._db)
        result = body(transaction)
        for record in transaction.puts:
            while True:
                try:
                    _SqliteTransaction(self._db).put(record)
                    break
                except sqlite3.OperationalError:
                    await asyncio.sleep(0)
        return result


class _Recorded(_SqliteTransaction):
    def __init__(self, connection):
        super().__init__(connection)
        self.puts = []

    def put(self, record):
        self.puts.append(record)


class DriversWords(_Autocommit):
    """Lets the exceptions of its driver through."""

    async def transact(self, body):
        self._db.execute("BEGIN IMMEDIATE")
        try:
            result = body(_SqliteTransaction(self._db))
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return result


class GivesUp(SqliteStorage):
    """Takes no more after a fault."""

    def __init__(self, path):
        super().__init__(path, busy_timeout=0.1)

    async def transact(self, body):
        if self._suspect:
            raise RuntimeError(self._suspect)
        try:
            return await super().transact(body)
        except StorageError:
            self._suspect = "it failed once"
            raise
