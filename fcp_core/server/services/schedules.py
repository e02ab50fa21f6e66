"""Tasks that are offered once in each period, by the owner of their population."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import Clock
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server.services.forecast import repetitions
from fcp_core.server.services.tasks import Tasks
from fcp_core.server.services.ticker import Ticker
from fcp_core.storage.contract import Storage, Transaction
from fcp_core.storage.leases import LeaseLostError
from fcp_core.storage.records import ScheduleRecord
from fcp_core.storage.shards import Fence, FenceMaker
from fcp_core.tasks.schedule import Schedule

logger = logging.getLogger("fcp.services")

#: After how many seconds is tried again what failed through no fault of the task.
AGAIN = 60.0
_PASSING = (Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN)


class Schedules:
    """The schedules of a server. Every method runs on the server's event loop.

    A period's task has a key that follows from the period, so it is offered once, however often
    that is tried; and a record says which period was the last, so that a clock that is set back
    offers nothing twice.

    :param fence: makes what checks, in the transaction that writes, that a population is this
        server's.
    """

    def __init__(
        self, tasks: Tasks, clock: Clock, ticker: Ticker, storage: Storage, fence: FenceMaker
    ) -> None:
        self._tasks = tasks
        self._clock = clock
        self._storage = storage
        self._fence = fence
        self._records: dict[str, ScheduleRecord] = {}
        #: When what failed is tried again, by id.
        self._again: dict[str, float] = {}
        self._offering: dict[str, asyncio.Task[None]] = {}
        #: Held while one is set or removed.
        self._changing = asyncio.Lock()
        self._changed = ticker.register("schedules", self)

    # For operators.

    async def set(self, spec: TaskSpec, schedule: Schedule) -> ScheduleRecord:
        """Offer a task now, and then once in each period; in place of what its name had before.

        :raises StatusError: as ``Tasks.submit``; then nothing is changed.
        """
        name, now = _id(spec.population, spec.name), self._clock.now()
        async with self._changing:
            begin = schedule.begin(now)
            record = ScheduleRecord(
                schedule_id=name,
                population=spec.population,
                name=spec.name,
                spec=spec.to_bytes(),
                plan=spec.plan,
                checkpoint=spec.checkpoint,
                every=schedule.every,
                starting=schedule.starting,
                created=now,
                last=begin,
                task_id=await self._tasks.submit(spec, key=schedule.key(name, begin)),
            )
            await self._storage.transact(partial(_put, record=record, fence=self._fence()))
            self._keep(record)
        return record

    async def remove(self, population: str, name: str) -> ScheduleRecord:
        """Offer a task no more; what was offered goes on. Return what there was.

        :raises StatusError: NOT_FOUND if it has no schedule.
        """
        async with self._changing:
            record = self.get(population, name)
            delete = partial(_delete, record=record, fence=self._fence())
            await self._storage.transact(delete)
            self._drop(record.schedule_id)
        return record

    def get(self, population: str, name: str) -> ScheduleRecord:
        """Return the schedule of a task.

        :raises StatusError: NOT_FOUND if it has none.
        """
        record = self._records.get(_id(population, name))
        if record is None:
            raise StatusError(
                Code.NOT_FOUND, f"the task {name!r} of {population!r} has no schedule here"
            )
        return record

    def list(self) -> Sequence[ScheduleRecord]:
        """Return all, by population and name."""
        return [self._records[name] for name in sorted(self._records)]

    async def repetitions(self, record: ScheduleRecord) -> int | None:
        """Return how often a task can be offered from now on; None: nothing is against any number.

        :raises StatusError: UNAVAILABLE if the storage does not answer.
        """
        try:
            spec = _spec(record)
            release = self._tasks.factory.release(spec, self._clock.now())
            return await repetitions(release, self._tasks.planned(spec.population), record.every)
        except StatusError as error:
            if error.code in _PASSING:
                raise
            return 0

    # For the other services.

    async def load(self, population: str | None = None) -> None:
        """Take up what is stored, of one population or of all; call it after their tasks."""
        which: Mapping[str, str] = {} if population is None else {"population": population}
        records = await self._storage.transact(lambda tx: [*tx.select(ScheduleRecord, **which)])
        for record in records:
            self._keep(record)

    async def leave(self, population: str) -> None:
        """Forget those of a population: another member has it, and offers the same once."""
        left = [each for each in self._records.values() if each.population == population]
        for record in left:
            self._drop(record.schedule_id)
        await self._end([record.schedule_id for record in left])

    async def stop(self) -> None:
        """Offer nothing any more."""
        self._records.clear()
        self._changed()
        await self._end([*self._offering])

    async def _end(self, names: Iterable[str]) -> None:
        """End what is being offered: it may wait for the population, and that for its end."""
        offering = [self._offering[name] for name in names if name in self._offering]
        for task in offering:
            task.cancel()
        await asyncio.gather(*offering, return_exceptions=True)

    def tick(self, now: float) -> None:
        """Offer the tasks of the periods that have begun."""
        for name, record in self._records.items():
            if self._due(record) <= now and name not in self._offering:
                offering = asyncio.get_running_loop().create_task(self._offer(record))
                self._offering[name] = offering
                offering.add_done_callback(partial(self._offered, name))

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        waiting = (
            self._due(record)
            for name, record in self._records.items()
            if name not in self._offering
        )
        return min(waiting, default=None)

    # Inside.

    def _due(self, record: ScheduleRecord) -> float:
        last = record.created - record.every if record.last is None else record.last
        return max(due_of(record, last), self._again.get(record.schedule_id, 0.0))

    async def _offer(self, record: ScheduleRecord) -> None:
        """Offer a period's task, and write down that it was."""
        name = record.schedule_id
        schedule = Schedule(record.every, record.starting)
        begin = schedule.begin(self._clock.now())
        task_id = problem = ""
        try:
            task_id = await self._tasks.submit(_spec(record), key=schedule.key(name, begin))
        except StatusError as error:
            if error.code in _PASSING:
                raise
            problem = error.message
            logger.warning("the schedule of %s: its task was refused: %s", record.name, problem)
        after = replace(record, last=begin, task_id=task_id, problem=problem)
        # Whoever sets or removes it meanwhile has the last word.
        async with self._changing:
            if self._records.get(name) is not record:
                return
            await self._storage.transact(partial(_put, record=after, fence=self._fence()))
            self._keep(after)

    def _offered(self, name: str, offering: asyncio.Task[None]) -> None:
        del self._offering[name]
        if not offering.cancelled():
            error = offering.exception()
            if isinstance(error, LeaseLostError):
                self._records.pop(name, None)  # another member goes on with it
            elif error is not None and name in self._records:
                self._again[name] = self._clock.now() + AGAIN
                logger.error("the schedule %s is tried again in %g s: %s", name, AGAIN, error)
        self._changed()

    def _keep(self, record: ScheduleRecord) -> None:
        self._records[record.schedule_id] = record
        self._again.pop(record.schedule_id, None)
        self._changed()

    def _drop(self, name: str) -> None:
        self._records.pop(name, None)
        self._again.pop(name, None)
        self._changed()


def due_of(record: ScheduleRecord, last: float) -> float:
    """Return when the period after the one that began at *last* has begun."""
    return Schedule(record.every, record.starting).next(last)


def _id(population: str, name: str) -> str:
    """Return the id of a schedule: of a population's tasks of one name, one is repeated."""
    return f"{population} {name}"


def _spec(record: ScheduleRecord) -> TaskSpec:
    names = {"plan": record.plan, "checkpoint": record.checkpoint, "slices": {}}
    return TaskSpec.from_bytes(record.spec, population=record.population, name=record.name, **names)


def _put(tx: Transaction, record: ScheduleRecord, fence: Fence) -> None:
    fence(tx, record.population)
    tx.put(record)


def _delete(tx: Transaction, record: ScheduleRecord, fence: Fence) -> None:
    fence(tx, record.population)
    tx.delete(ScheduleRecord, record.schedule_id)
