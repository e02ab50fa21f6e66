"""One task's work in the engine, and the memory of the uploads that wait for it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from fcp_core.aggregation.engine import CheckpointFormat, Fold, HeldBody
from fcp_core.errors import PLUGIN_ERRORS, describe
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.effects import Group
from fcp_core.rounds.protocols import Work
from fcp_core.server.services.durable_fold import DurableFold

if TYPE_CHECKING:
    from fcp_core.server.services.releases import TaskRelease
    from fcp_core.server.services.task_parts import Surroundings

logger = logging.getLogger("fcp.services")

#: How many seconds a server that stops waits for what is being stored.
_PATIENCE = 10.0


class UploadMemory:
    """Counts what is held of uploads, from their last byte until they are accumulated or dropped.

    What is accumulated and waits to be stored holds no bytes of its own any more.

    :param limit: in bytes.
    :ivar held: in bytes.
    :ivar crowded: whether that is more than half of the limit, or as much as the limit waits to be
        received: no more devices should be given work then, so that those who have it find room.
    :ivar on_release: called when there is more room.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0
        self.crowded = False
        self._behind = 0
        self.on_release: Callable[[], None] = lambda: None

    def pressure(self) -> str:
        """Say that it is crowded; ``""`` if it is not."""
        if not self.crowded:
            return ""
        if self._behind:
            return f"uploads of more than {self._limit} bytes wait to be received"
        return f"the server holds {self.held} bytes of uploads that wait to be aggregated"

    def check(self, size: int) -> None:
        """Check that there is room.

        :raises StatusError: UNAVAILABLE if not; the device may upload again.
        """
        if self.held + size > self._limit:
            raise StatusError(
                Code.UNAVAILABLE,
                f"the server holds {self.held} bytes of uploads that wait to be aggregated and "
                f"takes no more than {self._limit}; upload again later",
            )

    def hold(self, size: int) -> None:
        """Count bytes."""
        self.held += size
        self._judge()

    def release(self, size: int) -> None:
        """Uncount bytes."""
        if size:
            self.held -= size
            self._judge()
            self.on_release()

    def behind(self, more: int) -> None:
        """Count processes in which more waits to be received than may be held."""
        self._behind += more
        self._judge()

    def _judge(self) -> None:
        self.crowded = self._behind > 0 or 2 * self.held > self._limit


