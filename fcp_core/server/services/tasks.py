"""Tasks as programs and operators see them: submit, watch, wait, cancel, forget."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from fcp_core.aggregation.engine import Engine, Fold, FoldJob
from fcp_core.aggregation.protocol import AggregationProtocol
from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.clock import Clock
from fcp_core.rounds.expiring import Expiring
from fcp_core.rounds.policies import EligibilityPolicy, SelectionPolicy
from fcp_core.rounds.task_machine import TaskMachine
from fcp_core.rounds.tasks import TaskSpec, TaskState, TaskStatus
from fcp_core.rounds.tokens import TokenSource
from fcp_core.server.services.downloads import Downloads, Published, publish
from fcp_core.server.services.population import Populations
from fcp_core.server.services.round import Round
from fcp_core.server.services.round_parts import RoundParts
from fcp_core.server.services.settings import RETENTION
from fcp_core.server.services.store import TaskStore, encode_spec, slim, status_of
from fcp_core.storage.records import TaskRecord

if TYPE_CHECKING:
    from fcp_core.plugins.config import Config
    from fcp_core.plugins.manager import Plugins

logger = logging.getLogger("fcp.services")


@dataclasses.dataclass(frozen=True)
class _Choices:
    """What a task's names and options lead to; made before the task is offered."""

    protocol: AggregationProtocol
    fold: Fold
    policy: SelectionPolicy
    #: The policy and those that it wraps, outermost first, with their options.
    chain: Sequence[tuple[str, Mapping[str, Any]]]
    #: Its own eligibility policies; None: those of its population.
    eligibility: Sequence[EligibilityPolicy] | None
    over_selection: float
    max_at_work: int | None
    deadline: float
    assignment_timeout: float


