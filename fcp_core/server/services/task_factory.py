"""Makes what a task names: its policy, its protocol, its fold, its machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from fcp_core.aggregation.binding import BoundIntrinsic
from fcp_core.aggregation.engine import Engine, Fold, FoldJob
from fcp_core.aggregation.fold import bind_job
from fcp_core.errors import UsageError, describe, plugin_errors
from fcp_core.plugins.settings import CLOSING_TIMEOUT, FIRST_SIGN, TaskSettings
from fcp_core.protocol import routes
from fcp_core.protocol.protos.aggregation_configuration_pb2 import Configuration
from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.policies import EligibilityPolicy, SelectionPolicy
from fcp_core.rounds.protocols import AggregationProtocol, ProtocolTask
from fcp_core.rounds.specification import is_wordless
from fcp_core.rounds.task import TaskMachine
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.rounds.text import clean
from fcp_core.rounds.token_parts import TokenSource
from fcp_core.rounds.tokens import RETENTION
from fcp_core.server.services.durable_fold import DurableFold
from fcp_core.server.services.protocol_calls import ProtocolHost
from fcp_core.server.services.published import Published, group_of, publish
from fcp_core.server.services.releases import TaskRelease, resume, resumed_options
from fcp_core.server.services.sealed import SealedStore, read_seals, unsealed
from fcp_core.server.services.store import TaskStore, new_record
from fcp_core.server.services.stored_whole import ShardStore
from fcp_core.server.services.streams import Helper
from fcp_core.server.services.task_parts import TaskParts
from fcp_core.storage.records import TaskRecord
from fcp_core.storage.shards import StoredShards

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins
    from fcp_core.plugins.task_choices import TaskChoices

logger = logging.getLogger("fcp.services")


@dataclass(frozen=True)
class Choices:
    """What a task's names and options lead to.

    :param chain: the policy and those that it wraps, outermost first, with their options.
    :param eligibility: its own eligibility policies; None: those of its population.
    """

    policy: SelectionPolicy
    chain: Sequence[tuple[str, Mapping[str, Any]]]
    eligibility: Sequence[EligibilityPolicy] | None
    settings: TaskSettings


class TaskFactory:
    """Makes the parts of tasks."""

    def __init__(
        self, plugins: Plugins, engine: Engine, secrets: TokenSource, store: TaskStore
    ) -> None:
        self._plugins = plugins
        self._engine = engine
        self._store = store
        self._secrets = secrets
        self._seals = read_seals(plugins.config.get("kept_keys_file"))

    def choose(self, spec: TaskSpec) -> Choices:
        """Make what the task names.

        :raises StatusError: INVALID_ARGUMENT if something of it cannot be made.
        """
        chosen = self._plugins.for_task(spec)
        # A task of an earlier run was stored when the operator may have said something else.
        if refusals := chosen.refusals(restored=True):
            raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {' '.join(refusals)}")
        for departure in chosen.departures():
            logger.warning(
                "task %s undoes what the configuration says: %s", spec.name, clean(departure)
            )
        try:
            return Choices(
                policy=chosen.make_selection_policy(),
                chain=chosen.selection_chain(),
                eligibility=chosen.own_eligibility_policies(),
                settings=chosen.settings,
            )
        except UsageError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {error}") from error

    def release(self, spec: TaskSpec, created: float) -> TaskRelease:
        """Make what books a task, as if it were submitted then; for a forecast.

        :raises StatusError: INVALID_ARGUMENT if something of it cannot be made.
        """
        record = new_record(spec, self._secrets, created, None)
        bound = self._bound(self._job(record, spec, self.choose(spec).settings))
        ledgers = self._plugins.ledgers
        return TaskRelease(spec, created, bound, self._store, ledgers)

    async def publish(
        self, record: TaskRecord, spec: TaskSpec, settings: TaskSettings
    ) -> Published:
        """Make what devices download of a task."""
        read = partial(self._store.file, record.task_id)
        work = partial(
            publish,
            group_of(record.aggregation_id),
            spec,
            inline_below=settings.inline_below,
            source=read if settings.from_storage else None,
            folder=self._store.folder,
        )
        return await asyncio.get_running_loop().run_in_executor(None, work)

    def parts(
        self,
        record: TaskRecord,
        spec: TaskSpec,
        choices: Choices,
        now: float,
        stored: StoredShards | None = None,
    ) -> TaskParts:
        """Make a task's machines.

        :param stored: what an earlier run stored of its aggregate.
        :raises StatusError: INVALID_ARGUMENT if the aggregation cannot be done.
        """
        chosen = self._plugins.for_task(spec)
        stored = unsealed(stored or StoredShards(), record.task_id, self._seals)
        job = self._job(record, spec, choices.settings)
        durable = bool(stored.contributions) or self._is_durable(spec, choices.settings, job)
        folded_by = _folded_by(chosen, spec)
        # If that is still to come the clock was set back: the task gets no more time than it had.
        began = min(record.created, now)
        machine = _machine(record, spec, choices.settings, folded_by, began, durable=durable)
        machine.query = spec.query
        try:
            protocol: AggregationProtocol = chosen.make_protocol()
        except UsageError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {error}") from error

        def open_durable() -> Fold:
            return self._durable(record, spec, job, machine, stored)

        open_fold = partial(self._engine.open, job)
        fold = _opened(open_durable if durable else open_fold, folded_by, spec)
        bound, ledgers = self._bound(job), self._plugins.ledgers
        release = TaskRelease(spec, record.created, bound, self._store, ledgers)
        factory = chosen.protocol_factory()
        found = [route for name in factory.services for route in routes.of_service(name)]
        host = ProtocolHost(
            factory.name, protocol, machine, {r.method: _response_class(r) for r in found}
        )
        try:
            begun = [*host.start(self._protocol_task(spec, machine), now)]
            if stored.contributions or stored.dropped or stored.surplus:
                begun += machine.restore(
                    stored.contributions, now, dropped=stored.dropped, surplus=stored.surplus
                )
            table = {(route.service, route.method): route for route in found}
            size = sum(spec.nbytes for each in bound for spec in each.intrinsic.inputs)
            return TaskParts(machine, host, fold, table, release, begun, size)
        except StatusError:
            fold.abort()
            raise

    def _durable(
        self,
        record: TaskRecord,
        spec: TaskSpec,
        job: FoldJob,
        machine: TaskMachine,
        stored: StoredShards,
    ) -> DurableFold:
        """Open the fold of a task whose contributions are stored before they are answered."""

        def counts() -> tuple[int, int]:
            return machine.dropped, machine.surplus

        # Not the specification itself, which would stay in memory with the model.
        which = (record.task_id, spec.name, spec.population)

        def begin(helper: Helper) -> str:
            return helper.begin_stream(*which, job)

        store: ShardStore = self._store
        begin_stream: Callable[[Helper], str] | None = begin
        if self._seals is not None and self._keeping(job):
            # Other members may have other keys.
            store, begin_stream = SealedStore(self._store, self._seals), None
        open_fold = partial(self._engine.open, job)
        what = (record.task_id, spec.name, open_fold, store, stored, counts)
        return DurableFold(*what, begin_stream=begin_stream, plain=store is self._store)

    async def resume(
        self, record: TaskRecord, spec: TaskSpec, choices: Choices
    ) -> tuple[TaskRecord, TaskSpec]:
        """Begin where the last round of the task's series ended, if it is of one.

        :raises StatusError: INVALID_ARGUMENT if it cannot.
        """
        bound = self._bound(self._job(record, spec, choices.settings))
        return await resume(record, spec, bound, self._store)

    def _job(self, record: TaskRecord, spec: TaskSpec, settings: TaskSettings) -> FoldJob:
        chosen = self._plugins.for_task(spec)
        return FoldJob(
            configuration=spec.aggregation,
            aggregators=chosen.aggregator_choices(),
            options=resumed_options(record, chosen.aggregator_options()),
            max_kept_bytes=settings.max_kept_bytes,
            goal_count=spec.goal_count,
        )

    def _bound(self, job: FoldJob) -> tuple[BoundIntrinsic, ...]:
        """Return a job's aggregators; none if it cannot be done, of which the engine says why."""
        try:
            return bind_job(self._plugins.aggregators, job)
        except StatusError:
            return ()

    def _protocol_task(self, spec: TaskSpec, machine: TaskMachine) -> ProtocolTask:
        return ProtocolTask(
            name=spec.name,
            population=spec.population,
            aggregation=spec.aggregation,
            goal_count=spec.goal_count,
            minimum_count=machine.minimum_count,
            deadline=machine.deadline,
            rng=random.Random(self._secrets.bytes(16)),
            secrets=self._secrets.bytes,
            over_selection=machine.over_selection,
            max_at_work=spec.max_at_work,
        )

    def _is_durable(self, spec: TaskSpec, settings: TaskSettings, job: FoldJob) -> bool:
        """Whether contributions are stored before they are answered.

        :raises StatusError: INVALID_ARGUMENT if the task asks for it and cannot have it.
        """
        if settings.durability != "contribution":
            return False
        why = ""
        if not self._store.durable:
            storage = self._plugins.config.get("storage")
            why = f"the storage {storage!r} forgets everything when the process ends"
        elif self._seals is None and (keeping := self._keeping(job)):
            why = (
                f"{keeping} keeps every contribution as it is, and those are not stored without "
                "kept_keys_file"
            )
        if not why:
            return True
        message = f"task {spec.name}: its durability can only be 'round': {why}"
        if spec.durability == "contribution":
            raise StatusError(Code.INVALID_ARGUMENT, message)
        if self._store.durable:
            logger.warning("%s", message)
        return False

    def _keeping(self, job: FoldJob) -> str:
        """Return the names of a job's aggregators that keep all contributions."""
        bound = self._bound(job)
        names = {item.factory.name for item in bound if item.factory.needs_all_inputs}
        return ", ".join(sorted(names))


