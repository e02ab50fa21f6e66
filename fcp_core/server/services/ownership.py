"""Takes populations up from the storage, and leaves them to other members."""

from __future__ import annotations

import asyncio

from fcp_core.rounds.assignment import Stage
from fcp_core.server.services.eligibility_tasks import EligibilityTasks
from fcp_core.server.services.policy_states import PolicyStates
from fcp_core.server.services.population import Population, Populations
from fcp_core.server.services.schedules import Schedules
from fcp_core.server.services.store import TaskStore
from fcp_core.server.services.task_runner import TaskRunner
from fcp_core.server.services.tasks import Tasks

#: How often is looked whether contributions are still on their way, in seconds.
LOOK = 0.02
#: The stages in which a contribution is here and nowhere else.
_ON_THE_WAY = (Stage.UPLOADING, Stage.UPLOADED, Stage.QUEUED, Stage.ACCUMULATING)


class Ownership:
    """What a server keeps of the populations that it owns, one by one."""

    def __init__(
        self,
        store: TaskStore,
        states: PolicyStates,
        populations: Populations,
        tasks: Tasks,
        eligibility_tasks: EligibilityTasks,
        schedules: Schedules,
    ) -> None:
        self._store = store
        self._states = states
        self._populations = populations
        self._tasks = tasks
        self._eligibility_tasks = eligibility_tasks
        self._schedules = schedules

    async def take(self, population: str) -> None:
        """Read what the storage holds of a population, and act for it.

        :raises StorageError: if the storage does not answer.
        :raises UsageError: if a task cannot go on as this server is configured, or a ledger is
            older than the results.
        """
        loaded = await self._store.load(population)
        await self._tasks.verify(loaded)
        self._states.load(loaded.policy_states)
        self._populations.add(population)
        await self._eligibility_tasks.load(population)
        await self._tasks.restore(loaded.tasks)
        await self._schedules.load(population)

    async def leave(self, population: str, *, saved: bool) -> None:
        """Stop to act for a population; *saved*: and write what is only in memory."""
        known = self._find(population)
        if saved and known is not None:
            known.save()
            await self._states.flush()
        await self._schedules.leave(population)
        await self._tasks.leave(population)
        self._eligibility_tasks.leave(population)
        self._populations.remove(population)

    async def settled(self, population: str, timeout: float) -> None:
        """Wait until no contribution is on its way, at most so many seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        known = self._find(population)
        while known is not None and any(map(_busy, known.open_tasks())) and loop.time() < end:
            await asyncio.sleep(LOOK)

    def _find(self, name: str) -> Population | None:
        return next((each for each in self._populations if each.name == name), None)


def _busy(task: TaskRunner) -> bool:
    # A protocol that cannot go on elsewhere is waited for from a device's first call on.
    also = () if task.protocol.resumable else (Stage.STARTED,)
    return any(one.state in _ON_THE_WAY or one.state in also for one in task.machine.all())
