"""The storage of the simulation: one for all members, which fails when it is told to."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, TypeVar

from fcp_core.storage.codec import decode, encode
from fcp_core.storage.contract import R, Record, Storage, StorageError, Transaction
from fcp_core.storage.records import EntryRecord

T = TypeVar("T")

#: What may become of a transaction: nothing is written; it is, but the answer is lost; it is
#: written after it was given up for lost; it takes long; it runs twice; the member dies before it,
#: or after it and before the answer.
FATES = ("before", "after", "late", "slow", "twice", "dies before", "dies after")

Rows = dict[str, dict[str, bytes]]


class _Transaction(Transaction):
    """Sees its own writes, which take effect with :meth:`commit`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._kinds: dict[str, type[Record]] = {}
        self.writes: dict[tuple[str, str], bytes | None] = {}

    def now(self) -> float:
        return self._disk.now()

    def get(self, kind: type[R], key: str) -> R | None:
        place = (kind.KIND, key)
        data = self.writes[place] if place in self.writes else self._disk.table(kind).get(key)
        return None if data is None else decode(kind, data)

    def put(self, record: Record) -> None:
        self.writes[record.KIND, record.key] = encode(record)

    def delete(self, kind: type[Record], key: str) -> None:
        self.writes[kind.KIND, key] = None

    def select(self, kind: type[R], **equals: Any) -> Iterator[R]:
        keys = {*self._disk.table(kind), *(key for name, key in self.writes if name == kind.KIND)}
        for key in sorted(keys):
            record = self.get(kind, key)
            if record is not None and all(getattr(record, n) == v for n, v in equals.items()):
                yield record

    def commit(self) -> None:
        for (kind, key), data in self.writes.items():
            if data is None:
                self._disk.rows.setdefault(kind, {}).pop(key, None)
            else:
                self._disk.rows.setdefault(kind, {})[key] = data
                if key.endswith("/result"):
                    self._disk.results.setdefault(key, set()).add(data)


class Disk:
    """The rows that are committed, and what is wrong at the moment.

    :param rng: decides how long transactions take.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random) -> None:
        self.rows: Rows = {}
        #: Every result that was ever stored, by its name.
        self.results: dict[str, set[bytes]] = {}
        #: What becomes of the next transactions that release a result.
        self.releases: deque[str] = deque()
        self.loop, self.rng = loop, rng
        #: Until when nothing can be written.
        self.full_until = self.counted = 0.0
        #: By how much its clock was set.
        self.offset = 0.0
        #: The faults that had an effect, by kind.
        self.effects: Counter[str] = Counter()
        self.commits = 0

    def now(self) -> float:
        """Return the time of the storage."""
        return 1_800_000_000.0 + self.loop.time() + self.offset

    def table(self, kind: type[Record]) -> dict[str, bytes]:
        """Return the rows of a kind."""
        return self.rows.setdefault(kind.KIND, {})

    def read(self, kind: type[R]) -> list[R]:
        """Return the committed records of a kind."""
        return [decode(kind, data) for _, data in sorted(self.table(kind).items())]

    def releases_something(self, body: Callable[[Transaction], object]) -> bool:
        """Whether a transaction would book a release."""
        transaction = _Transaction(self)
        try:
            body(transaction)
        except Exception:
            return False
        return any(kind == EntryRecord.KIND for kind, _ in transaction.writes)

    def run(self, body: Callable[[Transaction], T], *, twice: bool = False) -> T:
        """Run a transaction now.

        :raises StorageError: if it writes and the disk is full.
        """
        if twice:
            body(_Transaction(self))
        transaction = _Transaction(self)
        result = body(transaction)
        if transaction.writes:
            if self.loop.time() < self.full_until:
                # However much is tried meanwhile, it is one fault.
                self.effects["disk full"] += self.counted != self.full_until
                self.counted = self.full_until
                raise StorageError("the disk is full")
            transaction.commit()
            self.commits += 1
        return result


class Handle(Storage):
    """One member's connection to the disk.

    :param shared: whether other members may have one too.
    """

    durable = True

    def __init__(self, disk: Disk, *, shared: bool, die: Callable[[], None]) -> None:
        self._disk = disk
        self.shared = shared
        self._die = die
        self.dead = False
        #: What becomes of the next transactions.
        self.fates: deque[str] = deque()
        #: Until when nothing goes through.
        self.cut_until = self.counted = 0.0

    async def transact(self, body: Callable[[Transaction], T]) -> T:
        """Run *body*, if the faults allow it; a member that died never hears of it."""
        disk = self._disk
        answer: asyncio.Future[T] = disk.loop.create_future()
        if self.dead:
            return await answer
        # Whoever gives it up does not take it back. It is no task of the member's.
        Context().run(disk.loop.create_task, self._work(body, answer))
        return await asyncio.shield(answer)

    async def _work(self, body: Callable[[Transaction], T], answer: asyncio.Future[T]) -> None:
        disk = self._disk
        seconds, arrives = disk.rng.uniform(0.001, 0.008), disk.rng.random() < 0.5
        await asyncio.sleep(seconds)
        now = disk.loop.time()
        if now < self.cut_until:
            disk.effects["cut off"] += self.counted != self.cut_until
            self.counted = self.cut_until
            await asyncio.sleep(self.cut_until - now)
            if not arrives:
                self._fail(answer, "the connection broke")
                return
        if self.dead and not (arrives and self.shared):
            return  # a storage in the process dies with it; a database may have heard of it
        fate = self.fates.popleft() if self.fates and not self.dead else ""
        if disk.releases and not self.dead and disk.releases_something(body):
            fate = disk.releases.popleft()
            if fate:
                disk.effects[f"release: {fate}"] += 1
        elif fate:
            disk.effects[f"transaction: {fate}"] += 1
        if fate == "before":
            self._fail(answer, "it was not written")
            return
        if fate == "dies before":
            self._die()
            return
        if fate in ("late", "slow"):
            if fate == "late":
                self._fail(answer, "there was no answer")
            await asyncio.sleep(disk.rng.uniform(1.0, 40.0))
            if self.dead and not self.shared:
                return
        try:
            result = disk.run(body, twice=fate == "twice")
        except Exception as error:
            self._fail(answer, error)
            return
        if fate == "dies after":
            self._die()
        await asyncio.sleep(seconds)
        if fate == "after":
            self._fail(answer, "the answer was lost")
        elif not (answer.done() or self.dead):
            answer.set_result(result)

    def _fail(self, answer: asyncio.Future[Any], why: str | Exception) -> None:
        if not (answer.done() or self.dead):
            answer.set_exception(StorageError(why) if isinstance(why, str) else why)
            answer.exception()  # nobody may wait any more