class Tasks:
    """The tasks of a server. Every method runs on the server's event loop.

    :param make_parts: returns what rounds work with, given how to store their end and what to do
        when contributions are lost.
    :param on_kept: told that :meth:`next_tick` may have changed.
    """

    def __init__(
        self,
        *,
        plugins: Plugins,
        clock: Clock,
        tokens: TokenSource,
        engine: Engine,
        store: TaskStore,
        populations: Populations,
        downloads: Downloads,
        make_parts: Callable[[Callable[..., Any], Callable[..., Any]], RoundParts],
        on_kept: Callable[[], None],
    ) -> None:
        self._plugins = plugins
        self._clock = clock
        self._tokens = tokens
        self._engine = engine
        self._store = store
        self._populations = populations
        self._downloads = downloads
        self._parts = make_parts(self._ended, self._begin_anew)
        self._on_kept = on_kept
        self._records: dict[str, TaskRecord] = {}
        #: By the key that it was submitted with.
        self._by_key: dict[str, str] = {}
        self._rounds: dict[str, Round] = {}
        #: Held by a submission with a key.
        self._submitting = asyncio.Lock()
        self._by_aggregation: dict[str, Round] = {}
        #: Aggregations that have ended, as long as a late device may name them.
        self._past_aggregations: set[str] = set()
        self._forgotten: Expiring[None] = Expiring()
        #: Tasks that have ended, until their retention is over.
        self._kept: Expiring[None] = Expiring()
        self._forgetting: set[asyncio.Task[None]] = set()
        self._last_created = 0.0

    # For programs and operators.

    async def submit(self, spec: TaskSpec, *, key: str | None = None) -> str:
        """Offer a task; return its id. It is stored, and open, when this returns.

        :param key: chosen by the caller; a task that was submitted with it before, and is not
            forgotten, is returned instead, however it stands.
        :raises StatusError: INVALID_ARGUMENT if the specification or what it asks for does not do,
            naming all that plugins find wrong; NOT_FOUND for an unknown population; ALREADY_EXISTS
            if the key is that of a task of another population or name.
        """
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
        spec.check()
        self._check_modes(spec)
        if not self._populations.open_ended:
            self._populations.get(spec.population)
        problems = self._plugins.check_task(spec)
        if problems:
            raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {' '.join(problems)}")
        task_id = self._tokens.uuid()
        record = TaskRecord(
            task_id=task_id,
            population=spec.population,
            name=spec.name,
            state=TaskState.OPEN.value,
            aggregation_id=self._tokens.uuid(),
            spec=encode_spec(spec),
            created=self._creation_time(),
            submission_key=key,
        )
        choices = self._choose(spec)
        try:
            published = await self._publish(task_id, spec)
            await self._store.add(record, spec)
        except BaseException:
            choices.fold.abort()
            raise
        self._open(record, spec, choices, published)
        return task_id

    async def status(self, task_id: str) -> TaskStatus:
        """Return a task's status.

        :raises StatusError: NOT_FOUND if there is no such task.
        """
        record = self._record(task_id)
        round_ = self._rounds.get(task_id)
        return status_of(record) if round_ is None else round_.status()

    async def list(self, population: str | None = None) -> Sequence[TaskStatus]:
        """Return the status of all tasks, oldest first, or of one population's."""
        return [
            await self.status(task_id)
            for task_id, record in tuple(self._records.items())
            if population in (None, record.population)
        ]

    async def wait(self, task_id: str) -> bytes:
        """Return a task's result, a checkpoint, as soon as there is one.

        :raises StatusError: why there is none: DEADLINE_EXCEEDED, CANCELLED, what went wrong; or
            NOT_FOUND if there is no such task, UNAVAILABLE if the server stops first.
        """
        record = self._record(task_id)
        round_ = self._rounds.get(task_id)
        if round_ is not None:
            return await round_.wait()
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
        round_ = self._rounds.get(task_id)
        if round_ is not None:
            round_.cancel(Code.CANCELLED, reason)

    async def forget(self, task_id: str) -> None:
        """Delete a task that has ended, with its result.

        :raises StatusError: NOT_FOUND if there is no such task, FAILED_PRECONDITION if it goes on.
        """
        record = self._record(task_id)
        if task_id in self._rounds:
            raise StatusError(
                Code.FAILED_PRECONDITION, f"task {task_id} has not ended; cancel it first"
            )
        await self._store.forget(task_id)
        self._records.pop(task_id, None)
        self._by_key.pop(record.submission_key or "", None)
        self._kept.pop(task_id)
        # A late device is still answered ABORTED.
        late = self._config_of(record).get("assignment_timeout") + RETENTION
        self.remember(record.aggregation_id, self._clock.now() + late)
        self._on_kept()

    # For the other services.

    def round_of(self, aggregation_id: str) -> Round | None:
        """Return the round of an aggregation id; None if it has ended.

        :raises StatusError: NOT_FOUND if this server never had it.
        """
        round_ = self._by_aggregation.get(aggregation_id)
        past = aggregation_id in self._past_aggregations or aggregation_id in self._forgotten
        if round_ is None and not past:
            raise StatusError(
                Code.NOT_FOUND, f"this server never had an aggregation {aggregation_id!r}"
            )
        return round_

    def remember(self, aggregation_id: str, expires: float) -> None:
        """Know an aggregation, of a task that is known no more, until *expires*."""
        self._past_aggregations.discard(aggregation_id)
        self._forgotten.put(aggregation_id, None, expires)

    def tick(self, now: float) -> None:
        """Forget the tasks that ended long enough ago."""
        self._forgotten.pop_due(now)
        for task_id, _ in self._kept.pop_due(now):
            forgetting = asyncio.get_running_loop().create_task(self._forget_old(task_id))
            self._forgetting.add(forgetting)
            forgetting.add_done_callback(self._forgetting.discard)

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        ticks = (self._forgotten.next_expiry(), self._kept.next_expiry())
        return min((tick for tick in ticks if tick is not None), default=None)

    async def restore(self, tasks: Sequence[tuple[TaskRecord, TaskSpec | None]]) -> None:
        """Take up the tasks of an earlier run; the rounds of those that go on begin anew."""
        for record, spec in tasks:
            self._add(record)
            self._last_created = max(self._last_created, record.created)
            if spec is None:
                self._keep(record)
                if self._populations.open_ended:
                    self._populations.add(record.population)
                continue
            try:
                choices = self._choose(spec)
            except StatusError as error:
                raise UsageError(
                    f"task {record.name} of an earlier run cannot go on: {error.message}. Mend the "
                    "configuration, or use another storage."
                ) from error
            self._populations.add(record.population)
            self._open(record, spec, choices, await self._publish(record.task_id, spec))

    async def stop(self) -> None:
        """Let go of all rounds; their tasks go on when the storage is used again."""
        for round_ in [*self._rounds.values()]:
            await round_.stop()
        await asyncio.gather(*self._forgetting)

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

    def _config_of(self, record: TaskRecord) -> Config:
        return self._plugins.config.scoped(record.population, record.name)

    def _keep(self, record: TaskRecord) -> None:
        """Keep a task that has ended until its retention is over."""
        self._past_aggregations.add(record.aggregation_id)
        ended = record.created if record.finished is None else record.finished
        self._kept.put(record.task_id, None, ended + self._config_of(record).get("task_retention"))
        self._on_kept()

    async def _forget_old(self, task_id: str) -> None:
        try:
            await self.forget(task_id)
        except Exception:
            logger.exception("task %s could not be deleted", task_id)

    def _creation_time(self) -> float:
        """Return the time, but no time twice: the order of tasks must survive a restart."""
        self._last_created = max(self._clock.now(), self._last_created + 1e-6)
        return self._last_created

    def _check_modes(self, spec: TaskSpec) -> None:
        """Refuse a second mode for a name that is open: devices ask for a name in one way."""
        for round_ in self._rounds.values():
            other = round_.spec
            if (other.population, other.name) == (spec.population, spec.name) and (
                other.assignment_mode is not spec.assignment_mode
            ):
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"task {spec.name} is open with assignment mode {other.assignment_mode.name}; "
                    f"another of that name cannot be {spec.assignment_mode.name}",
                )

    def _choose(self, spec: TaskSpec) -> _Choices:
        """Make what the task names.

        :raises StatusError: INVALID_ARGUMENT if something of it cannot be made.
        """
        chosen = self._plugins.for_task(spec)
        try:
            return _Choices(
                protocol=chosen.make_protocol(),
                policy=chosen.make_selection_policy(),
                chain=chosen.selection_chain(),
                eligibility=chosen.own_eligibility_policies(),
                over_selection=chosen.over_selection,
                max_at_work=chosen.max_at_work,
                deadline=chosen.deadline,
                assignment_timeout=chosen.config.get("assignment_timeout"),
                fold=self._engine.open(
                    FoldJob(
                        configuration=spec.aggregation,
                        aggregators=chosen.aggregator_choices(),
                        options=chosen.aggregator_options(),
                    )
                ),
            )
        except UsageError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {error}") from error

    async def _publish(self, task_id: str, spec: TaskSpec) -> Published:
        chosen = self._plugins.for_task(spec)
        stored = chosen.config.get("resources_from") == "storage"
        work = functools.partial(
            publish,
            self._tokens.secret(),
            spec,
            inline_below=chosen.inline_below,
            source=functools.partial(self._store.file, task_id) if stored else None,
        )
        return await asyncio.get_running_loop().run_in_executor(None, work)

    def _open(
        self, record: TaskRecord, spec: TaskSpec, choices: _Choices, published: Published
    ) -> None:
        machine = _machine(record, spec, choices)
        round_ = Round(
            slim(spec),
            record.aggregation_id,
            machine,
            choices.protocol,
            choices.fold,
            published,
            choices.assignment_timeout,
            self._parts,
        )
        self._add(record)
        self._rounds[record.task_id] = round_
        self._by_aggregation[record.aggregation_id] = round_
        self._downloads.add(published)
        population = self._populations.for_task(spec.population)
        # Rounds share a policy only with equal options, which is what this key says.
        group = msgspec.json.encode(
            [(name, dict(options)) for name, options in choices.chain],
            enc_hook=str,
            order="sorted",
        ).decode()
        name, options = choices.chain[0]
        population.open(
            round_, group, name, choices.policy, options, eligibility=choices.eligibility
        )
        now = self._clock.now()
        round_.open(now)
        population.consider(now)

    def _begin_anew(self, round_: Round, why: str) -> None:
        """Have a round begin anew that has lost contributions."""
        now = self._clock.now()
        record = self._records[round_.task_id]
        logger.error("the round of task %s begins anew: %s", record.name, why)
        try:
            choices = self._choose(round_.spec)
        except StatusError as error:
            round_.cancel(Code.INTERNAL, f"contributions were lost: {why}; {error.message}")
            return
        machine = _machine(record, round_.spec, choices)
        round_.begin_anew(machine, choices.protocol, choices.fold, now)

    async def _ended(self, round_: Round, result: bytes | None) -> TaskStatus:
        """Store how a round ended and take it away."""
        status = round_.machine.status()
        self._downloads.remove(round_.published.group)
        self._populations.get(status.population).close(round_, self._clock.now())
        record = _ended_record(self._records[status.task_id], status)
        try:
            await self._store.end(record, result)
        except Exception as error:
            logger.exception("the end of task %s could not be stored", status.name)
            message = f"the end of task {status.name} could not be stored: {error}"
            failed = dataclasses.replace(
                status, state=TaskState.FAILED, error=(Code.INTERNAL, message)
            )
            record = _ended_record(record, failed)
            status = failed
        self._records[status.task_id] = record
        self._keep(record)
        del self._by_aggregation[record.aggregation_id]
        del self._rounds[status.task_id]
        return status


def _machine(record: TaskRecord, spec: TaskSpec, choices: _Choices) -> TaskMachine:
    return TaskMachine(
        task_id=record.task_id,
        population=record.population,
        name=record.name,
        goal_count=spec.goal_count,
        minimum_count=spec.minimum_count,
        over_selection=choices.over_selection,
        max_at_work=choices.max_at_work,
        created=record.created,
        deadline=record.created + choices.deadline,
        assignment_timeout=choices.assignment_timeout,
    )


def _ended_record(record: TaskRecord, status: TaskStatus) -> TaskRecord:
    code, message = status.error or (Code.OK, "")
    return dataclasses.replace(
        record,
        state=status.state.value,
        assigned=status.assigned,
        contributed=status.contributed,
        dropped=status.dropped,
        finished=status.finished,
        code=int(code),
        message=message,
    )


def _no_task(task_id: str) -> StatusError:
    return StatusError(Code.NOT_FOUND, f"there is no task {task_id!r} here")
