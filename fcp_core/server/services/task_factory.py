"""Makes what a task names: its policy, its protocol, its fold, its machine."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from fcp_core.aggregation.engine import Engine, Fold, FoldJob
from fcp_core.errors import UsageError
from fcp_core.plugins.settings import TaskSettings
from fcp_core.protocol import routes
from fcp_core.protocol.protos.aggregation_configuration_pb2 import Configuration
from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.policies import EligibilityPolicy, SelectionPolicy
from fcp_core.rounds.protocols import AggregationProtocol, ProtocolTask
from fcp_core.rounds.specification import is_wordless
from fcp_core.rounds.task import TaskMachine
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.rounds.tokens import TokenSource
from fcp_core.server.services.device_tokens import RETENTION
from fcp_core.server.services.protocol_host import ProtocolHost
from fcp_core.server.services.task_parts import TaskParts
from fcp_core.storage.records import TaskRecord

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

    def __init__(self, plugins: Plugins, engine: Engine, secrets: TokenSource) -> None:
        self._plugins = plugins
        self._engine = engine
        self._secrets = secrets

    def choose(self, spec: TaskSpec) -> Choices:
        """Make what the task names.

        :raises StatusError: INVALID_ARGUMENT if something of it cannot be made.
        """
        chosen = self._plugins.for_task(spec)
        # A task of an earlier run was stored when the operator may have said something else.
        if refusals := chosen.refusals():
            raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {' '.join(refusals)}")
        try:
            return Choices(
                policy=chosen.make_selection_policy(),
                chain=chosen.selection_chain(),
                eligibility=chosen.own_eligibility_policies(),
                settings=chosen.settings,
            )
        except UsageError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {error}") from error

    def parts(self, record: TaskRecord, spec: TaskSpec, choices: Choices, now: float) -> TaskParts:
        """Make a task's machines.

        :raises StatusError: INVALID_ARGUMENT if the aggregation cannot be done.
        """
        chosen = self._plugins.for_task(spec)
        machine = TaskMachine(
            task_id=record.task_id,
            population=record.population,
            name=record.name,
            goal_count=spec.goal_count,
            minimum_count=spec.minimum_count,
            over_selection=choices.settings.over_selection,
            max_at_work=choices.settings.max_at_work,
            created=record.created,
            deadline=record.created + choices.settings.deadline,
            assignment_timeout=choices.settings.assignment_timeout,
            # A token expires at a whole second.
            retention=RETENTION + 1.0,
            closing_timeout=choices.settings.closing_timeout,
            folded_by=_folded_by(chosen, spec),
            alike_failures=choices.settings.alike_failures,
            first_sign_timeout=choices.settings.first_sign_timeout,
            wordless=is_wordless(spec.plan),
        )
        try:
            protocol: AggregationProtocol = chosen.make_protocol()
        except UsageError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {error}") from error
        fold = self._open_fold(spec, chosen, choices.settings.max_kept_bytes)
        factory = chosen.protocol_factory()
        found = [route for name in factory.services for route in routes.of_service(name)]
        host = ProtocolHost(
            factory.name, protocol, machine, {r.method: _response_class(r) for r in found}
        )
        task = ProtocolTask(
            name=spec.name,
            population=spec.population,
            aggregation=spec.aggregation,
            goal_count=spec.goal_count,
            minimum_count=machine.minimum_count,
            deadline=machine.deadline,
            rng=random.Random(self._secrets.bytes(16)),
            secrets=self._secrets.bytes,
        )
        try:
            begun = host.start(task, now)
            table = {(route.service, route.method): route for route in found}
            return TaskParts(machine, host, fold, table, begun)
        except StatusError:
            fold.abort()
            raise

    def _open_fold(self, spec: TaskSpec, chosen: TaskChoices, max_kept_bytes: int) -> Fold:
        """Open a task's fold.

        :raises StatusError: as the engine does; INVALID_ARGUMENT if it or an aggregator fails.
        """
        job = FoldJob(
            configuration=spec.aggregation,
            aggregators=chosen.aggregator_choices(),
            options=chosen.aggregator_options(),
            max_kept_bytes=max_kept_bytes,
            goal_count=spec.goal_count,
        )
        try:
            return self._engine.open(job)
        except StatusError as error:
            if error.code is not Code.INTERNAL:
                raise
            message = error.message
        except Exception as error:
            logger.exception("the engine cannot take the task %s", spec.name)
            message = f"{_folded_by(chosen, spec)}: {type(error).__name__}: {error}"
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
