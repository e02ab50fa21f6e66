"""Which of a population's tasks this device may take: the policies that it evaluates itself."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fcp_core.client.eligibility_plan import EligibilityPlan
from fcp_core.client.history import History
from fcp_core.client.retry import seconds_of
from fcp_core.client.stores import ExampleStore
from fcp_core.errors import plugin_errors
from fcp_core.protocol.protos import federated_api_pb2, plan_pb2, population_eligibility_spec_pb2

_LOG = logging.getLogger(__name__)

_TaskInfo = population_eligibility_spec_pb2.PopulationEligibilitySpec.TaskInfo
MULTIPLE = _TaskInfo.TASK_ASSIGNMENT_MODE_MULTIPLE

#: The newest version of each policy that is understood here; others are unknown.
_VERSIONS = {
    "data_availability_policy": 2,
    "swor_policy": 1,
    "tf_custom_policy": 1,
    "min_sep_policy": 3,
}
#: The version of the task eligibility information that is sent.
_INFO_VERSION = 1


@dataclass(frozen=True)
class Eligibility:
    """What the device found.

    :param weights: by task name, 1.0 or 0.0 unless a plan gave others; None if there was nothing
        to evaluate.
    :param multiple_tasks: the tasks to ask for by name.
    :param may_start: whether the device asks for a single assignment.
    """

    weights: Mapping[str, float] | None
    multiple_tasks: tuple[str, ...]
    may_start: bool

    @property
    def enabled(self) -> bool:
        """Whether policies were evaluated, so that a result is reported."""
        return self.weights is not None

    def info(self) -> Any:
        """Return the ``TaskEligibilityInfo`` for a single assignment, or None.

        It carries every weight, zeros too, but those of the tasks asked for by name.
        """
        if self.weights is None:
            return None
        info = federated_api_pb2.TaskEligibilityInfo(version=_INFO_VERSION)
        for name, weight in self.weights.items():
            if name not in self.multiple_tasks:
                info.task_weights.add(task_name=name, weight=weight)
        return info


#: What a device does that was given no eligibility specification.
UNCONFIGURED = Eligibility(weights=None, multiple_tasks=(), may_start=True)


class EligibilityDecider:
    """Evaluates a population's eligibility specification against the device's own data.

    :param history: the device's contributions; without it, tasks whose policies ask for them are
        ineligible.
    :param now: the time in seconds since the epoch.
    :param plan: evaluates custom policies; without it, tasks with such are ineligible.
    """

    def __init__(
        self,
        population: str,
        store: ExampleStore,
        history: History | None,
        now: Callable[[], float],
        plan: EligibilityPlan | None = None,
    ) -> None:
        self._population = population
        self._store = store
        self._history = history
        self._now = now
        self._plan = plan
        self._given: Mapping[str, float] = {}

    def decide(self, spec: Any) -> Eligibility:
        """Return what the device is eligible for.

        :param spec: a ``PopulationEligibilitySpec``. One without policies counts as nothing to
            evaluate: every task may be asked for.
        """
        weights = None
        if spec.eligibility_policies:
            verdicts: dict[tuple[str, str], bool] = {}
            asked = self._ask_plan(spec)
            weights = {
                task.task_name: (
                    (self._given[task.task_name] if task.task_name in asked else 1.0)
                    if self._passes(task, spec, verdicts)
                    else 0.0
                )
                for task in spec.task_info
            }
        multiple = tuple(
            task.task_name
            for task in spec.task_info
            if task.task_assignment_mode == MULTIPLE
            and (weights is None or weights[task.task_name] > 0)
        )
        may_start = any(task.task_assignment_mode != MULTIPLE for task in spec.task_info)
        return Eligibility(weights, multiple, may_start)

    def _ask_plan(self, spec: Any) -> Mapping[str, Sequence[str]]:
        """Have the plan weigh the tasks that have policies for it; return these policies' names."""
        custom = {
            index: policy
            for index, policy in enumerate(spec.eligibility_policies)
            if policy.WhichOneof("policy_type") == "tf_custom_policy"
        }
        asked = {
            task.task_name: [custom[i].name for i in task.eligibility_policy_indices if i in custom]
            for task in spec.task_info
            if any(index in custom for index in task.eligibility_policy_indices)
        }
        if asked and self._plan is not None:
            self._given = self._plan.weights(asked, custom.values())
        return asked

    def _passes(self, task: Any, spec: Any, verdicts: dict[tuple[str, str], bool]) -> bool:
        for index in task.eligibility_policy_indices:
            if not 0 <= index < len(spec.eligibility_policies):
                return False
            policy = spec.eligibility_policies[index]
            # One policy may serve many tasks; what it says of the data is asked once.
            shared = policy.WhichOneof("policy_type") == "data_availability_policy"
            key = (policy.name, "" if shared else task.task_name)
            if key not in verdicts:
                verdicts[key] = self._evaluate(policy, task.task_name)
            if not verdicts[key]:
                return False
        return True

    def _evaluate(self, policy: Any, task_name: str) -> bool:
        kind = policy.WhichOneof("policy_type")
        if policy.min_version > _VERSIONS.get(kind, -1):
            return False
        if kind == "data_availability_policy":
            return self._has_data(policy.data_availability_policy)
        if kind == "tf_custom_policy":
            return self._given.get(task_name, 0.0) > 0
        if self._history is None:
            return False
        if kind == "swor_policy":
            return self._without_replacement(policy.swor_policy, task_name, self._history)
        return self._separated(policy.min_sep_policy, task_name, self._history)

    def _has_data(self, policy: Any) -> bool:
        try:
            if policy.use_example_query_result_format:
                query = plan_pb2.ExampleQuerySpec.ExampleQuery(example_selector=policy.selector)
                count = self._store.query(query).stats.output_rows_count
            else:
                examples = self._store.examples(policy.selector)
                count = sum(1 for _ in itertools.islice(examples, policy.min_example_count))
        except plugin_errors() as error:
            # A store is the application's own code; whatever it raises, there are no data.
            _LOG.warning(
                "no examples of %r for an eligibility policy: %s",
                policy.selector.collection_uri,
                error,
            )
            return False
        return bool(count >= policy.min_example_count)

    def _without_replacement(self, policy: Any, task_name: str, history: History) -> bool:
        period = seconds_of(policy.min_period)
        try:
            pattern = re.compile(policy.group_regex or re.escape(task_name))
        except re.error:
            return False
        last = history.last_time(self._population, pattern)
        # A history that is younger than the period cannot vouch for it.
        since = history.beginning() if last is None else last
        return self._now() - since >= period

    def _separated(self, policy: Any, task_name: str, history: History) -> bool:
        if self._now() - history.beginning() < seconds_of(policy.min_trustworthiness_period):
            return False
        last = history.last_separation_index(self._population, task_name)
        if last is None:
            return True
        return bool(policy.current_index - last - 1 >= policy.minimum_separation)
