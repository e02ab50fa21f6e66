"""The eligibility tasks of populations: in storage, and ready for the next check-in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fcp_core.errors import UsageError
from fcp_core.plugins.settings import PopulationSettings
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.eligibility import EligibilityTask, PlanPolicy
from fcp_core.rounds.machine import Clock
from fcp_core.rounds.policies import EligibilityPolicy, OfferedTask
from fcp_core.rounds.tasks import POPULATION_PATTERN
from fcp_core.rounds.token_parts import TokenSource, mark_of
from fcp_core.server.services.downloads import Downloads
from fcp_core.server.services.population import Populations
from fcp_core.server.services.published import Published, publish_plan
from fcp_core.server.services.ticker import Ticker
from fcp_core.storage.contract import Storage, Transaction
from fcp_core.storage.records import EligibilityTaskRecord
from fcp_core.storage.shards import Fence, FenceMaker

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins


@dataclass(frozen=True)
class SetTask:
    """An eligibility task that a population has.

    :param created: when it was set, in seconds since 1970.
    """

    population: str
    task: EligibilityTask
    created: float


@dataclass(frozen=True)
class _InUse:
    """A task, ready for check-ins.

    :param policies: each with the names of the tasks that it is for, None: all.
    :param published: the plan, if there is one.
    """

    set: SetTask
    policies: Sequence[tuple[frozenset[str] | None, EligibilityPolicy]]
    published: Published | None

    def for_task(self, task: OfferedTask) -> list[EligibilityPolicy]:
        return [policy for names, policy in self.policies if names is None or task.name in names]


class EligibilityTasks:
    """The eligibility task of each population, stored and served.

    All of it runs on the event loop.

    :param fence: makes what checks, in the transaction that writes, that a population is this
        server's.
    """

    def __init__(
        self,
        *,
        plugins: Plugins,
        clock: Clock,
        ticker: Ticker,
        tokens: TokenSource,
        storage: Storage,
        fence: FenceMaker,
        populations: Populations,
        downloads: Downloads,
    ) -> None:
        self._plugins = plugins
        self._clock = clock
        self._ticker = ticker
        self._tokens = tokens
        self._storage = storage
        self._fence = fence
        self._populations = populations
        self._downloads = downloads
        self._configured: Sequence[EligibilityPolicy] = plugins.make_eligibility_policies()
        #: Those of populations that have a section of their own in the configuration.
        self._own: Mapping[str, Sequence[EligibilityPolicy]] = {
            name: plugins.for_population(name).make_eligibility_policies()
            for name in plugins.config.scopes("population")
        }
        self._in_use: dict[str, _InUse] = {}
        #: Whether any population has eligibility policies, but for those of its tasks.
        self.any = bool(self._configured) or any(self._own.values())
        #: Held while one is stored, so that what is stored last is what is in use.
        self._changing = asyncio.Lock()

    # For programs and operators.

    async def set(self, population: str, task: EligibilityTask) -> SetTask:
        """Give a population a task, in place of the one it has; it is stored when this returns.

        Who checks in from now on goes by it; who has checked in is not asked again.

        :raises StatusError: NOT_FOUND for an unknown population, unless tasks bring their own;
            INVALID_ARGUMENT if a policy is not installed or its options do not do.
        """
        if not POPULATION_PATTERN.fullmatch(population):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"population must match {POPULATION_PATTERN.pattern!r}, not {population!r}",
            )
        # Nothing is added for a task that is refused.
        await self._populations.expect(population)
        try:
            group = mark_of(population).hex() + self._tokens.secret()
            record = _record(SetTask(population, task, self._clock.now()), group)
            in_use = await self._make(record)
        except UsageError as error:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"eligibility task of {population}: {error}"
            ) from error
        async with self._changing:
            await self._storage.transact(partial(_put, record=record, fence=self._fence()))
            self._populations.add(population)
            self._use(population, in_use)
        return in_use.set

    async def remove(self, population: str) -> SetTask:
        """Remove a population's task; return it.

        :raises StatusError: NOT_FOUND if it has none.
        """
        async with self._changing:
            removed = self.get(population)
            await self._storage.transact(
                partial(_delete, population=population, fence=self._fence())
            )
            self._use(population, None)
        return removed

    def get(self, population: str) -> SetTask:
        """Return a population's task.

        :raises StatusError: NOT_FOUND if it has none.
        """
        in_use = self._in_use.get(population)
        if in_use is None:
            raise StatusError(
                Code.NOT_FOUND, f"the population {population!r} has no eligibility task"
            )
        return in_use.set

    def list(self) -> Sequence[SetTask]:
        """Return all tasks, by the name of the population."""
        return [self._in_use[population].set for population in sorted(self._in_use)]

    # For the other services.

    def configured(self, population: str) -> Sequence[EligibilityPolicy]:
        """Return the policies that the configuration chooses for a population."""
        return self._own.get(population, self._configured)

    def policies(
        self, population: str, task: OfferedTask, own: Sequence[EligibilityPolicy] | None
    ) -> Sequence[EligibilityPolicy]:
        """Return all policies of a task.

        :param own: its own, in place of those that the configuration chooses for its population;
            None: it has none.
        """
        chosen = self.configured(population) if own is None else own
        in_use = self._in_use.get(population)
        return chosen if in_use is None else [*chosen, *in_use.for_task(task)]

    def has(self, population: str) -> bool:
        """Whether a population has an eligibility task."""
        return population in self._in_use

    def plan(self, population: str) -> tuple[EligibilityTask, Published] | None:
        """Return a population's eligibility task and its plan as devices get it, if it has one."""
        in_use = self._in_use.get(population)
        if in_use is None or in_use.published is None:
            return None
        return in_use.set.task, in_use.published

    async def load(self, population: str | None = None) -> None:
        """Restore what an earlier run left in the storage, of one population or of all.

        :raises UsageError: if a policy of a task cannot be made any more.
        """
        records = await self._storage.transact(lambda tx: tuple(tx.select(EligibilityTaskRecord)))
        for record in records:
            if population not in (None, record.population):
                continue
            try:
                in_use = await self._make(record)
            except UsageError as error:
                raise UsageError(
                    f"the eligibility task of population {record.population}, of an earlier run, "
                    f"cannot be used: {error} Mend the configuration, or use another storage."
                ) from error
            self._use(record.population, in_use)
            if self._populations.open_ended:
                self._populations.add(record.population)

    def leave(self, population: str) -> None:
        """Forget the task of a population: another member has it."""
        in_use = self._in_use.pop(population, None)
        if in_use is not None and in_use.published is not None:
            self._downloads.remove(in_use.published.group)

    def _use(self, population: str, in_use: _InUse | None) -> None:
        before = self._in_use.pop(population, None)
        if in_use is not None:
            self.any = True
            self._in_use[population] = in_use
            if in_use.published is not None:
                self._downloads.add(in_use.published)
        if before is not None and before.published is not None:
            # A device that has checked in may still fetch it; a 404 would send it away for hours.
            group = before.published.group
            timeout = PopulationSettings.of(self._plugins.config, population).session_timeout
            self._ticker.at(
                f"eligibility:{group}",
                self._clock.now() + timeout,
                lambda now: self._downloads.remove(group),
            )

    async def _make(self, record: EligibilityTaskRecord) -> _InUse:
        """Make the policies of a task, and compress its plan.

        :raises UsageError: if a policy is not installed, or its options do not do.
        """
        found = SetTask(record.population, _task(record), record.created)
        task = found.task
        chosen = self._plugins.for_population(record.population)
        policies: list[tuple[frozenset[str] | None, EligibilityPolicy]] = []
        for choice in task.policies:
            policy = chosen.make_eligibility_policy(choice.policy, choice.options)
            policies.append((_names(choice.task_names), policy))
        published = None
        if task.plan:
            policies.append((_names(task.task_names), PlanPolicy(task)))
            settings = PopulationSettings.of(self._plugins.config, record.population)
            work = partial(
                publish_plan,
                record.group,
                task.plan,
                task.checkpoint,
                inline_below=settings.inline_resources_below,
            )
            published = await asyncio.get_running_loop().run_in_executor(None, work)
        return _InUse(found, policies, published)


def _names(names: Sequence[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _put(tx: Transaction, record: EligibilityTaskRecord, fence: Fence) -> None:
    fence(tx, record.population)
    tx.put(record)


def _delete(tx: Transaction, population: str, fence: Fence) -> None:
    fence(tx, population)
    tx.delete(EligibilityTaskRecord, population)


def _record(found: SetTask, group: str) -> EligibilityTaskRecord:
    return EligibilityTaskRecord(
        population=found.population,
        spec=found.task.to_bytes(),
        plan=found.task.plan,
        checkpoint=found.task.checkpoint,
        group=group,
        created=found.created,
    )


def _task(record: EligibilityTaskRecord) -> EligibilityTask:
    return EligibilityTask.from_bytes(record.spec, plan=record.plan, checkpoint=record.checkpoint)
