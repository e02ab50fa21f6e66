"""How SQLite keeps records: together, whole and in parts."""

import asyncio
import contextlib
import gc
import os
import sqlite3
import weakref
from dataclasses import replace

import numpy as np
import pytest

from fcp_core.storage.codec import decode
from fcp_core.storage.records import BlobRecord
from fcp_core.testing.storage import Item
from fcp_plugins import sqlite_parts
from fcp_plugins.storage_memory import MemoryStorage
from fcp_plugins.storage_sqlite import SqliteStorage
from tests.storage.sqlite_files import put


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
    path, part = tmp_path / "store.db", sqlite_parts.PART
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


def _resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
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
        for _ in range(100):
            # What else came meanwhile in this process has to go, too.
            if _resident() - before < size * 3 // 4:
                break
            gc.collect()
            await asyncio.sleep(0.05)
        assert _resident() - before < size * 3 // 4
        found = await storage.transact(lambda tx: tx.get(Item, "large"))
        assert found.data == b"x" * size
        await storage.stop()

    asyncio.run(main())
