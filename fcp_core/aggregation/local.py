"""The engine that accumulates on this process's own threads.

A fold has a shard for each thread that may work on it: an accumulator with its own lock. A shard is
made only when all others are busy, so that a quiet fold holds one model and not many. They are
merged when the fold reports. NumPy lets go of the interpreter's lock while it adds big arrays, so
two folds of one session really run at once.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import Engine, FoldJob, Partial, call_by_name
from fcp_core.aggregation.fold import bind_job, shards_of
from fcp_core.aggregation.local_fold import LocalFold
from fcp_core.errors import UsageError, plugin_errors
from fcp_core.protocol.checkpoint import CheckpointReader
from fcp_core.protocol.checkpoint.kernels import NumpyKernels, default_kernels

logger = logging.getLogger(__name__)

#: How many configurations are known by the structure of their checkpoints.
_READERS = 64
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
        #: By configuration: the folds of one task follow one another.
        self._readers: OrderedDict[bytes, CheckpointReader] = OrderedDict()
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
            self._reader(job.configuration),
            partials,
        )
        self._folds.add(fold)
        return fold

    def _reader(self, configuration: bytes) -> CheckpointReader:
        reader = self._readers.pop(configuration, None)
        if reader is None:
            reader = CheckpointReader(verify=self._verify, kernels=self._kernels)
        self._readers[configuration] = reader
        if len(self._readers) > _READERS:
            self._readers.popitem(last=False)
        return reader

    def run(self, function: str, arguments: bytes) -> Future[bytes]:
        """Run a pure function on the pool; in the calling thread if there is none."""
        if self._pool is not None:
            return self._pool.submit(call_by_name, function, arguments)
        future: Future[bytes] = Future()
        try:
            future.set_result(call_by_name(function, arguments))
        except plugin_errors() as error:
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