def _machine(
    record: TaskRecord,
    spec: TaskSpec,
    settings: TaskSettings,
    folded_by: str,
    began: float,
    *,
    durable: bool,
) -> TaskMachine:
    return TaskMachine(
        task_id=record.task_id,
        population=record.population,
        name=record.name,
        goal_count=spec.goal_count,
        minimum_count=spec.minimum_count,
        over_selection=settings.over_selection,
        max_at_work=spec.max_at_work,
        created=record.created,
        deadline=began + settings.deadline,
        assignment_timeout=settings.assignment_timeout,
        # A token expires at a whole second.
        retention=RETENTION + 1.0,
        closing_timeout=CLOSING_TIMEOUT,
        folded_by=folded_by,
        durability="contribution" if durable else "round",
        alike_failures=settings.alike_failures,
        first_sign_timeout=settings.assignment_timeout * FIRST_SIGN,
        wordless=is_wordless(spec.plan),
    )


def _opened(open_fold: Callable[[], Fold], folded_by: str, spec: TaskSpec) -> Fold:
    """Open a task's fold.

    :raises StatusError: as the engine does; INVALID_ARGUMENT if it or an aggregator fails.
    """
    try:
        return open_fold()
    except StatusError as error:
        if error.code is not Code.INTERNAL:
            raise
        message = error.message
    except plugin_errors() as error:
        logger.exception("the engine cannot take the task %s", spec.name)
        message = f"{folded_by}: {describe(error)}"
    raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {message}")


def _folded_by(chosen: TaskChoices, spec: TaskSpec) -> str:
    """Return the names of the engine and of the aggregators of a task."""
    choices = chosen.aggregator_choices()
    uris: list[str] = []
    # The engine says what is wrong with a configuration that cannot be read.
    with contextlib.suppress(DecodeError):
        configuration = Configuration.FromString(spec.aggregation)
        uris += (config.intrinsic_uri for config in configuration.intrinsic_configs)
    names = ", ".join(dict.fromkeys(choices.get(uri, uri) for uri in uris))
    return f"the engine {chosen.config.get('engine')} (aggregators: {names})"


def _response_class(route: Route) -> type[Any]:
    """Return the class of what answers a call in the end."""
    made: type[Any] = route.operation_response_class or route.response_class
    return made
