"""What SQLite says when the disk, the file or another process fails it."""

import asyncio
import contextlib
import ctypes
import os
import pickle
import sqlite3
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_core.storage import contract
from fcp_core.storage.contract import StorageError, check_contract
from fcp_core.testing.storage import Item
from fcp_plugins.storage_memory import MemoryStorage
from fcp_plugins.storage_sqlite import SCHEMA_VERSION, SqliteStorage
from tests.storage.sqlite_files import put, start_and_stop


def obey_file_modes():
    """Hold this thread, and those that it starts, to the modes of files, even as root."""
    if os.geteuid() != 0:
        return
    if sys.platform != "linux":
        pytest.skip("root may write anywhere")
    # Linux has capabilities of each thread. This empties those that count at the moment.
    header = struct.pack("Ii", 0x2008_0522, 0)  # the third version; this thread
    data = ctypes.create_string_buffer(struct.pack("6I", *[0] * 6))
    assert ctypes.CDLL(None, use_errno=True).capset(header, data) == 0, ctypes.get_errno()


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be looked at by SQLite\n" * 40)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="not a database"):
        start_and_stop(path)
    assert path.read_bytes() == before


def test_the_database_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE records (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="another program"):
        start_and_stop(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "store.db"
    put(path, "a")
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer.close()
    with pytest.raises(UsageError, match=rf"newer release.*version {SCHEMA_VERSION + 1}.*upgrade"):
        start_and_stop(path)
    newer = sqlite3.connect(path)
    assert newer.execute("SELECT count(*) FROM records").fetchone() == (1,)
    newer.close()


def test_a_read_only_file_is_refused(tmp_path):
    path = tmp_path / "store.db"
    put(path, "a")
    path.chmod(0o400)
    with ThreadPoolExecutor(1, initializer=obey_file_modes) as pool:
        started = pool.submit(start_and_stop, path)
        with pytest.raises(UsageError, match="must be writable"):
            started.result(60)


def test_a_full_disk_is_an_error_of_one_transaction_only(tmp_path):
    async def main():
        storage = SqliteStorage(tmp_path / "store.db")
        await storage.start()

        def fill(tx):
            tx._db.execute("PRAGMA max_page_count = 20")
            tx.put(Item("big", data=bytes(4 << 20)))

        calls = [
            storage.transact(lambda tx: tx.put(Item("a"))),
            storage.transact(fill),
            storage.transact(lambda tx: tx.put(Item("b"))),
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        names = await storage.transact(lambda tx: [item.name for item in tx.select(Item)])
        await storage.stop()
        return answers, names

    (first, error, second), names = asyncio.run(main())
    assert (first, second, names) == (None, None, ["a", "b"])
    assert isinstance(error, StorageError)
    assert error.code is Code.UNAVAILABLE
    assert "full" in error.message


@pytest.mark.parametrize("together", [1, 3])
def test_nothing_is_written_after_the_disk_lost_a_write(tmp_path, together):
    """The system forgets what it could not write: to sync again would only seem to work."""

    async def main():
        storage = SqliteStorage(tmp_path / "store.db")
        await storage.start()
        await storage.transact(lambda tx: tx.put(Item("kept")))
        open_file = storage._run_batch

        def run_batch(connection, batch):
            open_file(_LosesWrites(connection), batch)

        storage._run_batch = run_batch
        calls = [storage.transact(lambda tx, n=n: tx.put(Item(n))) for n in "abc"[:together]]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        storage._run_batch = open_file
        with pytest.raises(StorageError, match="check the disk and restart"):
            await storage.transact(lambda tx: tx.put(Item("later")))
        await storage.stop()
        storage = SqliteStorage(tmp_path / "store.db")
        await storage.start()
        names = await storage.transact(lambda tx: [item.name for item in tx.select(Item)])
        await storage.stop()
        return answers, names

    answers, names = asyncio.run(main())
    assert all(isinstance(error, StorageError) for error in answers), answers
    assert names == ["kept"]


class _LosesWrites:
    """A connection to a disk that fails to sync; no real one does so when asked to."""

    def __init__(self, connection):
        self._connection = connection

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def execute(self, sql, *arguments):
        if sql == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
            raise error
        return self._connection.execute(sql, *arguments)


def test_nothing_is_written_to_a_file_that_was_removed(tmp_path):
    path, away, log = (tmp_path / name for name in ("store.db", "away", "store.db-wal"))

    async def main():
        storage = SqliteStorage(path)
        await storage.start()
        try:
            await storage.transact(lambda tx: tx.put(Item("before")))
            path.rename(away)
            with pytest.raises(StorageError, match=r"store\.db was removed or replaced"):
                await storage.transact(lambda tx: tx.put(Item("lost")))
            away.rename(path)
            await storage.transact(lambda tx: tx.put(Item("later")))
            log.unlink()
            with pytest.raises(StorageError, match=r"store\.db-wal was removed or replaced"):
                await storage.transact(lambda tx: tx.put(Item("lost")))
            # What was in the log is in the file now, whatever becomes of this process.
            with contextlib.closing(sqlite3.connect(path)) as found:
                assert found.execute("SELECT key FROM records").fetchall() == [
                    ("before",),
                    ("later",),
                ]
        finally:
            await storage.stop()

    asyncio.run(main())


def test_a_storage_of_an_older_release_is_refused_in_words():
    class Older(MemoryStorage):
        async def transact(self, body):
            class Transaction(contract.Transaction):
                get = put = delete = select = None

            return body(Transaction())

    with pytest.raises(UsageError, match=r"Older was written for an older release.*now\(\)"):
        asyncio.run(check_contract(Older()))
    asyncio.run(check_contract(MemoryStorage()))


def test_a_fault_survives_the_trip_from_another_process():
    error = pickle.loads(pickle.dumps(StorageError("gone")))
    assert (type(error), error.code, error.message) == (StorageError, Code.UNAVAILABLE, "gone")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="only newer Pythons can lower the limit")
def test_a_record_that_is_too_large_is_an_error_of_its_own(tmp_path):
    """It is not worth trying again: the code says so, and the transaction leaves nothing."""

    async def main():
        storage = SqliteStorage(tmp_path / "store.db")
        await storage.start()

        def put_too_much(tx):
            tx._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
            tx.put(Item("small"))
            tx.put(Item("large", data=bytes(100_000)))

        with pytest.raises(StatusError, match="too large") as caught:
            await storage.transact(put_too_much)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        await storage.transact(lambda tx: tx.put(Item("next", data=bytes(90_000))))
        names = await storage.transact(lambda tx: [item.name for item in tx.select(Item)])
        await storage.stop()
        return names

    assert asyncio.run(main()) == ["next"]


def test_a_lock_that_another_process_keeps_is_reported_as_unavailable(tmp_path):
    path = tmp_path / "store.db"
    put(path, "a")
    code = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "locked\n"

        async def main():
            storage = SqliteStorage(path, busy_timeout=0.1)
            with pytest.raises(UsageError, match="locked; end the program"):
                await storage.start()

        asyncio.run(main())
        holder.stdin.close()

    async def locked_later():
        storage = SqliteStorage(path, busy_timeout=0.1)
        await storage.start()
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked") as caught:
            await storage.transact(lambda tx: tx.put(Item("b")))
        db.execute("ROLLBACK")
        db.close()
        await storage.transact(lambda tx: tx.put(Item("c")))
        names = await storage.transact(lambda tx: [item.name for item in tx.select(Item)])
        await storage.stop()
        return caught.value.code, names

    assert asyncio.run(locked_later()) == (Code.UNAVAILABLE, ["a", "c"])
