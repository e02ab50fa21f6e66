"""Both built-in storages are held to the kit, and SQLite to what is its own."""

import asyncio
import contextlib
import ctypes
import os
import pickle
import sqlite3
import stat
import struct
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code, StatusError
from fcp_core.storage import contract
from fcp_core.storage.codec import decode
from fcp_core.storage.contract import StorageError, check_contract
from fcp_core.storage.records import BlobRecord
from fcp_core.testing.storage import Item, StorageConformance
from fcp_plugins import storage_sqlite
from fcp_plugins.storage_memory import MemoryStorage
from fcp_plugins.storage_sqlite import APPLICATION_ID, SCHEMA_VERSION, SqliteStorage


class TestMemory(StorageConformance):
    def make_storage(self, path):
        return MemoryStorage()


@contextlib.contextmanager
def locked(path):
    """Keep an SQLite file's lock, as another process would."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


class TestSqlite(StorageConformance):
    durable = shared = can_fail = has_upkeep = True
    child_factory = "fcp_plugins.storage_sqlite:SqliteStorage"

    def make_storage(self, path):
        return SqliteStorage(path)

    def disable(self, path):
        return locked(path)

    def test_fails_in_the_contracts_words(self, tmp_path, monkeypatch):
        monkeypatch.setattr(self, "make_storage", lambda path: SqliteStorage(path, 0.1))
        super().test_fails_in_the_contracts_words(tmp_path)


def start_and_stop(path, **options):
    async def main():
        storage = SqliteStorage(path, **options)
        await storage.start()
        await storage.stop()

    asyncio.run(main())


def put(path, *names):
    async def main():
        storage = SqliteStorage(path)
        await storage.start()
        await storage.transact(lambda tx: [tx.put(Item(name)) for name in names])
        await storage.stop()

    asyncio.run(main())


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


def test_memory_keeps_what_was_put_and_not_what_became_of_it():
    from dataclasses import dataclass
    from typing import ClassVar

    from fcp_core.storage.contract import Record

    @dataclass(frozen=True)
    class Loose(Record):
        KIND: ClassVar[str] = "loose"
        KEY: ClassVar[str] = "name"
        name: str
        values: dict[str, list[int]]

    async def main():
        storage = MemoryStorage()
        values = {"a": [1]}
        await storage.transact(lambda tx: tx.put(Loose("x", values)))
        values["a"].append(2)
        return await storage.transact(lambda tx: tx.get(Loose, "x"))

    assert asyncio.run(main()) == Loose("x", {"a": [1]})


def test_the_configuration_chooses_the_storage_and_its_file(tmp_path):
    (tmp_path / "setup.cfg").write_text(
        "[fcp]\nstorage = sqlite\n[fcp:storage.sqlite]\npath = here.db\nbusy-timeout = 1500ms\n"
    )
    storage = Plugins.load(working_folder=tmp_path, environ={}).make_storage()

    async def main():
        await storage.start()
        await storage.stop()

    asyncio.run(main())
    assert (tmp_path / "here.db").is_file()
    assert storage.durable


def test_a_new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode(tmp_path):
    def modes():
        return {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}

    async def use():
        storage = SqliteStorage(tmp_path / "fcp.sqlite")
        await storage.start()
        try:
            return modes()
        finally:
            await storage.stop()

    mask = os.umask(0)
    try:
        assert set(asyncio.run(use()).values()) == {0o600}
        (tmp_path / "fcp.sqlite").chmod(0o640)
        assert asyncio.run(use())["fcp.sqlite"] == 0o640
    finally:
        os.umask(mask)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none.store\.db cannot be opened.*folder must exist"):
        start_and_stop(tmp_path / "none" / "store.db")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be opened"):
        start_and_stop(tmp_path)


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
            with pytest.raises(UsageError, match="locked"):
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


def test_a_new_file_has_large_pages_and_an_old_one_goes_on_with_its_own(tmp_path):
    old = sqlite3.connect(tmp_path / "old.db")
    old.execute("PRAGMA page_size = 4096")
    old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    old.close()
    for name, size in (("new.db", 1 << 16), ("old.db", 4096)):
        put(tmp_path / name, "a")
        db = sqlite3.connect(tmp_path / name)
        assert db.execute("PRAGMA page_size").fetchone() == (size,)
        db.close()


def test_waiting_transactions_share_a_commit(tmp_path):
    """What makes a durable answer affordable: far fewer commits than transactions."""
    path = tmp_path / "store.db"

    async def main():
        storage = SqliteStorage(path)
        await storage.start()
        commits = []

        def first(tx):
            # Runs on the writing thread, whose connection is the one to watch.
            tx._db.set_trace_callback(lambda sql: sql == "COMMIT" and commits.append(sql))

        await storage.transact(first)
        await asyncio.gather(
            *(storage.transact(lambda tx, n=n: tx.put(Item(str(n)))) for n in range(500))
        )
        count = len(commits)
        await storage.stop()
        return count

    assert asyncio.run(main()) < 250


def test_a_copy_is_of_one_moment_whatever_is_written_meanwhile(tmp_path):
    """Each transaction writes a pair; no copy has half of one, and none holds the writers up."""

    async def main():
        storage = SqliteStorage(tmp_path / "store.db")
        await storage.start()
        going, written = True, 0

        async def writer(name):
            nonlocal written
            while going:
                written += 1
                pair = Item(f"{name}{written}", "one"), Item(f"{written}{name}", "two")
                await storage.transact(lambda tx, pair=pair: [tx.put(item) for item in pair])

        writers = [asyncio.create_task(writer(name)) for name in "abcd"]
        sizes = []
        for number in range(4):
            before = written
            await storage.upkeep().backup(tmp_path / f"copy{number}")
            copy = SqliteStorage(tmp_path / f"copy{number}")
            await copy.start()
            ones, twos = await copy.transact(
                lambda tx: (tx.keys(Item, group="one"), tx.keys(Item, group="two"))
            )
            await copy.stop()
            assert len(ones) == len(twos) >= before - 4
            sizes.append(len(ones))
        going = False
        await asyncio.gather(*writers)
        await storage.stop()
        return sizes

    sizes = asyncio.run(main())
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


def test_use_outside_of_start_and_stop_is_an_error_of_the_program(tmp_path):
    async def main():
        storage = SqliteStorage(tmp_path / "store.db")
        with pytest.raises(RuntimeError, match="not started"):
            await storage.transact(lambda tx: None)
        await storage.stop()
        await storage.start()
        await storage.stop()
        with pytest.raises(RuntimeError, match="not started"):
            await storage.transact(lambda tx: None)

    asyncio.run(main())


def test_a_damaged_record_is_an_error_that_names_its_kind(tmp_path):
    path = tmp_path / "store.db"
    put(path, "a")
    db = sqlite3.connect(path)
    db.execute("UPDATE records SET data = x'c1'")
    db.commit()
    db.close()

    async def main():
        storage = SqliteStorage(path)
        await storage.start()
        try:
            await storage.transact(lambda tx: tx.get(Item, "a"))
        finally:
            await storage.stop()

    with pytest.raises(Exception, match="record of kind 'kit_item' cannot be read"):
        asyncio.run(main())


def test_a_large_record_is_in_parts_and_none_is_left_behind(tmp_path):
    """Whatever takes the place of what; the limit itself is on neither side of a part's end."""
    path, part = tmp_path / "store.db", storage_sqlite._PART
    sizes = (3, part - 40, part, part + 1, 3 * part + 5, 2 * part, 7)
    random = np.random.default_rng(1)
    contents = [random.bytes(size) for size in sizes]

    def counted():
        with contextlib.closing(sqlite3.connect(path)) as db:
            (count,) = db.execute("SELECT count(*) FROM parts").fetchone()
        return count

    async def main():
        storage = SqliteStorage(path)
        await storage.start()
        for data in [*contents, *contents[::-1]]:
            await storage.transact(lambda tx, data=data: tx.put(Item("a", data=data)))
            assert await storage.transact(lambda tx: tx.get(Item, "a").data) == data
            found = await storage.transact(lambda tx: [item.data for item in tx.select(Item)])
            assert found == [data]
            assert (counted() > 0) == (len(data) >= part - 40)
            rows = [row async for row in storage.upkeep().scan()]
            assert [decode(Item, row[2]).data for row in rows] == [data]
            (size,) = [kind.size for kind in (await storage.upkeep().info()).kinds]
            assert 0 < size - len(data) < 200
            assert await storage.upkeep().check() == []
        await storage.transact(lambda tx: tx.put(Item("a", data=contents[4])))
        await storage.transact(lambda tx: tx.delete(Item, "a"))
        assert counted() == 0
        await storage.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("DELETE FROM parts", "the parts of kit_item 'a' are lost"),
        ("DELETE FROM parts WHERE n = 1", "bytes of parts of kit_item 'a' are not its record's"),
        ("DELETE FROM records", "bytes of parts of kit_item 'a' are not its record's"),
    ],
)
def test_lost_parts_are_found(tmp_path, damage, words):
    path = tmp_path / "store.db"

    async def check():
        return await SqliteStorage(path).upkeep().check()

    async def fill():
        storage = SqliteStorage(path)
        await storage.start()
        await storage.transact(lambda tx: tx.put(Item("a", data=bytes(5 << 20))))
        await storage.stop()

    asyncio.run(fill())
    assert asyncio.run(check()) == []
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(damage)
    assert any(words in problem for problem in asyncio.run(check()))


