"""A fold whose contributions are answered once they are stored.

What devices contribute while nothing is being written goes into a *delta*, a fold of the engine. As
soon as the last write is over, the delta is closed, a new one takes its place, and its bytes and
ids are written in one transaction; then all its contributions are answered. So a device that comes
alone waits for one write, and a crowd shares it. The deltas that were written are in memory as one
fold too, the *whole*, from which the report is made. Where the whole is no larger than what would
be left of deltas, as with sums, its bytes are written in their place: there is one thing to read
after a restart, and a storage overwrites the same pages again and again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, TypeVar

from fcp_core.aggregation.engine import CheckpointFormat, Finished, Fold, HeldBody, Partial
from fcp_core.aggregation.fold import duplicate, failed
from fcp_core.errors import describe
from fcp_core.protocol.status import Code, StatusError
from fcp_core.storage.records import ShardRecord
from fcp_core.storage.shards import Merge, StoredShards, shard_id

logger = logging.getLogger("fcp.services")

T = TypeVar("T")

#: With so many deltas, a total is written in their place even if it is larger than they are.
FAN_IN = 16
#: What a merge fails with if the two do not fit together.
_REFUSALS = (Code.OUT_OF_RANGE, Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED)


class ShardStore(Protocol):
    """Where a task's shards are kept."""

    async def add_shard(
        self,
        shard: ShardRecord,
        pieces: Sequence[bytes | memoryview],
        name: str,
        total: Merge | None = None,
    ) -> bool:
        """Write a shard, unless it is there already; returns when it is, however long that takes.

        :param pieces: its bytes.
        :param name: the task's.
        :param total: takes the place of the bytes if all that it holds is there.
        :returns: whether it did.
        :raises StatusError: if it never will be: the task is over.
        """
        ...


