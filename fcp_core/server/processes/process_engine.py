"""The engine of several processes, or members: each accumulates the uploads that it received.

A fold here is one of this process and, in each other process that holds an upload of it, one more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
import weakref
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future

from fcp_core.aggregation.engine import Engine, FoldJob, Partial
from fcp_core.aggregation.fold import check_disjoint
from fcp_core.server.processes.process_fold import ProcessFold
from fcp_core.server.processes.remote_upload import RemoteProcess


class ProcessEngine(Engine):
    """Folds in this process, and in those that hold uploads.

    :param inner: folds what this process received, and merges.
    :param processes: how many processes share what aggregators may keep.
    """

    def __init__(self, inner: Engine, processes: int) -> None:
        #: Folds what this process received.
        self.inner = inner
        self._processes = processes
        self._numbers = itertools.count(1)
        self._folds: weakref.WeakSet[ProcessFold] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def start(self) -> Awaitable[None] | None:
        """Start the inner engine; call it on the server's event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        return self.inner.start()

    def stop(self) -> Awaitable[None] | None:
        """Abort the open folds and stop the inner engine."""
        for fold in list(self._folds):
            fold.abort()
        return self.inner.stop()

    def run(self, function: str, arguments: bytes) -> Future[bytes]:
        """Run a pure function where the inner engine runs it."""
        return self.inner.run(function, arguments)

    def open(self, job: FoldJob, partials: Sequence[Partial] = ()) -> ProcessFold:
        """Begin a fold; other processes hear of it when they have something for it."""
        assert self._loop is not None, "an engine is started before it folds"
        share = job
        if not job.goal_count:
            # Nothing else bounds what all processes keep together.
            kept = job.max_kept_bytes // self._processes
            share = dataclasses.replace(job, max_kept_bytes=kept)
        fold = ProcessFold(
            next(self._numbers),
            share,
            self.inner.open(share, partials),
            lambda: self.inner.open(job),
            check_disjoint(partials),
            self._loop,
            self._thread,
        )
        self._folds.add(fold)
        return fold

    def lost(self, process: RemoteProcess) -> None:
        """Drop the shares of a process that exited; call it on the event loop."""
        for fold in list(self._folds):
            fold.lost(process)

    async def take_over(self, process: RemoteProcess) -> None:
        """Bring here what a process has accumulated that is about to end.

        :raises StatusError: if something cannot be brought.
        """
        await asyncio.gather(*(fold.take_over(process) for fold in list(self._folds)))
