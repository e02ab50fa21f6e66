"""What a device is told to evaluate before it may have a task."""

from __future__ import annotations

import gzip
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.protos import population_eligibility_spec_pb2 as eligibility_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.policies import CheckIn, EligibilityPolicy, OfferedTask
from fcp_core.rounds.tasks import AssignmentMode


@dataclass(frozen=True)
class Offer:
    """The open tasks of a population as one device is told of them.

    :param spec: what the device gets; None if it needs none.
    :param names: the names of the tasks in the offer.
    :param unconditional: those for which nothing has to be evaluated.
    """

    spec: eligibility_pb2.PopulationEligibilitySpec | None
    names: frozenset[str]
    unconditional: frozenset[str]


class EligibilityTask(EligibilityPolicy):
    """A plan that a population's devices run to weigh the tasks that they are offered.

    It reaches them as a custom policy of the tasks that it decides about, so that only devices
    that evaluate policies are offered these.

    :param plan: a serialized ``ClientOnlyPlan`` whose router is a
        ``FederatedComputeEligibilityIORouter``.
    :param checkpoint: what the plan reads; published clients fetch neither if one is empty.
    :param name: the policy's name, which the plan sees.
    :param arguments: the policy's arguments.
    :param task_names: the tasks it decides about; None: all.
    :raises StatusError: INVALID_ARGUMENT if the plan is no such plan, or the checkpoint is empty.
    """

    def __init__(
        self,
        plan: bytes,
        checkpoint: bytes,
        *,
        name: str = "eligibility_task",
        arguments: bytes = b"",
        task_names: Collection[str] | None = None,
    ) -> None:
        try:
            router = plan_pb2.ClientOnlyPlan.FromString(plan).phase.WhichOneof("io_router")
        except DecodeError as error:
            raise _bad(f"the plan is not a ClientOnlyPlan: {error}") from None
        if router != "federated_compute_eligibility":
            raise _bad(f"the plan's router must be federated_compute_eligibility, not {router}")
        if not checkpoint:
            raise _bad("the checkpoint must not be empty: devices would not run the plan")
        self.plan = plan
        self.checkpoint = checkpoint
        self._names = None if task_names is None else frozenset(task_names)
        self._policy = eligibility_pb2.EligibilityPolicyEvalSpec(name=name, min_version=1)
        self._policy.tf_custom_policy.arguments = arguments

    def policies(
        self, population: str, task: OfferedTask, now: float
    ) -> Sequence[eligibility_pb2.EligibilityPolicyEvalSpec]:
        """Return the custom policy, for the tasks that it decides about."""
        return (self._policy,) if self._names is None or task.name in self._names else ()


def _bad(problem: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"eligibility task: {problem}")


def make_offer(
    check_in: CheckIn,
    tasks: Iterable[OfferedTask],
    policies: Sequence[EligibilityPolicy],
    now: float,
) -> Offer:
    """Return what a device that checks in is offered.

    A device gets a PopulationEligibilitySpec if it can take several tasks, since it asks for them
    by the names in there, or if there is something to evaluate and it can. Otherwise it asks for
    a SINGLE task right away, and gets none that it would have to be evaluated for.

    :param tasks: the open tasks, oldest first; of several with one name the first counts.
    """
    spec = eligibility_pb2.PopulationEligibilitySpec()
    indices: dict[bytes, int] = {}
    names: set[str] = set()
    unconditional: set[str] = set()
    for task in tasks:
        multiple = task.assignment_mode is AssignmentMode.MULTIPLE
        if task.name in names or (multiple and not check_in.supports_multiple_task_assignment):
            continue
        wanted = [
            policy_spec
            for policy in policies
            for policy_spec in policy.policies(check_in.population, task, now)
        ]
        if wanted and not check_in.supports_native_eligibility:
            continue
        names.add(task.name)
        if not wanted:
            unconditional.add(task.name)
        info = spec.task_info.add(
            task_name=task.name, task_assignment_mode=task.assignment_mode.value
        )
        for policy_spec in wanted:
            index = _index_of(spec, indices, policy_spec)
            if index not in info.eligibility_policy_indices:
                info.eligibility_policy_indices.append(index)
    needed = spec.eligibility_policies or check_in.supports_multiple_task_assignment
    return Offer(spec if needed else None, frozenset(names), frozenset(unconditional))


def spec_resource(
    spec: eligibility_pb2.PopulationEligibilitySpec, supported_compression: Sequence[int]
) -> common.Resource:
    """Return the specification as an inline resource."""
    return inline_resource(spec.SerializeToString(), supported_compression)


def inline_resource(data: bytes, supported_compression: Sequence[int]) -> common.Resource:
    """Return data as an inline resource, compressed if the device can undo that."""
    inline = common.Resource.InlineResource(data=data)
    if common.RESOURCE_COMPRESSION_FORMAT_GZIP in supported_compression:
        inline.data = gzip.compress(data, mtime=0)
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
