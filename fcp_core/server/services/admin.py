"""The admin API of operators and remote programs, without HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fcp_core.admin import openapi
from fcp_core.admin.messages import (
    Cancellation,
    EligibilityList,
    EligibilitySettings,
    EligibilitySummary,
    ListQuery,
    MemberList,
    Population,
    PopulationList,
    ResultTable,
    ServerStatus,
    Submission,
    Task,
    TaskList,
    WaitQuery,
)
from fcp_core.admin.schedules import ScheduledTask, ScheduleList, ScheduleSummary
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.services.load import Load
from fcp_core.server.services.routing import alone
from fcp_core.tasks.schedule import Schedule
from fcp_core.tasks.sql_query import SqlQuery
from fcp_core.tasks.tables import Table

if TYPE_CHECKING:
    from fcp_core.rounds.machine import Clock
    from fcp_core.server.services.eligibility_tasks import EligibilityTasks
    from fcp_core.server.services.members import Members
    from fcp_core.server.services.population import Population as DevicePopulation
    from fcp_core.server.services.population import Populations
    from fcp_core.server.services.schedules import Schedules
    from fcp_core.server.services.tasks import Tasks
    from fcp_core.storage.records import ScheduleRecord


class Admin:
    """The calls of ``fcp_core.admin.api``, one method each. All of it runs on the event loop.

    :param url: returns where devices reach the server.
    :param storage: the name of the storage in use.
    :param members: None: this server shares its storage with no other.
    """

    def __init__(
        self,
        *,
        tasks: Tasks,
        eligibility_tasks: EligibilityTasks,
        schedules: Schedules,
        populations: Populations,
        clock: Clock,
        url: Callable[[], str],
        storage: str,
        members: Members | None = None,
    ) -> None:
        self._read_members = None if members is None else members.read
        self._tasks = tasks
        self._eligibility_tasks = eligibility_tasks
        self._schedules = schedules
        self._populations = populations
        self._clock = clock
        self._url = url
        self._storage = storage
        self._started = clock.now()
        self._released = asyncio.Event()

    def release(self) -> None:
        """Answer those that wait now, and from now on at once: the server stops."""
        self._released.set()

    async def submit(self, submission: Submission) -> Task:
        """Offer a task.

        :raises StatusError: as ``Tasks.submit``.
        """
        task_id = await self._tasks.submit(submission.to_spec(), key=submission.key)
        return await self.get_task(task_id)

    async def list_tasks(self, query: ListQuery) -> TaskList:
        """Return all tasks, or those of one population or state, or the newest of them."""
        ids = self._tasks.ids(query.population, query.ended)
        total, first = len(ids), -(query.newest or 0)
        if query.state is None:  # then there is no need to look at those that are left out
            ids = ids[first:]
        tasks = [Task.of(await self._tasks.status(task_id)) for task_id in ids]
        if query.state is not None:
            tasks = [task for task in tasks if task.state == query.state]
            total = len(tasks)
        return TaskList(tasks[first:], total)

    async def get_task(self, task_id: str) -> Task:
        """Return a task.

        :raises StatusError: NOT_FOUND if there is no such task.
        """
        return Task.of(await self._tasks.status(task_id))

    async def forget(self, task_id: str) -> Task:
        """Delete a task that has ended; return it as it was.

        :raises StatusError: NOT_FOUND if there is no such task, FAILED_PRECONDITION if it goes on.
        """
        task = await self.get_task(task_id)
        await self._tasks.forget(task_id)
        return task

    async def cancel(self, task_id: str, cancellation: Cancellation) -> Task:
        """End a task without a result; return it when that is stored.

        :raises StatusError: NOT_FOUND if there is no such task.
        """
        await self._tasks.cancel(task_id, cancellation.reason)
        return await self.wait(task_id, WaitQuery())

    async def wait(self, task_id: str, query: WaitQuery) -> Task:
        """Return a task once it has ended, the time is over, or the server stops.

        :raises StatusError: NOT_FOUND if there is no such task.
        """
        task = await self.get_task(task_id)
        if task.is_final:
            return task
        ended = asyncio.ensure_future(self._tasks.wait(task_id))
        released = asyncio.ensure_future(self._released.wait())
        try:
            await asyncio.wait(
                (ended, released), timeout=query.timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            released.cancel()
            ended.cancel()
            # Why a task has no result is in its status.
            await asyncio.gather(ended, released, return_exceptions=True)
        return await self.get_task(task_id)

    async def checkpoint(self, task_id: str) -> bytes:
        """Return a task's result.

        :raises StatusError: NOT_FOUND if there is no such task; FAILED_PRECONDITION if it goes on,
            or ended without one.
        """
        task = await self.get_task(task_id)
        if not task.is_final:
            raise StatusError(
                Code.FAILED_PRECONDITION, f"task {task_id} has not ended: wait for it first"
            )
        if task.error is not None:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"task {task_id} ended without a result: {task.error.status}: {task.error.message}",
            )
        return await self._tasks.wait(task_id)

    async def table(self, task_id: str) -> ResultTable:
        """Return a task's result as a table.

        :raises StatusError: as :meth:`checkpoint`; FAILED_PRECONDITION if it is no table.
        """
        return ResultTable.of(await self._table(task_id))

    async def csv(self, task_id: str) -> str:
        """Return a task's result as CSV.

        :raises StatusError: as :meth:`table`.
        """
        table = await self._table(task_id)
        return await asyncio.to_thread(table.to_csv)

    async def _table(self, task_id: str) -> Table:
        """Return a task's result as a table: the answer to its query, if it has one."""
        data = await self.checkpoint(task_id)
        status = await self._tasks.status(task_id)
        return await asyncio.to_thread(SqlQuery.shown, status.query, data, status.release)

    async def list_populations(self) -> PopulationList:
        """Return all populations."""
        now = self._clock.now()
        return PopulationList(
            [
                Population.of(
                    population.name,
                    Load(population, now),
                    population.at_work,
                    _silent(population),
                    population.lately,
                )
                for population in sorted(self._populations, key=lambda item: item.name)
            ]
        )

    async def set_eligibility_task(
        self, population: str, settings: EligibilitySettings
    ) -> EligibilitySummary:
        """Give a population an eligibility task, in place of the one it has.

        :raises StatusError: as ``EligibilityTasks.set``; INVALID_ARGUMENT if it is none.
        """
        found = await self._eligibility_tasks.set(population, settings.to_task())
        return EligibilitySummary.of(found.population, found.task, found.created)

    async def get_eligibility_task(self, population: str) -> EligibilitySettings:
        """Return a population's eligibility task.

        :raises StatusError: NOT_FOUND if it has none.
        """
        return EligibilitySettings.of(self._eligibility_tasks.get(population).task)

    async def list_eligibility_tasks(self) -> EligibilityList:
        """Return which populations have one."""
        return EligibilityList(
            [
                EligibilitySummary.of(found.population, found.task, found.created)
                for found in self._eligibility_tasks.list()
            ]
        )

    async def remove_eligibility_task(self, population: str) -> EligibilitySummary:
        """Remove a population's eligibility task; return it.

        :raises StatusError: NOT_FOUND if it has none.
        """
        found = await self._eligibility_tasks.remove(population)
        return EligibilitySummary.of(found.population, found.task, found.created)

    async def schedule(
        self, population: str, name: str, scheduled: ScheduledTask
    ) -> ScheduleSummary:
        """Offer a task now and once in each period, in place of what its name had before.

        :raises StatusError: as ``Tasks.submit``; INVALID_ARGUMENT if it is another task.
        """
        schedule = Schedule(scheduled.every, scheduled.starting)
        record = await self._schedules.set(scheduled.to_spec(population, name), schedule)
        return await self._summary(record)

    async def list_schedules(self) -> ScheduleList:
        """Return the tasks that are offered again and again.

        :raises StatusError: UNAVAILABLE if the storage does not answer.
        """
        return ScheduleList([await self._summary(record) for record in self._schedules.list()])

    async def unschedule(self, population: str, name: str) -> ScheduleSummary:
        """Offer a task no more; return its schedule.

        :raises StatusError: NOT_FOUND if it has none.
        """
        return await self._summary(await self._schedules.remove(population, name))

    async def _summary(self, record: ScheduleRecord) -> ScheduleSummary:
        last = record.created if record.last is None else record.last
        return ScheduleSummary(
            population=record.population,
            name=record.name,
            every=record.every,
            starting=record.starting,
            created=record.created,
            next=last + record.every,
            last=record.last,
            task_id=record.task_id,
            problem=record.problem,
            repetitions=await self._schedules.repetitions(record),
        )

    async def members(self) -> MemberList:
        """Return the members of the server and who owns which population.

        :raises StatusError: UNAVAILABLE if the storage does not answer.
        """
        if self._read_members is not None:
            return await self._read_members()
        names = [population.name for population in self._populations]
        return alone(self._url(), self._started, names)

    async def status(self) -> ServerStatus:
        """Return the version, the address and the number of tasks by state."""
        states = Counter(status.state.value for status in await self._tasks.list())
        return ServerStatus(
            version=openapi.version(),
            url=self._url(),
            started=self._started,
            storage=self._storage,
            tasks=dict(states),
        )

    async def openapi(self) -> dict[str, Any]:
        """Return the description of the API."""
        return openapi.describe()


def _silent(population: DevicePopulation) -> Counter[str]:
    """Return of how many devices of the open tasks there is no sign, by their clients' version."""
    found: Counter[str] = Counter()
    for task in population.open_tasks():
        for version, count in task.machine.awaited.silences.items():
            found[version] += count
    return found