class _Delta:
    """What was accumulated since the last write began, and who waits for it to be stored."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.ready: list[tuple[Sequence[str], Future[None]]] = []
        self.in_progress = 0
        #: Why it will not be stored.
        self.error: Exception | None = None
        self.idle = asyncio.Event()
        self.idle.set()


class DurableFold(Fold):
    """One task's fold in memory and in storage. Its methods are called on the event loop.

    :param begin: opens a fold of the engine.
    :param stored: what an earlier run stored; *begin* is called with its partials first.
    :param counts: returns the numbers of devices that were dropped and that came too late.
    :ivar on_folded: called on the event loop with the ids of contributions whose bytes are not
        needed any more: they are accumulated, and to be stored.
    :ivar on_committed: called on the event loop after each write: with how many contributions are
        stored by it, the bytes that were written, and the seconds that it took.
    :raises StatusError: as *begin* does.
    """

    def __init__(
        self,
        task_id: str,
        name: str,
        begin: Callable[[Sequence[Partial]], Fold],
        store: ShardStore,
        stored: StoredShards,
        counts: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self._task_id, self._name = task_id, name
        self._begin_fold, self._store, self._counts = begin, store, counts
        self._whole = begin(stored.partials)
        self._ids = set(stored.contributions)
        self._unmerged, self._total = list(stored.unmerged), stored.total
        sizes = [len(partial.data) for partial in stored.partials]
        #: Bytes of the total in storage, and of the deltas beside it.
        self._total_bytes = sizes.pop(0) if stored.total else 0
        self._loose_bytes = sum(sizes)
        self._delta: _Delta | None = None
        self._closed: str | None = None
        self.on_folded: Callable[[Sequence[str]], None] = lambda contributions: None
        self.on_committed: Callable[[int, int, float], None] = lambda count, size, seconds: None
        self._on_loss: Callable[[str], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._writer: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def add(self, contribution: str, blob: bytes | bytearray | memoryview) -> Future[None]:
        """Accumulate one checkpoint, and store it."""
        return self._begin((contribution,), lambda fold: fold.add(contribution, blob))

    def add_group(self, contributions: Sequence[str], *blobs: bytes) -> Future[None]:
        """Accumulate what several devices contributed, and store it."""
        return self._begin(contributions, lambda fold: fold.add_group(contributions, *blobs))

    def add_held(self, contribution: str, body: HeldBody) -> Future[None]:
        """Accumulate one checkpoint where it lies, and store the partial aggregate."""
        return self._begin((contribution,), lambda fold: fold.add_held(contribution, body))

    def merge(self, partial: Partial) -> Future[None]:
        """Add a partial aggregate, and store it."""
        return self._begin(partial.contributions, lambda fold: fold.merge(partial))

    def on_loss(self, callback: Callable[[str], None]) -> None:
        """Call *callback* if what is in memory is not what is stored any more.

        A delta that is lost is no such loss: its contributions fail, and can come again.
        """
        self._on_loss = callback

    def partial(self) -> Future[Partial]:
        """Return what is stored."""
        return failed(self._closed) if self._closed is not None else self._whole.partial()

    def report(self, checkpoint_format: CheckpointFormat = "tf_v1") -> Future[bytes]:
        """Finish, once everything that was added is stored."""
        if self._closed is not None:
            return failed(self._closed)
        self._closed = "the aggregation has reported"

        async def report() -> bytes:
            await self._written()
            return await asyncio.wrap_future(self._whole.report(checkpoint_format))

        return self._run(report())

    def finish(self) -> Future[Finished]:
        """Return everything, once it is stored; nothing is added afterwards."""
        if self._closed is not None:
            return failed(self._closed)
        self._closed = "the aggregation has finished"

        async def finish() -> Finished:
            await self._written()
            return await _outcome(self._whole.finish())

        return self._run(finish())

    def abort(self) -> None:
        """Finish and drop everything in memory; what is stored stays."""
        self._close("the aggregation was aborted")
        for task in self._tasks:
            task.cancel()
        self._whole.abort()

    async def flush(self) -> None:
        """Wait until everything that was added is stored, and take no more."""
        self._closed = self._closed or "the server is stopping"
        await self._written()

    # Inside.

    def _begin(
        self, contributions: Sequence[str], work: Callable[[Fold], Future[None]]
    ) -> Future[None]:
        """Have *work* done in the current delta; its future is done once that is stored."""
        if self._closed is not None:
            return failed(self._closed)
        twice = [item for item in contributions if item in self._ids]
        if twice or len(set(contributions)) < len(contributions):
            return failed(duplicate(twice or contributions))
        if self._delta is None:
            self._delta = _Delta(self._begin_fold(()))
        delta = self._delta
        self._ids.update(contributions)
        delta.in_progress += 1
        delta.idle.clear()
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        done = partial(self._added, delta, contributions, future)

        def from_engine(inner: Future[None]) -> None:
            if threading.get_ident() == self._thread:
                done(inner)
            elif not self._loop.is_closed():
                self._loop.call_soon_threadsafe(done, inner)

        work(delta.fold).add_done_callback(from_engine)
        return future

    def _added(
        self,
        delta: _Delta,
        contributions: Sequence[str],
        future: Future[None],
        inner: Future[None],
    ) -> None:
        error = delta.error or _error_of(inner)
        if error is None:
            delta.ready.append((contributions, future))
            self.on_folded(contributions)
        else:
            self._ids.difference_update(contributions)
        delta.in_progress -= 1
        if not delta.in_progress:
            delta.idle.set()
        if error is not None:
            future.set_exception(error)
        elif self._writer is None:
            # It says itself that it has ended: its callbacks come later than the next contribution.
            self._writer = self._start(self._write())
            self._writer.add_done_callback(self._stopped_writing)

    def _stopped_writing(self, writer: asyncio.Task[None]) -> None:
        if not writer.cancelled() and (error := writer.exception()) is not None:
            logger.error("task %s: its aggregate is lost", self._name, exc_info=error)
            self._close(f"the aggregate is lost: {describe(error)}")
            callback, self._on_loss = self._on_loss, None
            if callback is not None:
                callback(describe(error))

    async def _written(self) -> None:
        """Wait until nothing waits to be stored."""
        while True:
            if self._writer is not None and not self._writer.done():
                await asyncio.wait([self._writer])
            elif self._delta is None:
                return
            else:
                await self._delta.idle.wait()
                if self._delta is not None and not self._delta.ready:
                    # All of it was refused.
                    self._delta.fold.abort()
                    self._delta = None

    async def _write(self) -> None:
        """Write deltas until there is none."""
        try:
            await self._write_all()
        finally:
            self._writer = None

    async def _write_all(self) -> None:
        while self._delta is not None and self._delta.ready:
            delta, self._delta = self._delta, None
            try:
                await self._commit(delta)
            except BaseException:
                self._refuse(delta, StatusError(Code.ABORTED, "the aggregation was aborted"))
                raise
            finally:
                delta.fold.abort()

    async def _commit(self, delta: _Delta) -> None:
        await delta.idle.wait()
        try:
            part = await _outcome(delta.fold.finish())
        except Exception as error:
            # The engine has lost it, a process of its with it: nothing of it was stored.
            self._refuse(delta, error)
            return
        try:
            await _outcome(self._whole.absorb(part))
        except StatusError as error:
            if error.code not in _REFUSALS:
                raise
            # A sum would leave its dtype, or there is no room. Nothing was changed.
            self._refuse(delta, error)
            return
        if sorted(part.contributions) != sorted(i for ids, _ in delta.ready for i in ids):
            raise StatusError(Code.DATA_LOSS, "the engine's partial aggregate holds other ids")
        name = shard_id(self._task_id, part.contributions)
        dropped, surplus = self._counts()
        shard = ShardRecord(
            name, self._task_id, part.contributions, dropped=dropped, surplus=surplus
        )
        size = part.nbytes
        large = self._total_bytes > self._loose_bytes + size
        apart = large and len(self._unmerged) + 1 < FAN_IN
        total = None if apart else await self._total_with(name)
        began = self._loop.time()
        try:
            merged = await self._store.add_shard(shard, part.pieces, self._name, total)
        except StatusError as error:
            # It never will be stored, so the whole is not what is stored.
            self._refuse(delta, error)
            self._close(error.message)
            return
        seconds = self._loop.time() - began
        if merged and total is not None:
            self._unmerged, self._total = [], total.name
            size = self._total_bytes = sum(map(len, total.pieces))
            self._loose_bytes = 0
        else:
            self._unmerged.append(name)
            self._loose_bytes += size
        for _, future in delta.ready:
            future.set_result(None)
        delta.ready = []
        self.on_committed(len(part.contributions), size, seconds)

    def _refuse(self, delta: _Delta, error: Exception) -> None:
        delta.error = error
        ready, delta.ready = delta.ready, []
        for contributions, future in ready:
            self._ids.difference_update(contributions)
            future.set_exception(error)

    async def _total_with(self, new: str) -> Merge:
        """Return what merges the shards in storage, a new one too, as they are in memory."""
        whole = await _outcome(self._whole.view())
        name = f"total-{shard_id(self._task_id, (self._total, *self._unmerged, new))}"
        return Merge(tuple(self._unmerged), self._total, name, whole.pieces)

    def _close(self, why: str) -> None:
        self._closed = self._closed or why
        delta, self._delta = self._delta, None
        if delta is not None:
            delta.fold.abort()
            self._refuse(delta, StatusError(Code.ABORTED, why))

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def done(task: asyncio.Task[T]) -> None:
            if task.cancelled():
                future.set_exception(StatusError(Code.ABORTED, "the aggregation was aborted"))
            elif (error := task.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(task.result())

        self._start(work).add_done_callback(done)
        return future


async def _outcome(future: Future[T]) -> T:
    """Return the result of a future, with no turn of the loop if it is there."""
    if future.done() and not future.cancelled():
        return future.result()
    return await asyncio.wrap_future(future)


def _error_of(future: Future[Any]) -> BaseException | None:
    if future.cancelled():
        return StatusError(Code.ABORTED, "the aggregation was aborted")
    return future.exception()
