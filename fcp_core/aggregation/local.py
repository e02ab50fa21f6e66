"""The engine that accumulates on this process's own threads.

A fold has a shard for each thread that may work on it: an accumulator with its own lock. A shard is
made only when all others are busy, so that a quiet fold holds one model and not many. They are
merged when the fold reports. NumPy lets go of the interpreter's lock while it adds big arrays, so
two folds of one session really run at once.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.binding import BoundIntrinsic
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator, KeptBudget
from fcp_core.aggregation.engine import (
    CheckpointFormat,
    Engine,
    Fold,
    FoldJob,
    Partial,
    call_by_name,
)
from fcp_core.aggregation.fold import bind_job, check_disjoint, duplicate, shards_of, whole_of
from fcp_core.errors import PLUGIN_ERRORS, UsageError
from fcp_core.protocol.checkpoint import CheckpointReader, write_checkpoint
from fcp_core.protocol.kernels import NumpyKernels, default_kernels
from fcp_core.protocol.status import Code, StatusError

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Blobs below this size are accumulated where they arrive: handing over would cost more.
DEFAULT_INLINE_BYTES = 32 << 10
#: The same where accumulating is only adding: that takes about a millisecond for the largest, and
#: another thread would begin without the bytes in its processor's cache.
DEFAULT_INLINE_ADDED_BYTES = 8 << 20


class LocalEngine(Engine):
    """Accumulates on a pool of threads.

    :param factories: the installed aggregators by name.
    :param workers: how many threads; 0: everything is folded in the calling thread.
    :param inline_bytes: smaller checkpoints are folded in the calling thread.
    :param inline_added_bytes: the same if all that is done with them is to add their floats.
    :param verify: check the checksums of checkpoints that have them.
    :param compiled: use the compiled loops if they are installed.
    """

    def __init__(
        self,
        factories: Mapping[str, AggregatorFactory],
        workers: int | None = None,
        inline_bytes: int = DEFAULT_INLINE_BYTES,
        *,
        inline_added_bytes: int = DEFAULT_INLINE_ADDED_BYTES,
        verify: bool = True,
        compiled: bool = True,
    ) -> None:
        self._factories = dict(factories)
        self._workers = (os.cpu_count() or 1) if workers is None else workers
        if min(self._workers, inline_bytes, inline_added_bytes) < 0:
            raise UsageError(
                "engine 'local': workers, inline_bytes and inline_added_bytes must not be negative "
                f"({self._workers}, {inline_bytes}, {inline_added_bytes})"
            )
        self._inline_bytes = inline_bytes
        self._inline_added_bytes = inline_added_bytes
        self._verify = verify
        self._kernels = default_kernels() if compiled else NumpyKernels()
        self._pool: ThreadPoolExecutor | None = None
        self._folds: weakref.WeakSet[LocalFold] = weakref.WeakSet()

    def start(self) -> None:
        """Make the pool; its threads start when they are needed."""
        logger.info("contributions are folded with the %s loops", self._kernels.name)
        if self._workers and self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="fcp-fold")

    def stop(self) -> None:
        """Abort the open folds and end the threads."""
        for fold in list(self._folds):
            fold.abort()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def open(self, job: FoldJob, partials: Sequence[Partial] = ()) -> LocalFold:
        """Begin a fold; one that was not started works in the calling thread."""
        bound = bind_job(self._factories, job)
        fold = LocalFold(
            bound,
            job.max_kept_bytes,
            self._pool,
            # One shard more than threads, so that a caller that works inline need not wait.
            shards_of(bound, self._workers + 1),
            self._inline_bytes,
            self._inline_added_bytes,
            CheckpointReader(verify=self._verify, kernels=self._kernels),
            partials,
        )
        self._folds.add(fold)
        return fold

    def run(self, function: str, arguments: bytes) -> Future[bytes]:
        """Run a pure function on the pool; in the calling thread if there is none."""
        if self._pool is not None:
            return self._pool.submit(call_by_name, function, arguments)
        future: Future[bytes] = Future()
        try:
            future.set_result(call_by_name(function, arguments))
        except PLUGIN_ERRORS as error:
            future.set_exception(error)
        return future


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
        self._inline_contribution = inline_bytes
        if first.only_adds:
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
                return _failed(self._closed)
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
                return _failed(self._closed)
            twice = [item for item in contributions if item in self._ids]
            if twice or len(set(contributions)) < len(contributions):
                return _failed(duplicate(twice or contributions))
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
        with _Claim(self) as shard:
            shard.aggregator.accumulate(checkpoint)
            shard.contributions.extend(contributions)

    def _merge(self, partial: Partial) -> None:
        loaded = CheckpointAggregator.load(self._bound, partial.data, self._budget)
        with _Claim(self) as shard:
            shard.aggregator.merge(loaded)
            shard.contributions.extend(partial.contributions)

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

    def _report(self, checkpoint_format: CheckpointFormat) -> bytes:
        with self._lock:
            self._check_not_aborted()
            first, *others = self._shards
            # Nothing else is in flight: the shards are this thread's alone.
            self._shards = []
        for shard in others:
            first.aggregator.merge(shard.aggregator)
            shard.aggregator.abort()
        return write_checkpoint(first.aggregator.report(), checkpoint_format)

    def _check_not_aborted(self) -> None:
        if self._aborted:
            raise StatusError(Code.ABORTED, "the aggregation was aborted")


class _Claim:
    """Holds a free shard of a fold, a new one if all are busy and there may be more."""

    def __init__(self, fold: LocalFold) -> None:
        self._fold = fold

    def __enter__(self) -> _Shard:
        self._shard = self._take()
        if self._fold._aborted:
            self._shard.lock.release()
            self._fold._check_not_aborted()
        return self._shard

    def __exit__(self, *exc: object) -> None:
        self._shard.lock.release()

    def _take(self) -> _Shard:
        fold = self._fold
        with fold._lock:
            fold._check_not_aborted()
            for shard in fold._shards:
                if shard.lock.acquire(blocking=False):
                    return shard
            if len(fold._shards) < fold._max_shards:
                shard = _Shard(
                    CheckpointAggregator(fold._bound, fold._budget, kernels=fold._reader.kernels)
                )
                shard.lock.acquire()
                fold._shards.append(shard)
                return shard
            shard = fold._shards[threading.get_ident() % len(fold._shards)]
        shard.lock.acquire()
        return shard


def _forget_frames(error: BaseException) -> BaseException:
    """Drop what would keep a refused contribution in memory as long as its error."""
    if isinstance(error, StatusError):
        error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def _failed(reason: str | StatusError) -> Future[Any]:
    error = StatusError(Code.ABORTED, reason) if isinstance(reason, str) else reason
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def make_local_engine(
    factories: Mapping[str, AggregatorFactory], options: Mapping[str, Any]
) -> LocalEngine:
    """Make the engine from its options.

    :param options: ``workers`` (-1: one a processor), ``inline_bytes``, ``inline_added_bytes``,
        ``verify_checksums`` and ``compiled``.
    :raises UsageError: if an option is out of range.
    """
    workers = options.get("workers", -1)
    return LocalEngine(
        factories,
        None if workers == -1 else workers,
        options.get("inline_bytes", DEFAULT_INLINE_BYTES),
        inline_added_bytes=options.get("inline_added_bytes", DEFAULT_INLINE_ADDED_BYTES),
        verify=options.get("verify_checksums", True),
        compiled=options.get("compiled", True),
    )
