"""What a device has to evaluate before it may have a task."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fcp_core.errors import describe, plugin_errors
from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import population_eligibility_spec_pb2 as eligibility_pb2
from fcp_core.rounds.policies import CheckIn, EligibilityPolicy, OfferedTask
from fcp_core.rounds.specification import (
    PLAN_POLICY,
    AssignmentMode,
    EligibilityTask,
    PolicyChoice,
)

__all__ = [
    "NO_OFFER",
    "PLAN_POLICY",
    "EligibilityTask",
    "Offer",
    "PlanPolicy",
    "PolicyChoice",
    "make_offer",
    "spec_resource",
]


class PlanPolicy(EligibilityPolicy):
    """The custom policy that stands for a population's plan."""

    def __init__(self, task: EligibilityTask) -> None:
        self._spec = eligibility_pb2.EligibilityPolicyEvalSpec(name=task.name, min_version=1)
        self._spec.tf_custom_policy.arguments = task.arguments

    def policies(
        self, population: str, task: OfferedTask, now: float
    ) -> Sequence[eligibility_pb2.EligibilityPolicyEvalSpec]:
        """Return the custom policy."""
        return (self._spec,)


@dataclass(frozen=True)
class Offer:
    """The open tasks of a population as they are offered to one device.

    :param spec: what the device gets; None if it needs none.
    :param names: the names of the tasks in the offer.
    :param unconditional: those for which nothing has to be evaluated.
    :param plan_alone: whether the device gets the population's plan without a specification.
    :param faults: (task, fault) of the policies that failed; the device is not offered those tasks.
    """

    spec: eligibility_pb2.PopulationEligibilitySpec | None
    names: frozenset[str]
    unconditional: frozenset[str]
    plan_alone: bool = False
    faults: tuple[tuple[str, str], ...] = ()

    @property
    def asks_plan(self) -> bool:
        """Whether the device needs the population's plan to evaluate it."""
        policies = () if self.spec is None else self.spec.eligibility_policies
        return self.plan_alone or any(
            policy.WhichOneof("policy_type") == "tf_custom_policy" for policy in policies
        )


#: What a device is offered that may not take part.
NO_OFFER = Offer(None, frozenset(), frozenset())


def make_offer(
    check_in: CheckIn,
    tasks: Iterable[tuple[OfferedTask, Sequence[EligibilityPolicy]]],
    now: float,
    plan: EligibilityTask | None = None,
) -> Offer:
    """Return what a device that checks in is offered.

    A device gets a PopulationEligibilitySpec if it can take several tasks, since it asks for them
    by the names in there, or if there is something to evaluate and it can. A device that evaluates
    no policies gets none of the tasks that have any, unless the population's plan says all that
    they ask: then it gets the plan alone, and SINGLE tasks only, since nothing tells it the names
    of others.

    :param tasks: the open tasks with their policies, oldest first; of several with one name the
        first counts.
    :param plan: the population's, if it has a plan.
    """
    offered = []
    names: set[str] = set()
    free: set[str] = set()
    plan_alone = False
    faults: list[tuple[str, str]] = []
    native = check_in.supports_native_eligibility
    for task, policies in tasks:
        multiple = task.assignment_mode is AssignmentMode.MULTIPLE
        if task.name in names or (multiple and not check_in.supports_multiple_task_assignment):
            continue
        try:
            wanted = _wanted(policies, check_in.population, task, now)
        except plugin_errors() as error:  # A plugin may raise anything.
            faults.append((task.name, str(error)))
            continue
        if not wanted:
            free.add(task.name)
        elif not native:
            if multiple or plan is None or not _says_all(plan, wanted):
                continue
            plan_alone = True
        names.add(task.name)
        offered.append((task, wanted))
    if plan_alone:
        taken = {t.name for t, _ in offered if t.assignment_mode is AssignmentMode.SINGLE}
        return Offer(None, frozenset(taken), frozenset(free & taken), True, tuple(faults))
    given = None
    if check_in.supports_multiple_task_assignment or any(wanted for _, wanted in offered):
        given = _spec(offered)
    return Offer(given, frozenset(names), frozenset(free), faults=tuple(faults))


_Offered: TypeAlias = Sequence[
    tuple[OfferedTask, Sequence[eligibility_pb2.EligibilityPolicyEvalSpec]]
]


def _wanted(
    policies: Sequence[EligibilityPolicy], population: str, task: OfferedTask, now: float
) -> list[eligibility_pb2.EligibilityPolicyEvalSpec]:
    """Return what a device has to evaluate for a task.

    :raises ValueError: naming the policy that failed, and its fault.
    """
    wanted: list[eligibility_pb2.EligibilityPolicyEvalSpec] = []
    for policy in policies:
        try:
            for policy_spec in policy.policies(population, task, now):
                if not isinstance(policy_spec, eligibility_pb2.EligibilityPolicyEvalSpec):
                    raise TypeError(f"{policy_spec!r:.200} is no EligibilityPolicyEvalSpec")
                wanted.append(policy_spec)
        except plugin_errors() as error:
            raise ValueError(
                f"eligibility policy {type(policy).__name__} failed to say what to evaluate: "
                f"{describe(error)}"
            ) from error
    return wanted


def _says_all(
    plan: EligibilityTask, wanted: Iterable[eligibility_pb2.EligibilityPolicyEvalSpec]
) -> bool:
    """Whether the weights of a plan say all that these policies ask."""
    return all(
        spec.WhichOneof("policy_type") == "tf_custom_policy" or spec.name in plan.covers
        for spec in wanted
    )


def _spec(offered: _Offered) -> eligibility_pb2.PopulationEligibilitySpec:
    spec = eligibility_pb2.PopulationEligibilitySpec()
    indices: dict[bytes, int] = {}
    for task, wanted in offered:
        info = spec.task_info.add(
            task_name=task.name, task_assignment_mode=task.assignment_mode.number
        )
        for policy_spec in wanted:
            index = _index_of(spec, indices, policy_spec)
            if index not in info.eligibility_policy_indices:
                info.eligibility_policy_indices.append(index)
    return spec


def spec_resource(
    spec: eligibility_pb2.PopulationEligibilitySpec, supported_compression: Sequence[int]
) -> common.Resource:
    """Return the specification as an inline resource, compressed if the device can undo that."""
    inline = common.Resource.InlineResource(data=spec.SerializeToString())
    if common.RESOURCE_COMPRESSION_FORMAT_GZIP in supported_compression:
        inline.data = gzip.compress(inline.data, mtime=0)
        inline.compression_format = common.RESOURCE_COMPRESSION_FORMAT_GZIP
    return common.Resource(inline_resource=inline)


def _index_of(
    spec: eligibility_pb2.PopulationEligibilitySpec,
    indices: dict[bytes, int],
    policy: eligibility_pb2.EligibilityPolicyEvalSpec,
) -> int:
    """Return where a policy stands in the specification; equal ones stand there once."""
    key = policy.SerializeToString(deterministic=True)
    if key not in indices:
        indices[key] = len(spec.eligibility_policies)
        taken = {other.name for other in spec.eligibility_policies}
        added = spec.eligibility_policies.add()
        added.CopyFrom(policy)
        # Devices keep results by name, so two policies of one name would be taken for one.
        suffix = 1
        while added.name in taken:
            suffix += 1
            added.name = f"{policy.name}-{suffix}"
    return indices[key]
