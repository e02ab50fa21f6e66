"""Storages that are wrong on purpose, each in one way; the kit must tell."""

import asyncio
import contextlib
import sqlite3
import time
from dataclasses import replace

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


class _CutsKeys(_MemoryTransaction):
    def get(self, kind, key):
        return super().get(kind, key[:400])

    def put(self, record):
        super().put(replace(record, **{record.KEY: record.key[:400]}))


class CutsKeys(MemoryStorage):
    """Has room for 400 characters of a key."""

    async def transact(self, body):
        transaction = _CutsKeys(self._tables)
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


class _StoredKeys(_MemoryTransaction):
    def keys(self, kind, **equals):
        return sorted(self._tables[kind.KIND].find(equals))


class StoredKeys(MemoryStorage):
    """Returns the keys of what is stored, without what the transaction has written."""

    async def transact(self, body):
        transaction = _StoredKeys(self._tables)
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


class OnlyWrites(_Autocommit):
    """Repeats a transaction if what it writes was changed meanwhile, but not what it only read."""

    async def transact(self, body):
        while True:
            transaction = _Recorded(self._db)
            result = body(transaction)
            with contextlib.suppress(sqlite3.OperationalError):
                self._db.execute("BEGIN IMMEDIATE")
                locked = _SqliteTransaction(self._db)
                keys = {(type(record), record.key) for record in transaction.puts}
                held = all(locked.get(*key) == transaction.seen.get(key) for key in keys)
                for record in transaction.puts if held else ():
                    locked.put(record)
                self._db.execute("COMMIT")
                if held:
                    return result
            await asyncio.sleep(0)


class StaleLock(_Autocommit):
    """Has a lock that outlives its process."""

    async def transact(self, body):
        lock = self._sqlite.path.with_suffix(".lock")
        try:
            lock.mkdir()
        except FileExistsError:
            raise StorageError("somebody else has the lock") from None
        try:
            return body(_SqliteTransaction(self._db))
        finally:
            lock.rmdir()


class OwnClock(SqliteStorage):
    """Tells a time of its own in each process, or wherever it was made."""

    made = 0

    def __init__(self, path):
        super().__init__(path)
        OwnClock.made += 1
        self._late = OwnClock.made

    async def transact(self, body):
        def later(transaction):
            transaction.now = lambda: time.time() - self._late
            return body(transaction)

        return await super().transact(later)


class RepeatsBlindly(SqliteStorage):
    """Runs a transaction again if it has not heard what became of it."""

    deaf = False

    async def transact(self, body):
        if self.deaf:
            await super().transact(body)
        return await super().transact(body)


class SaysItIsDone(SqliteStorage):
    """Takes a transaction for done if it has not heard what became of it."""

    deaf = False

    async def transact(self, body):
        if self.deaf:
            return body(_Nowhere())
        return await super().transact(body)


class _Nowhere(_SqliteTransaction):
    def __init__(self):
        pass

    def get(self, kind, key):
        return None

    def put(self, record):
        pass


class _Recorded(_SqliteTransaction):
    def __init__(self, connection):
        super().__init__(connection)
        self.puts = []
        self.seen = {}

    def get(self, kind, key):
        self.seen[kind, key] = super().get(kind, key)
        return self.seen[kind, key]

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
