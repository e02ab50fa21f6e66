"""Makes what a task names: its policy, its protocol, its fold, its machine."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcp_core.aggregation.engine import Engine, FoldJob
from fcp_core.errors import UsageError
from fcp_core.plugins.settings import TaskSettings
from fcp_core.protocol import routes
from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.policies import EligibilityPolicy, SelectionPolicy
from fcp_core.rounds.protocols import AggregationProtocol, ProtocolTask
from fcp_core.rounds.task import TaskMachine
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.rounds.tokens import TokenSource
from fcp_core.server.services.device_tokens import RETENTION
from fcp_core.server.services.protocol_host import ProtocolHost
from fcp_core.server.services.task_parts import TaskParts
from fcp_core.storage.records import TaskRecord

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins


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
        )
        try:
            protocol: AggregationProtocol = chosen.make_protocol()
            fold = self._engine.open(
                FoldJob(
                    configuration=spec.aggregation,
                    aggregators=chosen.aggregator_choices(),
                    options=chosen.aggregator_options(),
                    max_kept_bytes=choices.settings.max_kept_bytes,
                    goal_count=spec.goal_count,
                )
            )
        except UsageError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"task {spec.name}: {error}") from error
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


def _response_class(route: Route) -> type[Any]:
    """Return the class of what answers a call in the end."""
    made: type[Any] = route.operation_response_class or route.response_class
    return made
