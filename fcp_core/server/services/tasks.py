"""Tasks as programs and operators see them: submit, watch, wait, cancel, forget."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from fcp_core.errors import UsageError
from fcp_core.plugins.settings import retention_of
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.expiring import Expiring
from fcp_core.rounds.ledger import Planned
from fcp_core.rounds.tasks import TaskSpec, TaskStatus
from fcp_core.rounds.token_parts import TokenSource
from fcp_core.server.services.downloads import Downloads
from fcp_core.server.services.ledgers import read_ledgers
from fcp_core.server.services.population import Populations
from fcp_core.server.services.published import Published
from fcp_core.server.services.store import (
    Loaded,
    LoadedTask,
    TaskStore,
    new_record,
    status_of,
)
from fcp_core.server.services.task_end import store_end
from fcp_core.server.services.task_factory import Choices, TaskFactory
from fcp_core.server.services.task_parts import Surroundings, TaskParts, check_modes
from fcp_core.server.services.task_runner import TaskRunner
from fcp_core.storage.leases import LeaseLostError
from fcp_core.storage.records import TaskRecord

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins

logger = logging.getLogger("fcp.services")

#: Seconds after a task's end in which a call that is sent again gets the first one's answer. The
#: published client sends each up to four times within 30 s.
ANSWERS_KEPT = 600.0


class Tasks:
    """The tasks of a server. Every method runs on the server's event loop.

    :param secrets: makes ids that cannot be guessed.
    """

    def __init__(
        self,
        *,
        plugins: Plugins,
        secrets: TokenSource,
        store: TaskStore,
        populations: Populations,
        downloads: Downloads,
        surroundings: Surroundings,
    ) -> None:
        self._plugins = plugins
        self._clock = surroundings.clock
        self._secrets = secrets
        self._store = store
        self._populations = populations
        self._downloads = downloads
        self._with = surroundings
        self.factory = TaskFactory(plugins, surroundings.engine, secrets, store)
        self._records: dict[str, TaskRecord] = {}
        #: By the key that it was submitted with.
        self._by_key: dict[str, str] = {}
        #: By key, population and name: those that may be stored, although the storage said no.
        self._uncertain: dict[tuple[str | None, str, str], TaskRecord] = {}
        #: The tasks that have not ended.
        self._running: dict[str, TaskRunner] = {}
        #: By aggregation id; those that have ended stay for a while.
        self._by_aggregation: dict[str, TaskRunner] = {}
        #: Returns the task of an aggregation id; None if there is none, or it ended long ago. One
        #: that has just ended is there to give calls that are sent again the same answers.
        self.find: Callable[[str], TaskRunner | None] = self._by_aggregation.get
        self._ended: Expiring[None] = Expiring()
        #: Held by a submission with a key.
        self._submitting = asyncio.Lock()
        #: Tasks that have ended, until their retention is over; by aggregation id.
        self._kept: Expiring[str] = Expiring()
        self._kept_changed = surroundings.ticker.register("tasks", self)
        self._forgetting: set[asyncio.Task[None]] = set()
        self._last_created = 0.0

    # For programs and operators.

    async def submit(self, spec: TaskSpec, *, key: str | None = None) -> str:
        """Offer a task; return its id. It is stored, and open, when this returns.

        :param key: chosen by the caller; a task that was submitted with it before, and is not
            forgotten, is returned instead, however it stands.
        :raises StatusError: INVALID_ARGUMENT if the specification or what it asks for does not do,
            naming all that plugins find wrong; NOT_FOUND for an unknown population; ALREADY_EXISTS
            if the key is that of a task of another population or name; FAILED_PRECONDITION if
            another member owns the population, UNAVAILABLE if nobody does.
        """
        spec.check()
        await self._populations.expect(spec.population)
        if key is None:
            return await self._submit(spec, None)
        # One that is on its way counts too: the caller may have lost its connection and be back.
        async with self._submitting:
            record = self._records.get(self._by_key.get(key, ""))
            if record is None:
                return await self._submit(spec, key)
            if (record.population, record.name) != (spec.population, spec.name):
                raise StatusError(
                    Code.ALREADY_EXISTS,
                    f"the key {key!r} is that of task {record.name} of population "
                    f"{record.population}; use another for {spec.name}",
                )
            return record.task_id

    async def _submit(self, spec: TaskSpec, key: str | None) -> str:
        check_modes(spec, (task.spec for task in self._running.values()))
        if problems := self._plugins.check_task(spec):
            raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {' '.join(problems)}")
        which = (key, spec.population, spec.name)
        created = self._creation_time()
        record = self._uncertain.get(which) or new_record(spec, self._secrets, created, key)
        choices = self.factory.choose(spec)
        record, spec = await self.factory.resume(record, spec, choices)
        parts = self.factory.parts(record, spec, choices, self._clock.now())
        record = dataclasses.replace(record, durability=parts.machine.durability)
        try:
            await parts.release.check(self.planned(spec.population))
            spec = parts.release.stated(spec)
            published = await self.factory.publish(record, spec, choices.settings)
            await self._store.add(record, spec)
        except BaseException:
            parts.fold.abort()
            if key is not None:  # the next attempt is to be the same task
                self._uncertain[which] = record
            raise
        self._uncertain.pop(which, None)
        self._open(record, spec, choices, parts, published)
        return record.task_id

    async def status(self, task_id: str) -> TaskStatus:
        """Return a task's status.

        :raises StatusError: NOT_FOUND if there is no such task.
        """
        record = self._record(task_id)
        # One that ended lately still says why devices did not contribute.
        task = self._by_aggregation.get(record.aggregation_id)
        return status_of(record) if task is None else task.status()

    def ids(self, population: str | None = None, ended: bool | None = None) -> Sequence[str]:
        """Return the ids of tasks, oldest first: of a population, that have ended or not."""
        return [
            task_id
            for task_id, record in self._records.items()
            if population in (None, record.population)
            and ended in (None, task_id not in self._running)
        ]

    async def list(self, population: str | None = None) -> Sequence[TaskStatus]:
        """Return the status of all tasks, oldest first, or of one population's."""
        return [await self.status(task_id) for task_id in self.ids(population)]

    async def wait(self, task_id: str) -> bytes:
        """Return a task's result, a checkpoint, as soon as there is one.

        :raises StatusError: why there is none: DEADLINE_EXCEEDED, CANCELLED, what went wrong; or
            NOT_FOUND if there is no such task, UNAVAILABLE if the server stops first.
        """
        record = self._record(task_id)
        task = self._running.get(task_id)
        if task is not None:
            return await task.wait()
        if record.code:
            raise StatusError(Code(record.code), record.message)
        result = await self._store.result(task_id)
        if result is None:
            raise _no_task(task_id)
        return result

    async def cancel(self, task_id: str, reason: str = "it was cancelled") -> None:
        """End a task without a result; nothing happens if it has ended.

        :raises StatusError: NOT_FOUND if there is no such task.
        """
        self._record(task_id)
        task = self._running.get(task_id)
        if task is not None:
            task.cancel(Code.CANCELLED, reason)

    async def forget(self, task_id: str) -> None:
        """Delete a task that has ended, with its result.

        :raises StatusError: NOT_FOUND if there is no such task, FAILED_PRECONDITION if it goes on.
        """
        record = self._record(task_id)
        if task_id in self._running:
            raise StatusError(Code.FAILED_PRECONDITION, f"task {task_id} goes on; cancel it first")
        await self._store.forget(task_id)
        self._forget(record)

    # For the other services.

    def knows(self, aggregation_id: str) -> bool:
        """Whether there is a task of an aggregation id, ended or not."""
        return aggregation_id in self._by_aggregation or aggregation_id in self._kept

    def tick(self, now: float) -> None:
        """Forget the tasks that ended long enough ago."""
        for aggregation_id, _ in self._ended.pop_due(now):
            del self._by_aggregation[aggregation_id]
        for _, task_id in self._kept.pop_due(now):
            forgetting = asyncio.get_running_loop().create_task(self._forget_old(task_id))
            self._forgetting.add(forgetting)
            forgetting.add_done_callback(self._forgetting.discard)

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        ticks = (self._kept.next_expiry(), self._ended.next_expiry())
        return min((tick for tick in ticks if tick is not None), default=None)

    async def verify(self, loaded: Loaded) -> None:
        """Raise UsageError if what is stored of results and of ledgers does not fit together."""
        await read_ledgers(loaded, self._plugins.ledgers, self._clock.now(), self._with.notify)

    async def restore(self, tasks: Sequence[LoadedTask]) -> None:
        """Take up the tasks of an earlier run; those that go on have what was stored of them."""
        for loaded in tasks:
            record, spec = loaded.record, loaded.spec
            self._add(record)
            self._last_created = max(self._last_created, record.created)
            if spec is None:
                self._keep(record)
                if self._populations.open_ended:
                    self._populations.add(record.population)
                continue
            try:
                choices, now = self.factory.choose(spec), self._clock.now()
                parts = self.factory.parts(record, spec, choices, now, loaded.shards)
            except StatusError as error:
                why = error.message.rstrip(".")
                raise UsageError(
                    f"task {record.name} of an earlier run cannot go on: {why}. Mend the "
                    "configuration (what has contributions keeps its aggregators) or the storage."
                ) from error
            await parts.release.restored()
            self._populations.add(record.population)
            published = await self.factory.publish(record, spec, choices.settings)
            self._open(record, spec, choices, parts, published)

    async def stop(self) -> None:
        """Stop all tasks; they go on when the storage is used again."""
        await asyncio.gather(*(task.stop() for task in self._running.values()))
        await asyncio.gather(*self._forgetting)

    async def leave(self, population: str) -> None:
        """Stop the tasks of a population and forget them: another member goes on with them."""
        left = [each for each in self._records.values() if each.population == population]
        running = [self._running[each.task_id] for each in left if each.task_id in self._running]
        await asyncio.gather(*(task.stop() for task in running))
        for task in running:
            self._running.pop(task.task_id, None)
            self._downloads.remove(task.published.group)
        for record in left:
            self._by_aggregation.pop(record.aggregation_id, None)
            self._ended.pop(record.aggregation_id)
            self._forget(record)

    # Inside.

    def _record(self, task_id: str) -> TaskRecord:
        record = self._records.get(task_id)
        if record is None:
            raise _no_task(task_id)
        return record

    def _add(self, record: TaskRecord) -> None:
        self._records[record.task_id] = record
        if record.submission_key is not None:
            self._by_key[record.submission_key] = record.task_id

    def _forget(self, record: TaskRecord) -> None:
        self._records.pop(record.task_id, None)
        self._by_key.pop(record.submission_key or "", None)
        self._kept.pop(record.aggregation_id)
        self._kept_changed()

    def _keep(self, record: TaskRecord) -> None:
        """Keep a task that has ended until its retention is over."""
        ended = record.created if record.finished is None else record.finished
        retention = retention_of(self._plugins.config, record.population, record.name)
        self._kept.put(record.aggregation_id, record.task_id, ended + retention)
        self._kept_changed()

    async def _forget_old(self, task_id: str) -> None:
        try:
            await self.forget(task_id)
        except Exception:
            logger.exception("task %s could not be deleted", task_id)

    def planned(self, population: str) -> Sequence[Planned]:
        """Return what the open tasks of a population are to release."""
        tasks = self._running.values()
        return [task.release.planned for task in tasks if task.spec.population == population]

    def _creation_time(self) -> float:
        """Return the time, but no time twice: the order of tasks must survive a restart."""
        self._last_created = max(self._clock.now(), self._last_created + 1e-6)
        return self._last_created

    def _open(
        self,
        record: TaskRecord,
        spec: TaskSpec,
        choices: Choices,
        parts: TaskParts,
        published: Published,
    ) -> None:
        now = self._clock.now()
        population = self._populations.for_task(spec.population)
        task = TaskRunner(
            spec.slim(),
            record.aggregation_id,
            parts,
            published,
            choices.settings,
            self._with,
            population,
            self,
        )
        self._add(record)
        self._running[record.task_id] = task
        self._by_aggregation[record.aggregation_id] = task
        self._downloads.add(published)
        # Tasks share a policy only with equal options, which is what this key says.
        chain = [(name, dict(options)) for name, options in choices.chain]
        group = msgspec.json.encode(chain, enc_hook=str, order="sorted").decode()
        name, options = choices.chain[0]
        population.open(task, group, name, choices.policy, options, choices.eligibility)
        task.open(now)
        population.consider(now)

    # What tasks tell their keeper.

    def lost(self, task: TaskRunner, why: str) -> None:
        """Restart a task that has lost contributions from what is stored of it."""
        restarting = asyncio.get_running_loop().create_task(self._restart(task, why))
        self._forgetting.add(restarting)
        restarting.add_done_callback(self._forgetting.discard)

    async def _restart(self, task: TaskRunner, why: str) -> None:
        record = self._records[task.task_id]
        logger.error("task %s is restarted: %s", record.name, why)
        try:
            stored = await self._store.shards(task.task_id, task.streams)
            if task.machine.state.is_final:
                return
            now = self._clock.now()
            choices = self.factory.choose(task.spec)
            parts = self.factory.parts(record, task.spec, choices, now, stored)
        except StatusError as error:
            task.cancel(Code.INTERNAL, f"contributions were lost: {why}; {error.message}")
            return
        task.restart(parts, now)

    async def ended(
        self, task: TaskRunner, result: bytes | None
    ) -> tuple[TaskStatus, bytes | None]:
        """Store how a task ended, however long that takes, and take it away."""
        status = task.machine.status(notes=task.protocol.notes())
        self._downloads.remove(task.published.group)
        self._populations.get(status.population).close(task, self._clock.now())
        record = self._records[status.task_id]
        storage = self._plugins.config.get("storage")
        try:
            status, ended = await store_end(
                self._store, record, status, result, task.release, self._with, storage
            )
        except LeaseLostError:
            raise asyncio.CancelledError from None  # another member ends it
        self._records[status.task_id] = record = ended.record
        self._keep(record)
        task.published = task.published.without_files()
        self._ended.put(record.aggregation_id, None, self._clock.now() + ANSWERS_KEPT)
        self._kept_changed()
        del self._running[status.task_id]
        return status, ended.result


def _no_task(task_id: str) -> StatusError:
    return StatusError(Code.NOT_FOUND, f"there is no task {task_id!r} here")
