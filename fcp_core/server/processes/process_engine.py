"""The engine of a server of several processes: each accumulates the uploads that it received.

A fold here is one of this process and, in each other process that holds an upload of it, one more.
Their partial aggregates are merged when the fold reports. What a process had folded is lost with
it, and the fold says so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fcp_core.aggregation.engine import (
    CheckpointFormat,
    Engine,
    Fold,
    FoldJob,
    HeldBody,
    Partial,
)
from fcp_core.aggregation.fold import check_disjoint, duplicate
from fcp_core.protocol.status import Code, StatusError

T = TypeVar("T")


class RemoteProcess(Protocol):
    """Calls another process of the server."""

    async def call(self, name: str, *arguments: Any) -> Any:
        """Call it; UNAVAILABLE once it has ended."""
        ...

    def tell(self, name: str, *arguments: Any) -> None:
        """Call it and do not wait; nothing happens once it has ended."""
        ...


class RemoteUpload(HeldBody):
    """An upload that another process received.

    :param number: what that process calls it.
    :param size: in bytes.
    """

    def __init__(self, process: RemoteProcess, number: int, size: int) -> None:
        self.process = process
        self.number = number
        self._size = size

    def __len__(self) -> int:
        """Return its size."""
        return self._size

    def drop(self) -> None:
        """Have the other process drop it."""
        self.process.tell("drop_body", self.number)

    async def fetch(self) -> bytes:
        """Bring it here, in pieces: a large frame would hold up all others.

        :raises StatusError: ABORTED if the other process has lost it.
        """
        pieces: list[bytes] = []
        received = 0
        while received < self._size:
            pieces.append(await self.process.call("read_body", self.number, received))
            received += len(pieces[-1])
        self.drop()
        return b"".join(pieces)


class ProcessEngine(Engine):
    """Folds in this process, and in those that hold uploads.

    :param inner: folds what this process received, and merges.
    :param processes: how many processes share what aggregators may keep.
    """

    def __init__(self, inner: Engine, processes: int) -> None:
        self._inner = inner
        self._processes = processes
        self._numbers = itertools.count(1)
        self._folds: weakref.WeakSet[ProcessFold] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def start(self) -> Awaitable[None] | None:
        """Start the inner engine; call it on the server's event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        return self._inner.start()

    def stop(self) -> Awaitable[None] | None:
        """Abort the open folds and stop the inner engine."""
        for fold in list(self._folds):
            fold.abort()
        return self._inner.stop()

    def run(self, function: str, arguments: bytes) -> Future[bytes]:
        """Run a pure function where the inner engine runs it."""
        return self._inner.run(function, arguments)

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
            self._inner.open(share, partials),
            lambda: self._inner.open(job),
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


@dataclass
class _Share:
    """The number of contributions that another process has accumulated for a fold."""

    folded: int = 0


