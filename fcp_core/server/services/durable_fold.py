"""A fold whose contributions are answered once they are stored.

What devices contribute while nothing is being written goes into a *delta*, a fold of the engine. As
soon as the last write is over, and the storage has rested, the delta is closed, a new one takes its
place, and its bytes and ids are written in one transaction; then all its contributions are
answered. So a device that comes alone waits for one write, and a crowd shares it. The deltas that
were written are in memory as one fold too, the *whole*, from which the report is made. Where the
whole is no larger than what would be left of deltas, as with sums, its bytes are written in their
place: there is one thing to read after a restart, and a storage overwrites the same pages.

What another member holds goes into a *stream* of that member's (``streams``), until it is taken in.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence, Set
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from fcp_core.aggregation.engine import CheckpointFormat, Finished, Fold, HeldBody, Partial
from fcp_core.aggregation.fold import begun, duplicate, error_of, failed
from fcp_core.errors import describe
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.services.stored_whole import (
    NeverStoredError,
    NotStoredError,
    ShardStore,
    StoredWhole,
    outcome,
)
from fcp_core.server.services.streams import Streams
from fcp_core.storage.leases import LeaseLostError
from fcp_core.storage.shards import StoredShards, TaskOverError

logger = logging.getLogger("fcp.services")

T = TypeVar("T")


class _Delta:
    """What was accumulated since the last write began, and who waits for it to be stored."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        self.ready: list[tuple[Sequence[str], Future[None]]] = []
        self.in_progress = 0
        #: Why it will not be stored.
        self.error: BaseException | None = None
        self.idle = asyncio.Event()
        self.idle.set()