class TaskEngine:
    """A task's fold and its jobs.

    Outcomes are called back on the event loop, and not any more once the task has another fold or
    is stopped.

    :param on_folded: called with the ids of what is in the fold, and not stored yet.
    :param on_loss: called with the reason when contributions in the fold were lost.
    :param on_failure: called when an outcome could not be taken.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        on_folded: Callable[[Sequence[str]], None],
        on_loss: Callable[[str], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._engine, self._writes = surroundings.engine, surroundings.writes
        self._on_folded, self._on_loss = on_folded, on_loss
        self._on_failure = on_failure
        self._fold: Fold | None = None
        self._jobs: set[Future[bytes]] = set()
        self._stopped = False
        #: Whether an outcome is being taken that was there at once.
        self._taking = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def use(self, fold: Fold) -> None:
        """Accumulate in *fold* from now on; an earlier one is aborted."""
        if self._fold is not None:
            self._fold.abort()
        self._cancel_jobs()
        self._fold = fold
        if isinstance(fold, DurableFold):
            fold.on_folded = self._on_folded

        def lost(why: str) -> None:
            if fold is self._fold and not self._stopped:
                self._on_loss(why)

        def from_engine(why: str) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(lost, why)

        fold.on_loss(from_engine)

    def accumulate(self, group: Group, then: Callable[[Group, Future[None]], None]) -> None:
        """Accumulate what a group contributes."""
        fold = self._current()
        if group.slot is None:
            ids = [assignment.id for assignment in group.assignments]
            future = _begun(fold.add_group, ids, *group.checkpoints)
        else:
            (assignment,) = group.assignments
            body = assignment.take(group.slot)
            add = fold.add_held if isinstance(body, HeldBody) else fold.add
            future = _begun(add, assignment.id, body)
        self._when_done(future, partial(then, group))

    def report(
        self,
        release: TaskRelease,
        result_format: CheckpointFormat,
        then: Callable[[Future[bytes]], None],
    ) -> None:
        """Report the aggregate, or draw its result if it has noise."""
        fold = self._current()
        if release.has_noise:
            drawing = release.draw(fold, result_format)
            self._when_done(asyncio.run_coroutine_threadsafe(drawing, self._loop), then)
        else:
            self._when_done(_begun(fold.report, result_format), then)

    def run(self, work: Work, then: Callable[[Work, Future[bytes]], None]) -> None:
        """Do a protocol's heavy work."""
        future = _begun(self._engine.run, work.function, work.arguments)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        self._when_done(future, partial(then, work))

    def abort(self) -> None:
        """Drop what was accumulated, and cancel the jobs."""
        self._cancel_jobs()
        try:
            self._current().abort()
        except Exception:
            logger.exception("the engine could not drop an aggregate")

    async def settle(self, ending: asyncio.Task[None] | None, name: str) -> None:
        """Take nothing more; wait for what is being stored, but not for long.

        What cannot be stored now was answered to nobody.

        :param ending: what stores the end of the task, if it is doing so.
        :param name: the task's.
        """
        if ending is None:
            if not isinstance(self._fold, DurableFold):
                return
            ending = self._loop.create_task(self._fold.flush())
        await asyncio.wait([ending], timeout=1.0 if self._writes.trouble() else _PATIENCE)
        if not ending.done():
            ending.cancel()
            logger.warning(
                "task %s is stopped although its last writes are not done; the next start judges "
                "it by what is stored",
                name,
            )

    def stop(self, *, abort: bool) -> None:
        """Answer nothing any more."""
        self._stopped = True
        self._cancel_jobs()
        if abort:
            self.abort()

    def _cancel_jobs(self) -> None:
        """Cancel the jobs whose outcomes nobody waits for any more."""
        for future in list(self._jobs):
            future.cancel()

    def _current(self) -> Fold:
        assert self._fold is not None  # a task uses a fold from its beginning
        return self._fold

    def _when_done(self, future: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        """Call *then* on the event loop once the engine is done."""
        fold = self._fold

        def on_loop(done: Future[Any]) -> None:
            if self._stopped or fold is not self._fold:
                return
            try:
                then(done)
            except PLUGIN_ERRORS:
                logger.exception("the outcome of a task's work could not be taken")
                self._on_failure()

        def from_engine(done: Future[Any]) -> None:
            # A loop's own thread need not wake it; one that is closed has nobody left who waits.
            here = threading.get_ident() == self._thread
            if not self._loop.is_closed():
                (self._loop.call_soon if here else self._loop.call_soon_threadsafe)(on_loop, done)

        if not self._taking and future.done() and threading.get_ident() == self._thread:
            # As it is with small contributions: the device has its answer in this turn. What that
            # leads to has the next, or one could lead to another without end.
            self._taking = True
            try:
                on_loop(future)
            finally:
                self._taking = False
        else:
            future.add_done_callback(from_engine)


def _begun(begin: Callable[..., Future[Any]], *arguments: Any) -> Future[Any]:
    """Have an engine begin something; if it raises or returns no future, return a failed one."""
    try:
        future = begin(*arguments)
        if not isinstance(future, Future):
            raise TypeError(f"expected a Future, not {future!r:.200}")
    except PLUGIN_ERRORS as error:
        future = Future()
        future.set_exception(error)
    return future


def outcome_of(future: Future[Any]) -> tuple[Code, str]:
    """Return how a future of the engine ended; OK if it has a result."""
    if future.cancelled():
        return Code.ABORTED, "the task is over"
    error = future.exception()
    if error is None:
        return Code.OK, ""
    if isinstance(error, StatusError):
        return error.code, error.message
    logger.error("the aggregation engine failed", exc_info=error)
    return Code.INTERNAL, f"the aggregation engine failed: {describe(error)}"