@pytest.mark.parametrize("make", [MemoryStorage, SqliteStorage], ids=lambda make: make.__name__)
@pytest.mark.parametrize("sizes", [(), (0,), (1, 0, 70_000), (300, (2 << 20) + 1)], ids=str)
def test_bytes_may_be_given_in_pieces(tmp_path, make, sizes):
    pieces = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    record = BlobRecord("name", "task", b"".join(pieces))

    async def main():
        storage = make() if make is MemoryStorage else make(tmp_path / "store.db")
        await storage.start()
        views = [memoryview(bytearray(piece)) for piece in pieces]
        await storage.transact(lambda tx: tx.put_pieces(replace(record, data=b""), views))
        for view in views:
            view[:] = bytes(len(view))
        assert await storage.transact(lambda tx: tx.get(BlobRecord, "name")) == record
        await storage.stop()

    asyncio.run(main())


def test_the_file_can_be_renamed_between_runs(tmp_path):
    put(tmp_path / "one.db", "a")
    Path(tmp_path / "one.db").rename(tmp_path / "two.db")
    put(tmp_path / "two.db", "b")
    assert not (tmp_path / "two.db-wal").exists()


def _resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_large_record_is_not_kept_in_memory_until_the_next_one(tmp_path):
    """Neither by the thread that wrote it, nor by the statement."""
    size = 64 << 20

    def put(item):
        return lambda tx: tx.put(item)

    async def main():
        storage = SqliteStorage(tmp_path / "large.sqlite")
        await storage.start()
        await storage.transact(put(Item("small", "a", 1, b"x")))
        before = _resident()
        item = Item("large", "a", 1, b"x" * size)
        await storage.transact(put(item))
        ref = weakref.ref(item)
        del item
        for _ in range(3000):
            if ref() is None:
                break
            await asyncio.sleep(0.001)
        assert ref() is None
        assert _resident() - before < size * 3 // 4
        found = await storage.transact(lambda tx: tx.get(Item, "large"))
        assert found.data == b"x" * size
        await storage.stop()

    asyncio.run(main())