class DurableFold(Fold):
    """One task's fold in memory and in storage. Its methods are called on the event loop.

    :param begin: opens a fold of the engine.
    :param stored: what an earlier run stored; *begin* is called with its partials first.
    :param counts: returns the numbers of devices that were dropped and that came too late.
    :param stream: what it writes; ``""``: what the owner of a task does.
    :param plain: whether what is stored is not encrypted.
    :param begin_stream: has another member begin one; None: what it holds is accumulated as the
        engine does that.
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
        stream: str = "",
        begin_stream: Callable[[Any], str] | None = None,
        *,
        plain: bool = True,
    ) -> None:
        self._task_id, self._name = task_id, name
        self.plain = plain
        self._begin_fold, self._store, self._counts = begin, store, counts
        self._stored = StoredWhole(task_id, name, begin, store, stored, counts, stream)
        self._whole = self._stored.fold
        self._ids = set(stored.contributions)
        self._delta: _Delta | None = None
        self._streams: Streams | None = None
        if begin_stream is not None:
            heard = {
                "folded": lambda contributions: self._folded(contributions),
                "committed": lambda *written: self._committed(*written),
            }
            self._streams = Streams(begin_stream, self._take, heard)
        self._closed: str | None = None
        self._folded: Callable[[Sequence[str]], None] = lambda contributions: None
        self._committed: Callable[[int, int, float], None] = lambda count, size, seconds: None
        self._on_loss: Callable[[str], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._writer: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def closed(self) -> bool:
        """Whether nothing more can be added."""
        return self._closed is not None

    @property
    def streams(self) -> Sequence[str]:
        """The names of the streams that other members may write to."""
        return [] if self._streams is None else self._streams.names

    def add(self, contribution: str, blob: bytes | bytearray | memoryview) -> Future[None]:
        """Accumulate one checkpoint, and store it."""
        return self._begin((contribution,), lambda fold: fold.add(contribution, blob))

    def add_group(self, contributions: Sequence[str], *blobs: bytes) -> Future[None]:
        """Accumulate what several devices contributed, and store it."""
        return self._begin(contributions, lambda fold: fold.add_group(contributions, *blobs))

    def add_held(self, contribution: str, body: HeldBody) -> Future[None]:
        """Accumulate one checkpoint where it lies; it is stored there, too, if it is a member."""
        if self._streams is None or body.helper is None:
            return self._begin((contribution,), lambda fold: fold.add_held(contribution, body))
        if (refused := self._refused((contribution,))) is not None:
            body.drop()
            return refused
        return self._run(self._add_there(self._streams, contribution, body))

    def merge(self, partial: Partial) -> Future[None]:
        """Add a partial aggregate, and store it."""
        return self._begin(partial.contributions, lambda fold: fold.merge(partial))

    def on_progress(
        self,
        folded: Callable[[Sequence[str]], None],
        committed: Callable[[int, int, float], None],
    ) -> None:
        """Call these on the event loop from now on.

        :param folded: with the ids of contributions whose bytes are not needed any more: they are
            accumulated, and to be stored.
        :param committed: after each write: with how many contributions are stored by it, the bytes
            that were written, and the seconds that it took.
        """
        self._folded, self._committed = folded, committed

    def on_loss(self, callback: Callable[[str], None]) -> None:
        """Call *callback* if what is in memory is not what is stored any more.

        A delta that is lost is no such loss: its contributions fail, and can come again.
        """
        self._on_loss = callback

    def partial(self) -> Future[Partial]:
        """Return what is stored."""
        if self._closed is not None:
            return failed(self._closed)
        if not self.streams:
            return self._whole.partial()

        async def partial() -> Partial:
            await self._taken_in()
            return await outcome(self._whole.partial())

        return self._run(partial())

    def report(self, checkpoint_format: CheckpointFormat = "tf_v1") -> Future[bytes]:
        """Finish, once everything that was added is stored."""
        if self._closed is not None:
            return failed(self._closed)
        self._closed = "the aggregation has reported"

        async def report() -> bytes:
            await self._written()
            await self._taken_in()
            return await asyncio.wrap_future(self._whole.report(checkpoint_format))

        return self._run(report())

    def finish(self) -> Future[Finished]:
        """Return everything, once it is stored; nothing is added afterwards."""
        if self._closed is not None:
            return failed(self._closed)
        self._closed = "the aggregation has finished"

        async def finish() -> Finished:
            await self._written()
            await self._taken_in()
            return await outcome(self._whole.finish())

        return self._run(finish())

    def abort(self) -> None:
        """Finish and drop everything in memory; what is stored stays."""
        self._close("the aggregation was aborted")
        for task in self._tasks:
            task.cancel()
        if self._streams is not None:
            self._streams.abort()
        self._whole.abort()

    async def flush(self) -> None:
        """Wait until everything that was added is stored, and the counts; take no more."""
        self._closed = self._closed or "the server is stopping"
        await self._written()
        if self._streams is not None:
            await self._streams.settled()
        await self._stored.note()

    # Inside.

    def _begin(
        self, contributions: Sequence[str], work: Callable[[Fold], Future[None]]
    ) -> Future[None]:
        """Have *work* done in the current delta; its future is done once that is stored."""
        if (refused := self._refused(contributions)) is not None:
            return refused
        if self._delta is None:
            self._delta = _Delta(self._begin_fold(()))
        delta = self._delta
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

        # Nobody must wait for the delta for ever if the engine fails.
        begun(partial(work, delta.fold)).add_done_callback(from_engine)
        return future

    def _refused(self, contributions: Sequence[str]) -> Future[None] | None:
        """Take the ids of contributions; return a future that has failed if that cannot be."""
        if self._closed is not None:
            return failed(self._closed)
        twice = [item for item in contributions if item in self._ids]
        if twice or len(set(contributions)) < len(contributions):
            return failed(duplicate(twice or contributions))
        self._ids.update(contributions)
        return None

    async def _add_there(self, streams: Streams, contribution: str, body: HeldBody) -> None:
        try:
            await streams.add(contribution, body, self._counts())
        except BaseException:
            self._ids.discard(contribution)
            raise

    async def _take(self, stream: str, promised: Set[str]) -> frozenset[str]:
        """Close a stream, and take in what is in it; return the ids of those contributions.

        :param promised: the ids of some that were said to be stored in it.
        """
        try:
            found = await self._store.close_stream(self._task_id, self._name, stream)
            stored = frozenset(found.contributions)
            if missing := promised - stored:
                raise StatusError(Code.DATA_LOSS, f"the storage has lost {len(missing)} of them")
            await self._stored.take(found)
        except (TaskOverError, LeaseLostError) as error:
            self._close(error.message)
            raise
        except Exception as error:
            self._lost(error)
            raise
        return stored

    async def _taken_in(self) -> None:
        """Wait until everything that other members have stored is in the whole."""
        if self._streams is not None:
            await self._streams.end()

    def _added(
        self,
        delta: _Delta,
        contributions: Sequence[str],
        future: Future[None],
        inner: Future[None],
    ) -> None:
        error = delta.error or error_of(inner)
        if error is None:
            delta.ready.append((contributions, future))
            self._folded(contributions)
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
            self._lost(error)

    def _lost(self, error: BaseException) -> None:
        """Take no more, since what is in memory is not what is stored."""
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
            await self._stored.rested()
            delta, self._delta = self._delta, None
            if delta is None:
                return  # it was refused meanwhile
            try:
                await delta.idle.wait()
                await self._commit(delta)
            except BaseException:
                self._refuse(delta, StatusError(Code.ABORTED, "the aggregation was aborted"))
                raise
            finally:
                delta.fold.abort()

    async def _commit(self, delta: _Delta) -> None:
        try:
            written = await self._stored.add(delta.fold, [i for ids, _ in delta.ready for i in ids])
        except NotStoredError as error:
            self._refuse(delta, error.reason)
            if isinstance(error, NeverStoredError):
                self._close(error.reason.message)
            return
        count = sum(len(ids) for ids, _ in delta.ready)
        for _, future in delta.ready:
            future.set_result(None)
        delta.ready = []
        self._committed(count, *written)

    def _refuse(self, delta: _Delta, error: BaseException) -> None:
        delta.error = error
        ready, delta.ready = delta.ready, []
        for contributions, future in ready:
            self._ids.difference_update(contributions)
            future.set_exception(error)

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
