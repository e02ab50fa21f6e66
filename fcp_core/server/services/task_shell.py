"""The shell of one task, from its beginning to its end: what the server does with it.

What devices do with it is in ``task_runner``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from fcp_core.aggregation.engine import Fold
from fcp_core.errors import describe, plugin_errors
from fcp_core.plugins.settings import TaskSettings
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import Assignment
from fcp_core.rounds.effects import DroppedEffect, EndEffect
from fcp_core.rounds.events import Committed, Dropped, Event, Surplus, TaskClosed, TaskOpened
from fcp_core.rounds.protocols import Work
from fcp_core.rounds.task import FINAL
from fcp_core.rounds.tasks import TaskSpec, TaskStatus
from fcp_core.rounds.text import clean
from fcp_core.server.services.durable_fold import DurableFold
from fcp_core.server.services.protocol_host import ShellEffect
from fcp_core.server.services.published import Published
from fcp_core.server.services.task_parts import (
    LARGE,
    Keeper,
    Places,
    Surroundings,
    TaskParts,
    explained,
)

logger = logging.getLogger("fcp.services")

#: How many seconds a server that stops waits for what is being stored.
_PATIENCE = 10.0


class TaskShell(ABC):
    """One task that is offered, until it has ended.

    :param spec: the specification without its large parts.
    """

    def __init__(
        self,
        spec: TaskSpec,
        aggregation_id: str,
        parts: TaskParts,
        published: Published,
        settings: TaskSettings,
        surroundings: Surroundings,
        places: Places,
        keeper: Keeper,
    ) -> None:
        self.spec, self.aggregation_id = spec, aggregation_id
        self.machine, self.protocol = parts.machine, parts.protocol
        self.task_id = parts.machine.task_id
        self.published = published
        self.messages: dict[tuple[str, bool, int | None], Any] = {}
        self.settings, self.accepts_late = settings, settings.accepts_late
        self._begun, self.routes, self.release = parts.begun, parts.routes, parts.release
        self._with, self._places, self._keeper = surroundings, places, keeper
        self._fold = parts.fold
        self._jobs: set[Future[bytes]] = set()
        self._stopped = False
        #: Large contributions that are accumulated and not stored yet, with their sizes.
        self._storing: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        #: In which the outcomes of the engine are taken.
        self._thread = threading.get_ident()
        self._use(parts.fold)
        #: Of the last upload, in bytes; of the first ones what the specification says.
        self.upload_size = parts.upload_size
        #: When it is to be called next, as the ticker knows.
        self._next_tick = math.inf
        #: Whether one that has contributed leaves a place for another.
        self._capped = places.capped or self.machine.max_at_work is not None
        #: How many had left places when the population was last told: in vain, and contributing.
        self._seen = (0, 0)
        self._result: bytes | None = None
        #: Those who wait for it. It is stored, and kept here no longer: it may be large.
        self._waiters: list[asyncio.Future[bytes]] = []
        self._ended: TaskStatus | None = None
        self._finishing: asyncio.Task[None] | None = None

    @property
    def streams(self) -> Sequence[str]:
        """The names of the streams of shards that other members write for it."""
        return self._fold.streams if isinstance(self._fold, DurableFold) else ()

    @abstractmethod
    def excuses(self, assignment: Assignment) -> bool:
        """Whether a device is answered OK although it does not count."""

    @abstractmethod
    def _perform(self, effects: Sequence[ShellEffect], now: float) -> None:
        """Carry out effects, in order."""

    @abstractmethod
    def _when_done(
        self,
        then: Callable[[Future[Any]], None],
        begin: Callable[..., Future[Any]],
        *arguments: Any,
    ) -> Future[Any]:
        """Have the engine begin something, and call *then* on the event loop once it is done."""

    def status(self) -> TaskStatus:
        """Return the task's status; it is final only once the end has been stored.

        Devices of which an earlier run knew may still come, too late, and are counted.
        """
        if self._ended is not None:
            return dataclasses.replace(self._ended, surplus=self.machine.surplus)
        return explained(self.machine, self.protocol.notes(), self._places, self._with)

    def open(self, now: float) -> None:
        """Begin: from now on the task takes devices and keeps its times."""
        self._perform(self._begun, now)
        task = self.machine
        who = (task.population, task.task_id, task.name)
        self._with.notify(TaskOpened(now, *who, task.goal_count))
        self._schedule()

    def restart(self, parts: TaskParts, now: float) -> None:
        """Begin again with what is stored, as after a restart of the server.

        Those who are in progress are answered ABORTED; those who have contributed hear nothing.
        """
        why = "the task was restarted"
        for effect in self.machine.cancel(Code.ABORTED, why, now, needed=True):
            if isinstance(effect, DroppedEffect):
                self._dropped(effect, now)
        self.protocol.end()
        parts.machine.silence = self.machine.silence
        parts.machine.share(self.machine.experiences)
        self.machine, self.protocol = parts.machine, parts.protocol
        self.release = parts.release
        self._fold.abort()
        self._use(parts.fold)
        self._seen = (0, 0)
        self._perform(parts.begun, now)
        self._schedule()
        self._places.left(self, contributed=False, now=now)

    async def wait(self) -> bytes:
        """Return the result as soon as it is stored.

        :raises StatusError: why there is none; UNAVAILABLE if the server stops before the end.
        """
        if self._stopped:
            raise self._stopping()
        self._waiters.append(asyncio.get_running_loop().create_future())
        return await self._waiters[-1]

    async def stop(self) -> None:
        """Let go of everything without ending the task: it may go on after a restart."""
        self._with.ticker.at(f"task:{self.task_id}", None, self.tick)
        await self._settle()
        self._stopped = True
        self._stored(*self._storing)
        self._cancel_jobs()
        if self._finishing is None:
            self._abort()
        stopping = StatusError(Code.UNAVAILABLE, "the server is stopping")
        for assignment in self.machine.all():
            for call in assignment.calls.values():
                if call.waiter is not None and not call.waiter.done():
                    call.waiter.set_exception(stopping)
                    # Nobody may wait for it.
                    call.waiter.exception()
        self._tell(None, self._stopping())

    def cancel(self, code: Code, message: str) -> None:
        """End the task without a result, if it has not ended."""
        now = self._with.clock.now()
        self._perform(self.machine.cancel(code, message, now), now)

    def tick(self, now: float) -> None:
        """Let time pass."""
        self._next_tick, stuck = math.inf, bool(self._with.writes.trouble())
        self._perform([*self.machine.tick(now, stuck=stuck), *self.protocol.tick(now)], now)
        self._schedule()

    def drop(self, id_: str, phase: str, code: Code, message: str) -> None:
        """Release a device that gave up."""
        now = self._with.clock.now()
        self._perform(self.protocol.gave_up(id_, phase, code, message, now), now)

    # Inside.

    def _folded(self, contributions: Sequence[str]) -> None:
        for id_ in contributions:
            size = self.machine.assignments[id_].release()
            if size >= LARGE:
                # Its sum is as large, beside the sum of all: a third would be in memory if the
                # next one came.
                self._storing[id_] = size
                self._with.memory.storing += size
            self._with.memory.release(size)

    def _stored(self, *contributions: str) -> None:
        """Note that these are stored, or never will be."""
        for id_ in contributions:
            self._with.memory.storing -= self._storing.pop(id_, 0)

    def _committed(self, *written: Any) -> None:
        if self._with.observed():
            machine, now = self.machine, self._with.clock.now()
            which = (machine.population, self.task_id, machine.name)
            self._with.notify(Committed(now, *which, *written))

    def _failed(self) -> None:
        """End the task: nothing must wait for ever for a machine that broke."""
        now = self._with.clock.now()
        message = "the server failed; its log says why"
        self._perform(self.machine.fail(Code.INTERNAL, message, now), now)

    def _schedule(self) -> None:
        """Be called in time; too early does no harm, so that most devices leave this as it is."""
        ticks = (self.machine.next_tick(), self.protocol.next_tick())
        when = min((tick for tick in ticks if tick is not None), default=None)
        if when is None or when < self._next_tick:
            self._next_tick = math.inf if when is None else when
            self._with.ticker.at(f"task:{self.task_id}", when, self.tick)

    def _dropped(self, effect: DroppedEffect, now: float) -> list[ShellEffect]:
        assignment, machine = effect.assignment, self.machine
        self._with.memory.release(assignment.release())
        self._stored(assignment.id)
        effects = self.protocol.left(effect, now, excused=self.excuses(assignment))
        who = (now, machine.population, assignment.session_id, self.task_id, machine.name)
        message = clean(effect.message)
        outcome = (effect.phase, effect.code, message, assignment.version)
        event: Event = Dropped(*who, *outcome, effect.reached)
        if assignment.late and effect.phase != "silent":
            event = Surplus(*who, message, effect.reached)
        self._with.notify(event)
        return effects

    def _worked(self, work: Work, future: Future[bytes]) -> None:
        now = self._with.clock.now()
        code, message = outcome_of(future)
        result = future.result() if code is Code.OK else StatusError(code, message)
        self._perform(self.protocol.worked(work.key, result, now), now)

    def _reported(self, future: Future[bytes]) -> None:
        now = self._with.clock.now()
        code, message = outcome_of(future)
        if code is Code.OK:
            self._result = future.result()
            if not isinstance(self._result, bytes):
                code, message = Code.INTERNAL, f"its result is {self._result!r:.200}, not bytes"
        self._perform(self.machine.reported(code, message, now), now)

    def _end(self, effect: EndEffect, now: float) -> None:
        if self._stopped:
            return  # whoever goes on with it ends it
        self._stored(*self._storing)
        if effect.code is not Code.OK:
            self._result = None
            self._abort()
        self.protocol.end()
        self._finishing = asyncio.get_running_loop().create_task(self._finish())

    def _stopping(self) -> StatusError:
        why = f"the server stopped before task {self.machine.name} had ended"
        return StatusError(Code.UNAVAILABLE, why)

    def _tell(self, result: bytes | None, error: StatusError | None) -> None:
        """Answer those who wait for the result."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done() and result is not None:
                waiter.set_result(result)
            elif not waiter.done() and error is not None:
                waiter.set_exception(error)

    async def _finish(self) -> None:
        status, result = await self._keeper.ended(self, self._result)
        self._ended, self._result = status, None
        self._tell(result, StatusError(*status.error) if status.error else None)
        code, message = status.error or (Code.OK, self.machine.story())
        now = self._with.clock.now()
        which = (status.population, status.task_id, status.name, status.contributed)
        self._with.notify(TaskClosed(now, *which, code, clean(message)))

    def _use(self, fold: Fold) -> None:
        """Accumulate in *fold* from now on."""
        self._cancel_jobs()
        self._fold = fold
        if isinstance(fold, DurableFold):
            fold.on_progress(self._folded, self._committed)

        def lost(why: str) -> None:
            if fold is self._fold and not self._stopped and self.machine.state not in FINAL:
                self._keeper.lost(self, why)

        def from_engine(why: str) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(lost, why)

        fold.on_loss(from_engine)

    def _report(self) -> None:
        """Report the aggregate, or draw its result if it has noise."""
        release, result_format = self.release, self.spec.result_format
        if release.has_noise:
            drawing = release.draw(self._fold, result_format)
            begin = asyncio.run_coroutine_threadsafe
            self._when_done(self._reported, begin, drawing, self._loop)
        else:
            self._when_done(self._reported, self._fold.report, result_format)

    def _run(self, work: Work) -> None:
        """Do a protocol's heavy work."""
        then = partial(self._worked, work)
        future = self._when_done(then, self._with.engine.run, work.function, work.arguments)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)

    def _abort(self) -> None:
        """Drop what was accumulated, and cancel the jobs."""
        self._cancel_jobs()
        try:
            self._fold.abort()
        except plugin_errors():
            logger.exception("the engine could not drop an aggregate")

    async def _settle(self) -> None:
        """Take nothing more; wait for what is being stored, but not for long.

        What cannot be stored now was answered to nobody.
        """
        if self._finishing is None and isinstance(self._fold, DurableFold):
            await self._last(self._loop.create_task(self._fold.flush()))
        if self._finishing is not None:  # the end may have come with what was flushed
            await self._last(self._finishing)

    async def _last(self, write: asyncio.Task[None]) -> None:
        await asyncio.wait([write], timeout=1.0 if self._with.writes.trouble() else _PATIENCE)
        if not write.done():
            write.cancel()
            logger.warning(
                "task %s is stopped although its last writes are not done; the next start judges "
                "it by what is stored",
                self.machine.name,
            )

    def _cancel_jobs(self) -> None:
        """Cancel the jobs whose outcomes nobody waits for any more."""
        for future in list(self._jobs):
            future.cancel()


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
