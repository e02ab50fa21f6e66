"""What a task has in storage, and the same in memory as one fold, the *whole*."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeAlias, TypeVar

from fcp_core.aggregation.engine import Finished, Fold, Partial
from fcp_core.errors import plugin_errors
from fcp_core.protocol.blocks import rest
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.services.sealed import SealedStore
from fcp_core.server.services.store import TaskStore
from fcp_core.storage.records import ShardRecord
from fcp_core.storage.shards import Merge, StoredShards, shard_id, total_name

T = TypeVar("T")

#: Where a task's shards are kept.
ShardStore: TypeAlias = TaskStore | SealedStore

#: With so many deltas, a total is written in their place even if it is larger than they are.
FAN_IN = 16
#: How long the counts of a task that is left may take to be stored, in seconds.
NOTING = 1.0
#: The storage is left alone after a write for as long as that took, and no longer than this, in
#: seconds: each write is of as many bytes as the model, and what comes meanwhile shares the next.
#: What takes less than the other is not worth a timer.
LONGEST_REST, SHORTEST_REST = 0.01, 0.001
#: What an engine fails with if an aggregator has, and would again.
_FAULTS = (Code.INTERNAL, Code.DATA_LOSS)
#: What a merge fails with if the two do not fit together.
_REFUSALS = (Code.OUT_OF_RANGE, Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED)


class NotStoredError(Exception):
    """A delta is neither in the whole nor in storage, and all goes on.

    :param reason: why.
    """

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


class NeverStoredError(NotStoredError):
    """And nothing goes on: the storage does not take it, or an aggregator fails with the whole.

    :param reason: what the storage says, since the task is over, or not ours; or DATA_LOSS with
        what the aggregator has: the task ends, as where it fails to accumulate.
    """

    reason: StatusError


class StoredWhole:
    """One task's shards and totals in storage, and what is in them.

    :param begin: opens the whole.
    :param counts: returns the numbers of devices that were dropped and that came too late.
    :param stream: what is written; ``""``: what the owner of a task writes.
    :ivar fold: the whole.
    """

    def __init__(
        self,
        task_id: str,
        name: str,
        begin: Callable[[Sequence[Partial]], Fold],
        store: ShardStore,
        stored: StoredShards,
        counts: Callable[[], tuple[int, int]],
        stream: str,
    ) -> None:
        self._task_id, self._name, self._stream = task_id, name, stream
        self._store, self._counts = store, counts
        self.fold = begin(stored.partials)
        #: The shards in storage whose bytes are in no total, and the totals.
        self._unmerged: list[str] = []
        self._totals: list[str] = []
        #: The bytes of the first total, and of the shards and totals beside it.
        self._total_bytes = self._loose_bytes = 0
        self._know(stored)
        #: The counts that are stored.
        self._noted = (stored.dropped, stored.surplus)
        #: Held by who changes the whole and what is stored of it.
        self._changing = asyncio.Lock()
        #: Until when the storage is left alone, by the time of the loop.
        self._rests = 0.0

    async def take(self, stored: StoredShards) -> None:
        """Take in what another stream has, which is closed."""
        async with self._changing:
            for part in stored.partials:
                await outcome(self.fold.merge(part))
            self._know(stored)

    async def add(self, delta: Fold, contributions: Sequence[str]) -> tuple[int, float]:
        """Take in a delta, and store it; return how many bytes were written, and in what time.

        :param contributions: all that are in it.
        :raises NotStoredError: if that cannot be.
        """
        async with self._changing:
            return await self._add(delta, contributions)

    async def rested(self) -> None:
        """Wait until the storage was left alone for as long as the last write took.

        A device that comes alone comes later than that, mostly.
        """
        left = self._rests - asyncio.get_running_loop().time()
        if left >= SHORTEST_REST:
            await asyncio.sleep(left)

    async def note(self) -> None:
        """Store the counts, if they have changed since the last write and it can be done soon.

        Nobody was told of them, so a server that stops does not wait for a storage that is gone.
        """
        if self._counts() != self._noted:
            noting = self._store.note(self._task_id, *self._counts())
            # Whoever has the task now has counts of its own.
            with contextlib.suppress(StatusError, asyncio.TimeoutError):
                await asyncio.wait_for(noting, NOTING)

    # Inside.

    def _know(self, stored: StoredShards) -> None:
        """Note what is stored, and in the whole."""
        sizes = [len(partial.data) for partial in stored.partials]
        if stored.totals and not self._totals:
            self._total_bytes = sizes.pop(0)
        self._totals += stored.totals
        self._unmerged += stored.unmerged
        self._loose_bytes += sum(sizes)

    async def _add(self, delta: Fold, contributions: Sequence[str]) -> tuple[int, float]:
        try:
            part = await outcome(delta.finish())
        except plugin_errors(awaited=True) as error:
            # The engine has lost it, a process of its with it: nothing of it was stored.
            raise NotStoredError(error) from None
        try:
            await _of_whole(self.fold.absorb(part))
        except StatusError as error:
            if error.code not in _REFUSALS:
                raise
            # A sum would leave its dtype, or there is no room. Nothing was changed.
            raise NotStoredError(error) from None
        if sorted(part.contributions) != sorted(contributions):
            raise StatusError(Code.DATA_LOSS, "the engine's partial aggregate holds other ids")
        return await self._write(part)

    async def _write(self, part: Finished) -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        name = shard_id(self._task_id, part.contributions)
        dropped, surplus = self._counts()
        shard = ShardRecord(
            name,
            self._task_id,
            part.contributions,
            dropped=dropped,
            surplus=surplus,
            stream=self._stream,
        )
        size = part.nbytes
        large = self._total_bytes > self._loose_bytes + size
        apart = large and len(self._unmerged) + 1 < FAN_IN
        total = None if apart else await self._total_with(name)
        began = loop.time()
        try:
            merged = await self._store.add_shard(shard, part.pieces, self._name, total)
        except StatusError as error:
            raise NeverStoredError(error) from None
        ended = loop.time()
        seconds = ended - began
        self._rests = ended + min(seconds, LONGEST_REST)
        self._noted = (dropped, surplus)
        for piece in () if total is None else total.pieces:
            # It is in memory until then, and not while the next contribution comes.
            rest(memoryview(piece))
        if merged and total is not None:
            self._unmerged, self._totals = [], [total.name]
            size = self._total_bytes = sum(map(len, total.pieces))
            self._loose_bytes = 0
        else:
            self._unmerged.append(name)
            self._loose_bytes += size
        return size, seconds

    async def _total_with(self, new: str) -> Merge:
        """Return what merges the shards in storage, a new one too, as they are in memory."""
        whole = await _of_whole(self.fold.view())
        shards, totals = tuple(self._unmerged), tuple(self._totals)
        name = total_name(self._task_id, (*totals, *shards, new), self._stream)
        return Merge(shards, totals, name, whole.pieces)


async def _of_whole(future: Future[T]) -> T:
    """Return what is done with the whole.

    :raises NeverStoredError: if an aggregator fails.
    """
    try:
        return await outcome(future)
    except StatusError as error:
        if error.code in _FAULTS:
            raise NeverStoredError(StatusError(Code.DATA_LOSS, error.message)) from None
        raise


async def outcome(future: Future[T]) -> T:
    """Return the result of a future, with no turn of the loop if it is there."""
    if future.done() and not future.cancelled():
        return future.result()
    return await asyncio.wrap_future(future)
