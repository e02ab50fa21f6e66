"""The laws of the storage kit that need several processes, or several storages of one path."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from fcp_core.storage.contract import Storage, StorageError, Transaction
from fcp_core.testing.laws import Laws, applies_if
from fcp_core.testing.storage_child import COUNTS, tell
from fcp_core.testing.storage_records import Item, OtherItem

T = TypeVar("T")

#: How often two processes want the same, in each of the ways in which one may find out.
_CLAIMS = 12
#: How long a transaction may wait for one whose process is gone, in seconds.
_PATIENCE = 120.0
#: How many commits lose their answer.
_LOST = 25


class SharingLaws(Laws):
    """What is needed of a storage that outlives its process, or that several share."""

    #: What is committed is there again in another storage of the same path.
    durable: ClassVar[bool] = False
    #: Several processes may use one path at a time.
    shared: ClassVar[bool] = False
    #: Servers on several hosts may use one storage at a time.
    shared_by_hosts: ClassVar[bool] = False
    #: ``module:callable`` that makes the storage from a path in another process.
    child_factory: ClassVar[str | None] = None
    #: There is a :meth:`lose_answers`.
    can_lose_answers: ClassVar[bool] = False

    @abstractmethod
    def make_storage(self, path: Path) -> Storage:
        """Return a new storage, not started.

        :param path: a file that does not exist, or that an earlier storage of this kind made.
        """

    def lose_answers(self, path: Path) -> AbstractContextManager[object]:
        """Make storages of *path* that are made in the context lose the answers of commits.

        As by a network that breaks after a commit was sent: some of the commits happened. What is
        :attr:`can_lose_answers` needs it.
        """
        raise NotImplementedError

    def run(self, path: Path, use: Callable[[Storage], Coroutine[Any, Any, T]]) -> T:
        """Start a storage, use it, stop it."""

        async def main() -> T:
            storage = self.make_storage(path)
            await storage.start()
            try:
                return await use(storage)
            finally:
                await storage.stop()

        return asyncio.run(main())

    @applies_if(lambda kit: kit.durable)
    @pytest.mark.parametrize("answers", [1, 25, 120])
    def test_survives_a_kill(self, tmp_path: Path, answers: int) -> None:
        """After kill -9, everything that was answered is there, and nothing is half there."""
        path = tmp_path / "store"
        with self._spawn("write", path) as child:
            assert child.stdout is not None
            answered = [child.stdout.readline().strip() for _ in range(answers)]
            child.kill()
            answered += [line.strip() for line in child.stdout if line.endswith("\n")]
        assert all(answered), "the child process ended by itself"

        async def use(storage: Storage) -> tuple[list[Item], list[OtherItem]]:
            return await storage.transact(
                lambda tx: (list(tx.select(Item)), list(tx.select(OtherItem)))
            )

        items, others = self.run(path, use)
        names = {item.name for item in items}
        assert set(answered) <= names, "an answered transaction is lost"
        assert names == {item.name for item in others}, "a transaction is half there"

    @applies_if(lambda kit: kit.shared)
    def test_is_shared_by_processes(self, tmp_path: Path) -> None:
        """Two processes open one new store at the same moment and lose none of their updates."""
        path = tmp_path / "store"
        with self._spawn("count", path) as first, self._spawn("count", path) as second:
            for _ in range(2):  # Before they open it, and before they count.
                for child in (first, second):
                    assert _read(child) == "ready"
                for child in (first, second):
                    tell(child.stdin, "go")
            assert (first.wait(), second.wait()) == (0, 0)

        async def use(storage: Storage) -> Item | None:
            return await storage.transact(lambda tx: tx.get(Item, "counter"))

        assert self.run(path, use) == Item("counter", size=2 * COUNTS)

    @applies_if(lambda kit: kit.shared)
    @pytest.mark.parametrize("how", ["absent", "present", "selected"])
    def test_what_was_read_holds(self, tmp_path: Path, how: str) -> None:
        """Of two processes that write only if the other has not, one does, each time."""
        path = tmp_path / "store"
        with ExitStack() as stack:
            children = [stack.enter_context(self._spawn("claim", path)) for _ in range(2)]
            assert [_read(child) for child in children] == ["ready"] * 2
            if how == "present":
                names = (f"{how}-{number}-{me}" for number in range(_CLAIMS) for me in (0, 1))
                self._put(path, *(Item(name, size=1) for name in names))
            for number in range(_CLAIMS):
                for index, child in enumerate(children):
                    tell(child.stdin, f"{how} {number} {index}")
                answers = sorted(_read(child) for child in children)
                assert answers == ["held back", "wrote"], f"both {answers[0]}, by what was {how}"
            for child in children:
                tell(child.stdin, "")

    @applies_if(lambda kit: kit.shared)
    def test_a_process_that_is_killed_holds_nobody_up(self, tmp_path: Path) -> None:
        """After kill -9 in the middle of a transaction others go on, and see nothing of it."""
        path = tmp_path / "store"
        with self._spawn("stick", path) as child:
            assert _read(child) == "in the middle"
            child.kill()

        async def use(storage: Storage) -> list[Item]:
            await asyncio.wait_for(storage.transact(lambda tx: tx.put(Item("mine"))), _PATIENCE)
            return await storage.transact(lambda tx: list(tx.select(Item)))

        assert self.run(path, use) == [Item("mine")]

    @applies_if(lambda kit: kit.shared)
    def test_tells_everybody_the_same_time(self, tmp_path: Path) -> None:
        """Who asks later is told a later time, whoever it is."""
        path = tmp_path / "store"

        async def use(first: Storage) -> list[float]:
            second = self.make_storage(path)
            await second.start()
            try:
                storages = [first, second] * 5
                return [await storage.transact(lambda tx: tx.now()) for storage in storages]
            finally:
                await second.stop()

        times = self.run(path, use)
        assert times == sorted(times), "one of two storages is late"

    @applies_if(lambda kit: kit.can_lose_answers)
    def test_an_answer_that_is_lost_is_no_second_write(self, tmp_path: Path) -> None:
        """What was answered happened once; what was not, at most once."""
        path = tmp_path / "store"

        def count(tx: Transaction, name: str) -> None:
            item = tx.get(Item, name) or Item(name)
            tx.put(Item(name, size=item.size + 1))

        async def use(storage: Storage) -> list[bool]:
            answered = []
            for number in range(_LOST):
                try:
                    await storage.transact(functools.partial(count, name=str(number)))
                    answered.append(True)
                except StorageError:
                    answered.append(False)
            return answered

        async def read(storage: Storage) -> list[int]:
            def body(tx: Transaction) -> list[int]:
                items = (tx.get(Item, str(number)) for number in range(_LOST))
                return [0 if item is None else item.size for item in items]

            return await storage.transact(body)

        with self.lose_answers(path):
            answered = self.run(path, use)
        counts = self.run(path, read)
        for number, (told, count_) in enumerate(zip(answered, counts, strict=True)):
            assert count_ <= 1, f"write {number} happened {count_} times"
            assert count_ == 1 or not told, f"write {number} was answered and is lost"

    def _put(self, path: Path, *items: Item) -> None:
        self.run(path, lambda storage: storage.transact(lambda tx: [tx.put(i) for i in items]))

    def _spawn(self, what: str, path: Path) -> subprocess.Popen[str]:
        if self.child_factory is None:
            pytest.fail("a durable or shared storage needs a child_factory")
        code = "from fcp_core.testing.storage_child import run_child; run_child()"
        return subprocess.Popen(
            [sys.executable, "-c", code, self.child_factory, what, str(path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def _read(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()