class ProcessFold(Fold):
    """One session's folds in all processes; made by :meth:`ProcessEngine.open`.

    :param number: what other processes call it.
    :param job: what each process folds.
    :param local: the fold of this process.
    :param whole: makes an empty fold that takes what all processes have.
    :param contributions: those that are in *local* already.
    :param loop: the server's event loop.
    :param thread: the thread that it runs on.
    """

    def __init__(
        self,
        number: int,
        job: FoldJob,
        local: Fold,
        whole: Callable[[], Fold],
        contributions: Sequence[str],
        loop: asyncio.AbstractEventLoop,
        thread: int,
    ) -> None:
        self._number = number
        self._job = job
        self._local = local
        self._whole = whole
        self._loop = loop
        self._thread = thread
        # Only the event loop looks at these.
        self._shares: dict[RemoteProcess, _Share] = {}
        self._running: set[asyncio.Task[Any]] = set()
        # Guards everything below.
        self._lock = threading.Lock()
        self._ids = set(contributions)
        self._adding: set[Future[None]] = set()
        self._closed: str | None = None
        self._on_loss: Callable[[str], None] | None = None

    def add(self, contribution: str, blob: bytes | bytearray | memoryview) -> Future[None]:
        """Fold one checkpoint in this process."""
        return self._begin((contribution,), lambda: self._local.add(contribution, blob))

    def add_group(self, contributions: Sequence[str], *blobs: bytes) -> Future[None]:
        """Fold what several devices contributed in this process."""
        return self._begin(contributions, lambda: self._local.add_group(contributions, *blobs))

    def add_held(self, contribution: str, body: HeldBody) -> Future[None]:
        """Fold one checkpoint in the process that holds it; it fails if that process has ended."""
        assert isinstance(body, RemoteUpload)  # there is no other kind here
        begun = False

        def begin() -> Future[None]:
            nonlocal begun
            begun = True
            return self._run(self._fold_there(contribution, body))

        future = self._begin((contribution,), begin)
        if not begun:
            body.drop()
        return future

    def merge(self, partial: Partial) -> Future[None]:
        """Add a partial aggregate; this process has it from now on."""
        return self._begin(partial.contributions, lambda: self._local.merge(partial))

    def partial(self) -> Future[Partial]:
        """Return what all processes have folded so far."""
        with self._lock:
            if self._closed is not None:
                return _failed(self._closed)
        return self._run(self._merged_partial())

    def report(self, checkpoint_format: CheckpointFormat = "tf_v1") -> Future[bytes]:
        """Merge what all processes have, and finish."""
        with self._lock:
            if self._closed is not None:
                return _failed(self._closed)
            self._closed = "the aggregation has reported"
        return self._run(self._report(checkpoint_format))

    def abort(self) -> None:
        """Finish and drop everything."""
        with self._lock:
            self._closed = self._closed or "the aggregation was aborted"
            self._on_loss = None
        self._local.abort()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drop_shares)

    def on_loss(self, callback: Callable[[str], None]) -> None:
        """Call *callback* once a process exits that had accumulated something."""
        with self._lock:
            self._on_loss = callback

    def lost(self, process: RemoteProcess) -> None:
        """Drop the shares of a process that exited; call it on the event loop."""
        share = self._shares.pop(process, None)
        if share is None or not share.folded:
            return
        with self._lock:
            self._closed = self._closed or "contributions were lost"
            callback, self._on_loss = self._on_loss, None
        if callback is not None:
            callback(f"a process of the server ended that had folded {share.folded} of them")

    # Inside.

    def _begin(
        self, contributions: Sequence[str], work: Callable[[], Future[None]]
    ) -> Future[None]:
        """Take the contributions' ids, and give them back if *work* fails."""
        with self._lock:
            if self._closed is not None:
                return _failed(self._closed)
            twice = [item for item in contributions if item in self._ids]
            if twice or len(set(contributions)) < len(contributions):
                return _failed(duplicate(twice or contributions))
            self._ids.update(contributions)
            # What is in here is waited for, from before its work begins until it is counted.
            future: Future[None] = Future()
            self._adding.add(future)
        future.set_running_or_notify_cancel()

        def done(inner: Future[None]) -> None:
            error = inner.exception()
            with self._lock:
                if error is not None:
                    self._ids.difference_update(contributions)
                self._adding.discard(future)
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        work().add_done_callback(done)
        return future

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the event loop."""
        if self._loop.is_closed():
            work.close()
            return _failed(_stopped())
        if threading.get_ident() != self._thread:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        # From the loop itself, as always in a server, there is no need to wake it.
        future: Future[T] = Future()
        task = self._loop.create_task(work)
        self._running.add(task)

        def done(task: asyncio.Task[T]) -> None:
            self._running.discard(task)
            error = _stopped() if task.cancelled() else task.exception()
            if error is None:
                future.set_result(task.result())
            else:
                future.set_exception(error)

        task.add_done_callback(done)
        return future

    async def _fold_there(self, contribution: str, body: RemoteUpload) -> None:
        share = self._shares.get(body.process)
        if share is None:
            share = self._shares[body.process] = _Share()
            body.process.tell("open_fold", self._number, self._job)
        await body.process.call("fold", self._number, contribution, body.number)
        share.folded += 1

    async def _merged_partial(self) -> Partial:
        theirs = await self._partials()
        local = await asyncio.wrap_future(self._local.partial())
        if not theirs:
            return local
        whole = self._whole()
        try:
            for partial in (local, *theirs):
                await asyncio.wrap_future(whole.merge(partial))
            return await asyncio.wrap_future(whole.partial())
        finally:
            whole.abort()

    async def _report(self, checkpoint_format: CheckpointFormat) -> bytes:
        with self._lock:
            adding = [asyncio.wrap_future(future) for future in self._adding]
        if adding:
            await asyncio.wait(adding)
            for future in adding:
                future.exception()  # whoever added it sees the error
        theirs = await self._partials()
        # From here on no process can take anything away.
        self._drop_shares()
        if not await self._take(theirs):
            return await asyncio.wrap_future(self._local.report(checkpoint_format))
        # All together is more than the share of one process.
        whole = self._whole()
        try:
            for partial in (await asyncio.wrap_future(self._local.partial()), *theirs):
                await asyncio.wrap_future(whole.merge(partial))
        except BaseException:
            whole.abort()
            raise
        finally:
            self._local.abort()
        return await asyncio.wrap_future(whole.report(checkpoint_format))

    async def _take(self, theirs: list[Partial]) -> list[Partial]:
        """Merge what others have into this process's fold; leave in the list what has no room."""
        while theirs:
            try:
                await asyncio.wrap_future(self._local.merge(theirs[-1]))
            except StatusError as error:
                if error.code is not Code.RESOURCE_EXHAUSTED:
                    raise
                break
            theirs.pop()
        return theirs

    async def _partials(self) -> list[Partial]:
        """Return what the other processes have, if they have anything."""
        processes = [process for process, share in self._shares.items() if share.folded]
        return list(await asyncio.gather(*map(self._partial_of, processes)))

    async def _partial_of(self, process: RemoteProcess) -> Partial:
        size, contributions = await process.call("partial", self._number)
        pieces: list[bytes] = []
        received = 0
        while received < size:
            pieces.append(await process.call("piece", self._number, received))
            received += len(pieces[-1])
            if not pieces[-1]:
                raise StatusError(Code.ABORTED, "the aggregation was aborted")
        return Partial(b"".join(pieces), tuple(contributions))

    def _drop_shares(self) -> None:
        shares, self._shares = self._shares, {}
        for process in shares:
            process.tell("drop_fold", self._number)


def _stopped() -> StatusError:
    return StatusError(Code.ABORTED, "the server has stopped")


def _failed(reason: str | StatusError) -> Future[Any]:
    error = StatusError(Code.ABORTED, reason) if isinstance(reason, str) else reason
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
