"""The fold of the engine that accumulates on this process's own threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fcp_core.aggregation.binding import BoundIntrinsic
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator, KeptBudget
from fcp_core.aggregation.engine import CheckpointFormat, Finished, Fold, Partial
from fcp_core.aggregation.fold import check_disjoint, duplicate, failed, whole_of
from fcp_core.protocol.checkpoint import CheckpointReader, write_checkpoint
from fcp_core.protocol.status import Code, StatusError

T = TypeVar("T")


class _Shard:
    """An accumulator, the contributions in it, and the lock of both."""

    def __init__(self, aggregator: CheckpointAggregator) -> None:
        self.aggregator = aggregator
        self.contributions: list[str] = []
        self.lock = threading.Lock()


class LocalFold(Fold):
    """One session's shards; made by :meth:`LocalEngine.open`."""

    def __init__(
        self,
        bound: tuple[BoundIntrinsic, ...],
        max_kept_bytes: int,
        pool: ThreadPoolExecutor | None,
        max_shards: int,
        inline_bytes: int,
        inline_added_bytes: int,
        reader: CheckpointReader,
        partials: Sequence[Partial],
    ) -> None:
        self._bound = bound
        self._reader = reader
        self._budget = KeptBudget(max_kept_bytes)
        self._pool = pool
        self._max_shards = max_shards
        self._inline_bytes = inline_bytes
        # Guards everything below; never held while the accumulators work.
        self._lock = threading.Lock()
        first = CheckpointAggregator(bound, self._budget, kernels=reader.kernels)
        self._only_adds = first.only_adds
        #: Whether adding one takes no longer than reading its bytes.
        self._quick = self._only_adds and first.as_in_memory
        self._inline_contribution = inline_bytes
        if self._quick:
            self._inline_contribution = max(inline_bytes, inline_added_bytes)
        self._shards = [_Shard(first)]
        self._ids = set(check_disjoint(partials))
        self._in_flight = 0
        self._closed: str | None = None
        self._aborted = False
        self._when_idle: Callable[[], None] | None = None
        for partial in partials:
            self._merge(partial)

    def add(self, contribution: str, blob: bytes | bytearray | memoryview) -> Future[None]:
        """Accumulate one checkpoint.

        The future fails with ALREADY_EXISTS if the contribution is in the aggregate already, and
        with RESOURCE_EXHAUSTED if it would have to be kept and there is no room.
        """
        return self._begin(
            [contribution],
            lambda: self._add([contribution], blob),
            memoryview(blob).nbytes < self._inline_contribution,
        )

    def add_group(self, contributions: Sequence[str], *blobs: bytes) -> Future[None]:
        """Accumulate what several devices contributed: one checkpoint, or parts of a whole."""
        ids = list(contributions)

        def whole() -> None:
            self._merge(whole_of(self._bound, ids, [self._reader.open(blob) for blob in blobs]))

        alone = len(blobs) == 1
        return self._begin(ids, (lambda: self._add(ids, blobs[0])) if alone else whole, False)

    def merge(self, partial: Partial) -> Future[None]:
        """Add a partial aggregate; ALREADY_EXISTS if it shares a contribution with this fold."""
        return self._begin(
            partial.contributions,
            lambda: self._merge(partial),
            len(partial.data) < self._inline_bytes,
        )

    def absorb(self, finished: Finished) -> Future[None]:
        """Add what another fold of this engine held, where it lies if that is only adding."""
        other = finished.aggregate
        if not isinstance(other, CheckpointAggregator):
            return super().absorb(finished)
        ids, inline = finished.contributions, finished.nbytes < self._inline_contribution

        return self._begin(
            ids, lambda: self._work(ids, lambda shard: self._take(shard, other)), inline
        )

    def finish(self) -> Future[Finished]:
        """Return what has been accumulated, as it lies if all that was done is adding."""
        with self._lock:
            inline = self._quick and len(self._shards) == 1
        return self._begin((), self._finish, inline)

    def view(self) -> Future[Finished]:
        """Return what has been accumulated, where it lies if all that was done is adding."""
        with self._lock:
            only = self._shards[0] if self._only_adds and len(self._shards) == 1 else None
        if only is None:
            return super().view()

        def pieces() -> Finished:
            with only.lock:
                return Finished(tuple(only.contributions), only.aggregator.pieces())

        return self._begin((), pieces, inline=self._quick)

    def partial(self) -> Future[Partial]:
        """Return all contributions whose futures are done by now, and perhaps others."""
        return self._begin((), self._partial, inline=False)

    def report(self, checkpoint_format: CheckpointFormat = "tf_v1") -> Future[bytes]:
        """Finish; every contribution that was added before is in the report or has failed."""
        future: Future[bytes] = Future()

        def run() -> None:
            self._submit(future, lambda: self._report(checkpoint_format), inline=False)

        with self._lock:
            if self._closed is not None:
                return failed(self._closed)
            self._closed = "the aggregation has reported"
            if self._in_flight:
                self._when_idle = run
                return future
        run()
        return future

    def abort(self) -> None:
        """Finish and drop everything; what is accumulating is dropped when it is done."""
        with self._lock:
            self._closed = self._closed or "the aggregation was aborted"
            self._aborted = True
            self._shards = []

    def _begin(
        self, contributions: Sequence[str], work: Callable[[], T], inline: bool
    ) -> Future[T]:
        """Run *work* now or on the pool; take the contributions' ids unless it fails."""
        with self._lock:
            if self._closed is not None:
                return failed(self._closed)
            twice = [item for item in contributions if item in self._ids]
            if twice or len(set(contributions)) < len(contributions):
                return failed(duplicate(twice or contributions))
            self._ids.update(contributions)
            self._in_flight += 1

        def done(succeeded: bool) -> None:
            when_idle = None
            with self._lock:
                if not succeeded:
                    self._ids.difference_update(contributions)
                self._in_flight -= 1
                if not self._in_flight:
                    when_idle, self._when_idle = self._when_idle, None
            if when_idle is not None:
                when_idle()

        future: Future[T] = Future()
        self._submit(future, work, inline, done)
        return future

    def _submit(
        self,
        future: Future[T],
        work: Callable[[], T],
        inline: bool,
        done: Callable[[bool], None] = lambda succeeded: None,
    ) -> None:
        """Run *work*, fill the future, then call *done* with whether it succeeded."""

        def run() -> None:
            succeeded = False
            try:
                if future.set_running_or_notify_cancel():
                    try:
                        result = work()
                    except BaseException as error:
                        future.set_exception(_forget_frames(error))
                    else:
                        succeeded = True
                        future.set_result(result)
            finally:
                done(succeeded)

        if not inline and self._pool is not None:
            try:
                self._pool.submit(run)
            except RuntimeError:
                # The engine was stopped, which aborted this fold: run() says so.
                pass
            else:
                return
        run()

    def _add(self, contributions: Sequence[str], blob: bytes | bytearray | memoryview) -> None:
        checkpoint = self._reader.open(blob)
        own = blob if isinstance(blob, memoryview) and not blob.readonly else None
        self._work(contributions, lambda shard: shard.aggregator.accumulate(checkpoint, own))

    def _merge(self, partial: Partial) -> None:
        kernels = self._reader.kernels
        loaded = CheckpointAggregator.load(self._bound, partial.data, self._budget, kernels)
        self._work(partial.contributions, lambda shard: self._take(shard, loaded))

    def _take(self, shard: _Shard, other: CheckpointAggregator) -> None:
        if shard.contributions or not self._only_adds:
            shard.aggregator.merge(other)
        else:
            # What would be added to nothing, and be in memory twice.
            shard.aggregator = other

    def _work(self, contributions: Sequence[str], work: Callable[[_Shard], None]) -> None:
        """Have *work* done in a free shard."""
        shard = self._claim()
        try:
            self._check_not_aborted()
            work(shard)
            shard.contributions.extend(contributions)
        finally:
            shard.lock.release()

    def _claim(self) -> _Shard:
        """Lock a free shard, a new one if all are busy and there may be more."""
        with self._lock:
            self._check_not_aborted()
            for shard in self._shards:
                if shard.lock.acquire(blocking=False):
                    return shard
            if len(self._shards) < self._max_shards:
                shard = _Shard(
                    CheckpointAggregator(self._bound, self._budget, kernels=self._reader.kernels)
                )
                shard.lock.acquire()
                self._shards.append(shard)
                return shard
            shard = self._shards[threading.get_ident() % len(self._shards)]
        shard.lock.acquire()
        return shard

    def _partial(self) -> Partial:
        with self._lock:
            self._check_not_aborted()
            shards = list(self._shards)
        if len(shards) == 1:
            with shards[0].lock:
                contributions = tuple(shards[0].contributions)
                return Partial(shards[0].aggregator.dump(), contributions)
        whole = CheckpointAggregator(self._bound)
        ids: list[str] = []
        for shard in shards:
            with shard.lock:
                whole.merge(shard.aggregator)
                ids.extend(shard.contributions)
        return Partial(whole.dump(), tuple(ids))

    def _finish(self) -> Finished:
        last = self._last()
        aggregator = last.aggregator
        own = aggregator if self._only_adds else None
        return Finished(tuple(last.contributions), aggregator.pieces(), own)

    def _report(self, checkpoint_format: CheckpointFormat) -> bytes:
        return write_checkpoint(self._last().aggregator.report(), checkpoint_format)

    def _last(self) -> _Shard:
        """Return everything in one shard; nothing else is in flight, and nothing comes."""
        with self._lock:
            self._check_not_aborted()
            first, *others = self._shards
            self._closed = self._closed or "the aggregation has finished"
            self._shards = []
        for shard in others:
            first.aggregator.merge(shard.aggregator)
            first.contributions += shard.contributions
            shard.aggregator.abort()
        return first

    def _check_not_aborted(self) -> None:
        if self._aborted:
            raise StatusError(Code.ABORTED, "the aggregation was aborted")


def _forget_frames(error: BaseException) -> BaseException:
    """Drop what would keep a refused contribution in memory as long as its error."""
    if isinstance(error, StatusError):
        error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
