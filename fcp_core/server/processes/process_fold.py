"""The fold of :mod:`fcp_core.server.processes.process_engine`: one of each process that has a part.

Their partial aggregates are merged when the fold reports or finishes. What a process had folded is
lost with it, and the fold says so, unless it could hand that over before.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fcp_core.aggregation.engine import (
    CheckpointFormat,
    Finished,
    Fold,
    FoldJob,
    HeldBody,
    Partial,
)
from fcp_core.aggregation.fold import begun, duplicate, error_of, failed
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.processes.remote_upload import RemoteProcess, RemoteUpload

T = TypeVar("T")


@dataclass
class _Share:
    """What another process has of a fold.

    :ivar folded: how many contributions it has accumulated.
    :ivar folding: those that it accumulates now.
    :ivar ends: whether it is about to end, and is to accumulate nothing more.
    """

    folded: int = 0
    ends: bool = False
    folding: set[asyncio.Future[None]] = field(default_factory=set)


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
        #: Whoever holds it has the shares of others, or takes them.
        self._merging = asyncio.Lock()
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
        if body.data is not None:
            return self.add(contribution, body.data)
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

    def absorb(self, finished: Finished) -> Future[None]:
        """Add what another fold held; this process has it from now on."""
        return self._begin(finished.contributions, lambda: self._local.absorb(finished))

    def finish(self) -> Future[Finished]:
        """Return what all processes have folded, and take no more."""
        with self._lock:
            if self._closed is not None:
                return failed(self._closed)
            self._closed = "the aggregation has finished"
        if threading.get_ident() == self._thread and not self._shares:
            return self._local.finish()
        return self._run(self._finish())

    def view(self) -> Future[Finished]:
        """Return what all processes have folded so far, where it lies if that is here."""
        if threading.get_ident() == self._thread and not self._shares:
            return self._local.view()
        return super().view()

    def partial(self) -> Future[Partial]:
        """Return what all processes have folded so far."""
        with self._lock:
            if self._closed is not None:
                return failed(self._closed)
        return self._run(self._merged_partial())

    def report(self, checkpoint_format: CheckpointFormat = "tf_v1") -> Future[bytes]:
        """Merge what all processes have, and finish."""
        with self._lock:
            if self._closed is not None:
                return failed(self._closed)
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

    async def take_over(self, process: RemoteProcess) -> None:
        """Bring here what a process has folded that is about to end; call it on the event loop.

        :raises StatusError: if it cannot be brought.
        """
        share = self._shares.get(process)
        if share is None:
            return
        share.ends = True
        if share.folding:
            await asyncio.wait(share.folding)
        async with self._merging:
            if self._shares.get(process) is share and share.folded:
                theirs = await self._partial_of(process)
                if self._shares.get(process) is share:
                    await asyncio.wrap_future(self._local.merge(theirs))
            if self._shares.get(process) is share:
                del self._shares[process]
                process.tell("drop_fold", self._number)

    # Inside.

    def _begin(
        self, contributions: Sequence[str], work: Callable[[], Future[None]]
    ) -> Future[None]:
        """Take the contributions' ids, and give them back if *work* fails."""
        with self._lock:
            if self._closed is not None:
                return failed(self._closed)
            twice = [item for item in contributions if item in self._ids]
            if twice or len(set(contributions)) < len(contributions):
                return failed(duplicate(twice or contributions))
            self._ids.update(contributions)
            # What is in here is waited for, from before its work begins until it is counted.
            future: Future[None] = Future()
            self._adding.add(future)
        future.set_running_or_notify_cancel()

        def done(inner: Future[None]) -> None:
            error = error_of(inner)
            with self._lock:
                if error is not None:
                    self._ids.difference_update(contributions)
                self._adding.discard(future)
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        # A report must not wait for ever for what an engine that fails never begins.
        begun(work).add_done_callback(done)
        return future

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the event loop."""
        if self._loop.is_closed():
            work.close()
            return failed(_stopped())
        if threading.get_ident() != self._thread:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        # From the loop itself, as always in a server, there is no need to wake it.
        future: Future[T] = Future()
        # Whoever does not wait any more must not take the outcome's place.
        future.set_running_or_notify_cancel()
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
        if share.ends:
            data = await body.fetch()
            await asyncio.wrap_future(self._local.add(contribution, data))
            return
        body.taken = True
        # Nobody cancels this: what the other process does cannot be taken back.
        folding = asyncio.ensure_future(
            body.process.call("fold", self._number, contribution, body.number)
        )
        share.folding.add(folding)
        try:
            await folding
            share.folded += 1
        finally:
            share.folding.discard(folding)

    async def _merged_partial(self) -> Partial:
        async with self._merging:
            theirs = await self._partials()
            local = await asyncio.wrap_future(self._local.partial())
        return await self._together(local, theirs)

    async def _together(self, local: Partial, theirs: list[Partial]) -> Partial:
        if not theirs:
            return local
        whole = self._whole()
        try:
            for partial in (local, *theirs):
                await asyncio.wrap_future(whole.merge(partial))
            return await asyncio.wrap_future(whole.partial())
        finally:
            whole.abort()

    async def _finish(self) -> Finished:
        async with self._merging:
            theirs = await self._partials()
            self._drop_shares()
        if not await self._take(theirs):
            return await asyncio.wrap_future(self._local.finish())
        local = await asyncio.wrap_future(self._local.partial())
        whole = await self._together(local, theirs)
        return Finished(whole.contributions, (whole.data,))

    async def _report(self, checkpoint_format: CheckpointFormat) -> bytes:
        with self._lock:
            adding = [asyncio.wrap_future(future) for future in self._adding]
        if adding:
            await asyncio.wait(adding)
            for future in adding:
                future.exception()  # whoever added it sees the error
        async with self._merging:
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
