"""The conformance kit of storage back ends.

A plugin's author subclasses :class:`StorageConformance` in a test file and says how a storage is
made; pytest then runs every check::

    class TestSqlite(StorageConformance):
        durable = shared = True
        child_factory = "fcp_plugins.storage_sqlite:SqliteStorage"

        def make_storage(self, path):
            return SqliteStorage(path, busy_timeout=0.1)

        def disable(self, path):
            return locked(path)  # a context manager
"""

from __future__ import annotations

import asyncio
import os
import time
from abc import ABC
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, TypeGuard

import pytest
from hypothesis import settings as hypothesis_settings

from fcp_core.storage import records
from fcp_core.storage.codec import encode
from fcp_core.storage.contract import (
    ChangedError,
    Record,
    Storage,
    StorageError,
    Transaction,
    check_contract,
)
from fcp_core.testing.laws import applies_if
from fcp_core.testing.storage_model import compare_with_dictionary
from fcp_core.testing.storage_records import (
    Expected,
    Item,
    LaterItem,
    OtherItem,
    record_of,
)
from fcp_core.testing.storage_sharing import SharingLaws

__all__ = ["Item", "LaterItem", "OtherItem", "StorageConformance"]


class StorageConformance(SharingLaws, ABC):
    """The checks. Subclass it, define :meth:`make_storage` and set what the back end can do.

    What several processes see is in :class:`SharingLaws`.
    """

    #: There is a :meth:`disable`.
    can_fail: ClassVar[bool] = False
    #: The storage has an :class:`Upkeep`.
    has_upkeep: ClassVar[bool] = False
    #: How long the model is compared.
    settings: ClassVar[hypothesis_settings] = hypothesis_settings(
        max_examples=50, stateful_step_count=30, deadline=None
    )

    def disable(self, path: Path) -> AbstractContextManager[object]:
        """Make storages of *path*, which are in use, fail to write as long as the context lasts.

        As by a lock, a full disk, or a server that is gone. What is :attr:`can_fail` needs it.
        """
        raise NotImplementedError

    def test_says_whether_it_is_durable(self, tmp_path: Path) -> None:
        """The storage's own flags equal the kit's."""
        storage = self.make_storage(tmp_path / "store")
        assert storage.durable is self.durable
        assert storage.shared is self.shared_by_hosts

    def test_tells_its_time(self, tmp_path: Path) -> None:
        """Its time is a date, the same in the next transaction or a later one."""

        async def use(storage: Storage) -> None:
            await check_contract(storage)
            times = [await storage.transact(lambda tx: tx.now()) for _ in range(5)]
            assert times == sorted(times), "its time goes back"
            assert abs(times[-1] - time.time()) < 86400, "its time is not in seconds since 1970"

        self.run(tmp_path / "store", use)

    @applies_if(lambda kit: kit.can_fail)
    def test_fails_in_the_contracts_words(self, tmp_path: Path) -> None:
        """A fault of the storage is a StorageError, and once it is over the storage works again."""
        path = tmp_path / "store"

        async def use(storage: Storage) -> None:
            await storage.transact(lambda tx: tx.put(Item("before")))
            with self.disable(path):
                calls = [storage.transact(lambda tx, n=n: tx.put(Item(n))) for n in "abc"]  # type: ignore[misc]
                for error in await asyncio.gather(*calls, return_exceptions=True):
                    assert isinstance(error, StorageError), f"not a StorageError: {error!r}"
                    assert error.message
            while True:
                try:
                    names = await storage.transact(lambda tx: [i.name for i in tx.select(Item)])
                    break
                except StorageError:  # It may take a while to notice.
                    await asyncio.sleep(0.05)
            assert set(names) <= {"before", "a", "b", "c"}
            assert "before" in names
            await storage.transact(lambda tx: tx.put(Item("after")))
            assert await storage.transact(lambda tx: tx.get(Item, "after")) == Item("after")

        self.run(path, use)

    def test_behaves_like_a_dictionary(self, tmp_path: Path) -> None:
        """Any sequence of transactions leaves what it would leave in a dictionary."""
        compare_with_dictionary(self, self.settings, tmp_path)

    def test_a_transaction_reads_its_own_writes(self, tmp_path: Path) -> None:
        """What was put or deleted in a transaction shows in its reads, not outside before."""

        def body(tx: Transaction) -> None:
            tx.put(Item("a", group="g"))
            tx.expect((Item, "a"), (Item, "b"), (Item, {"group": "g"}), (Item, {"group": "h"}))
            tx.put(Item("b", group="h"))
            assert tx.get(Item, "a") == Item("a", group="g")
            tx.put(Item("a", group="h"))
            assert list(tx.select(Item, group="g")) == []
            assert [item.name for item in tx.select(Item, group="h")] == ["a", "b"]
            assert (tx.keys(Item, group="g"), tx.keys(Item, group="h")) == ([], ["a", "b"])
            tx.delete(Item, "a")
            assert tx.get(Item, "a") is None
            assert [item.name for item in tx.select(Item)] == ["b"]

        async def use(storage: Storage) -> None:
            await storage.transact(body)

        self.run(tmp_path / "store", use)

    def test_returns_and_raises_what_the_body_does(self, tmp_path: Path) -> None:
        """Results and exceptions pass through; an exception leaves nothing behind."""

        def body(tx: Transaction) -> None:
            tx.put(Item("a", size=2))
            tx.delete(Item, "kept")
            raise Expected("on purpose")

        async def use(storage: Storage) -> None:
            await storage.transact(lambda tx: tx.put(Item("kept")))
            assert await storage.transact(lambda tx: ("any", object)) == ("any", object)
            with pytest.raises(Expected, match="on purpose"):
                await storage.transact(body)
            assert await storage.transact(lambda tx: list(tx.select(Item))) == [Item("kept")]

        self.run(tmp_path / "store", use)

    def test_keeps_what_the_server_keeps(self, tmp_path: Path) -> None:
        """A record of each of the server's kinds comes back, is found, is replaced and goes."""
        kinds = [kind for kind in vars(records).values() if _is_kind(kind)]
        assert kinds
        path = tmp_path / "store"

        def replace_one(tx: Transaction, first: Record, second: Record) -> None:
            assert tx.get(type(first), first.key) == first
            tx.put(second)

        async def use(storage: Storage) -> None:
            for kind in kinds:
                first, second = (record_of(kind, number) for number in range(2))
                await storage.transact(lambda tx: tx.put(first))  # noqa: B023 (awaited at once)
                await storage.transact(lambda tx: replace_one(tx, first, second))  # noqa: B023
                for index in kind.INDEXES:
                    for record, found in ((first, []), (second, [second])):
                        equals = {index: getattr(record, index)}
                        assert (
                            await storage.transact(
                                lambda tx: list(tx.select(kind, **equals))  # noqa: B023
                            )
                            == found
                        )

        async def again(storage: Storage) -> None:
            for kind in kinds:
                second = record_of(kind, 1)
                left = await storage.transact(lambda tx: list(tx.select(kind)))  # noqa: B023
                assert left == ([second] if self.durable else [])
                await storage.transact(lambda tx: tx.delete(kind, second.key))  # noqa: B023
                assert await storage.transact(lambda tx: list(tx.select(kind))) == []  # noqa: B023

        self.run(path, use)
        self.run(path, again)

    def test_finds_out_what_was_taken_for_granted(self, tmp_path: Path) -> None:
        """What is inserted is new and what is removed was there, or all of it fails."""

        def insert(tx: Transaction) -> None:
            tx.put(Item("other"))
            tx.insert(Item("there", size=2))

        def remove(tx: Transaction) -> None:
            tx.put(Item("other"))
            tx.remove(Item, "gone")

        async def use(storage: Storage) -> None:
            await storage.transact(lambda tx: tx.insert(Item("there")))
            for body in (insert, remove):
                with pytest.raises(ChangedError):
                    await storage.transact(body)
            assert await storage.transact(lambda tx: list(tx.select(Item))) == [Item("there")]
            # Of many at a time one finds what it takes for granted.
            for body in (
                lambda tx: tx.insert(Item("claimed")),
                lambda tx: tx.remove(Item, "claimed"),
            ):
                together = [storage.transact(body) for _ in range(6)]
                ended = await asyncio.gather(*together, return_exceptions=True)
                assert ended.count(None) == 1, ended
                assert sum(isinstance(end, ChangedError) for end in ended) == 5, ended

        self.run(tmp_path / "store", use)

    def test_refuses_an_unknown_index(self, tmp_path: Path) -> None:
        """Selecting by a field that is not indexed is an error, and not an empty answer."""

        async def use(storage: Storage) -> None:
            with pytest.raises(ValueError, match="data"):
                await storage.transact(lambda tx: list(tx.select(Item, data=b"x")))
            with pytest.raises(ValueError, match="nothing"):
                await storage.transact(lambda tx: list(tx.select(Item, group="g", nothing=1)))
            with pytest.raises(ValueError, match="nothing"):
                await storage.transact(lambda tx: tx.keys(Item, nothing=1))

        self.run(tmp_path / "store", use)

    def test_writes_while_it_iterates(self, tmp_path: Path) -> None:
        """A selection stands still while its transaction writes."""

        def body(tx: Transaction) -> list[str]:
            seen = []
            for item in tx.select(Item, group="g"):
                seen.append(item.name)
                tx.delete(Item, item.name)
                tx.put(Item(f"{item.name}+", group="g"))
                tx.put(OtherItem(item.name, group="g"))
            return seen

        async def use(storage: Storage) -> None:
            names = [f"{number:03}" for number in range(100)]
            await storage.transact(lambda tx: [tx.put(Item(name, group="g")) for name in names])
            assert await storage.transact(body) == names
            left = await storage.transact(lambda tx: list(tx.select(Item, group="g")))
            assert [item.name for item in left] == [f"{name}+" for name in names]

        self.run(tmp_path / "store", use)

    def test_takes_large_blobs(self, tmp_path: Path) -> None:
        """Eight megabytes go in and come out, and are replaced."""
        first, second = (bytes([n]) + os.urandom(8 << 20) for n in range(2))

        async def use(storage: Storage) -> None:
            for data in (first, second):
                await storage.transact(lambda tx, data=data: tx.put(Item("a", data=data)))  # type: ignore[misc]
                item = await storage.transact(lambda tx: tx.get(Item, "a"))
                assert item is not None
                assert item.data == data

        self.run(tmp_path / "store", use)

    def test_concurrent_transactions_take_turns(self, tmp_path: Path) -> None:
        """No update is lost, and one that fails does not take others with it."""

        def body(tx: Transaction, fail: bool) -> int:
            item = tx.get(Item, "counter") or Item("counter")
            tx.put(Item("counter", size=item.size + 1))
            if fail:
                raise Expected
            return item.size

        async def use(storage: Storage) -> None:
            calls = [
                storage.transact(lambda tx, fail=n % 3 == 1: body(tx, fail))  # type: ignore[misc]
                for n in range(300)
            ]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            failed = [answer for answer in answers if not isinstance(answer, int)]
            assert len(failed) == 100
            assert all(isinstance(answer, Expected) for answer in failed)
            assert sorted(answer for answer in answers if isinstance(answer, int)) == list(
                range(200)
            )
            item = await storage.transact(lambda tx: tx.get(Item, "counter"))
            assert item == Item("counter", size=200)

        self.run(tmp_path / "store", use)

    def test_outlives_a_cancelled_caller(self, tmp_path: Path) -> None:
        """A transaction whose caller is gone happens or not, and the next one works."""

        async def use(storage: Storage) -> None:
            for number in range(20):
                name = str(number)
                call = asyncio.ensure_future(
                    storage.transact(
                        lambda tx, name=name: (tx.put(Item(name)), tx.put(OtherItem(name)))  # type: ignore[misc]
                    )
                )
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            items, others = await storage.transact(
                lambda tx: (list(tx.select(Item)), list(tx.select(OtherItem)))
            )
            assert [item.name for item in items] == [other.name for other in others]

        self.run(tmp_path / "store", use)

    @applies_if(lambda kit: kit.durable)
    def test_reads_what_an_earlier_release_wrote(self, tmp_path: Path) -> None:
        """A field that came later has its default; an index that came later finds old records."""
        path = tmp_path / "store"

        async def write(storage: Storage) -> None:
            await storage.transact(lambda tx: [tx.put(Item(n, group="g", size=3)) for n in "ba"])

        async def read(storage: Storage) -> None:
            await storage.transact(lambda tx: tx.put(LaterItem("c", "h", colour="red")))
            found = await storage.transact(lambda tx: list(tx.select(LaterItem, colour="red")))
            keys = await storage.transact(lambda tx: tx.keys(LaterItem, colour="red"))
            assert keys == [item.key for item in found]
            assert found == [
                LaterItem("a", "g", 3),
                LaterItem("b", "g", 3),
                LaterItem("c", "h", colour="red"),
            ]

        self.run(path, write)
        self.run(path, read)

    def test_says_whether_it_has_an_upkeep(self, tmp_path: Path) -> None:
        """What looks after it can be had before it is started."""
        found = self.make_storage(tmp_path / "store").upkeep()
        assert (found is not None) is self.has_upkeep

    @applies_if(lambda kit: kit.has_upkeep)
    def test_what_looks_after_it_reads_everything(self, tmp_path: Path) -> None:
        """The upkeep counts and reads all records, also while a server uses the storage."""
        items = [Item(name, group="g", data=os.urandom(9)) for name in ("a", "b\0", "\u00fc")]
        kept: list[Item] = [*items, OtherItem("c")]

        async def look(storage: Storage) -> None:
            upkeep = self.make_storage(tmp_path / "store").upkeep()
            assert upkeep is not None
            info = await upkeep.info()
            assert info.version == info.newest == await upkeep.migrate()
            counts = {kind.kind: kind.records for kind in info.kinds if kind.records}
            assert counts == {Item.KIND: 3, OtherItem.KIND: 1}
            assert info.size >= sum(len(encode(item)) for item in items)
            assert abs(info.now - await storage.transact(lambda tx: tx.now())) < 3600
            expected = sorted((item.KIND, item.key, encode(item)) for item in kept)
            assert sorted([row async for row in upkeep.scan()]) == expected
            assert [row async for row in upkeep.scan(OtherItem.KIND)] == expected[3:]
            assert await upkeep.check() == []

        async def use(storage: Storage) -> None:
            await storage.transact(lambda tx: [tx.put(record) for record in kept])
            await look(storage)

        self.run(tmp_path / "store", use)
        self.run(tmp_path / "store", look)


def _is_kind(value: object) -> TypeGuard[type[Record]]:
    return isinstance(value, type) and issubclass(value, Record) and value is not Record
