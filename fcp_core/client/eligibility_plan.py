"""Eligibility evaluation tasks: a plan of the population says what the device is eligible for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from google.protobuf.message import DecodeError

from fcp_core.client.executors import PlanExecutor, PlanRun, SliceSource
from fcp_core.client.interruption import Interruption
from fcp_core.client.stores import ExampleStore
from fcp_core.protocol.protos import federated_api_pb2, plan_pb2, task_eligibility_context_pb2
from fcp_core.protocol.status import Code, StatusError

#: The collection whose one example is the ``TaskEligibilityContext``.
CONTEXT_URI = "internal:/eligibility_context"
#: The collection of the policies that the plan is to evaluate, ``EligibilityPolicyEvalSpec``.
POLICIES_URI = "internal:/eligibility_policies"


@runtime_checkable
class Weigher(Protocol):
    """What an executor has that can run eligibility plans."""

    def weigh(self, run: PlanRun) -> bytes:
        """Run the plan and return the serialized ``TaskEligibilityInfo``."""
        ...


@dataclass(frozen=True)
class EligibilityPlan:
    """The eligibility evaluation task of a population, as one device runs it.

    :param plan: a serialized ``ClientOnlyPlan`` with an eligibility router.
    """

    plan: bytes
    checkpoint: bytes
    executors: Mapping[str, PlanExecutor]
    store: ExampleStore
    slices: SliceSource
    interruption: Interruption

    def weights(
        self, tasks: Mapping[str, Sequence[str]] | None = None, policies: Iterable[Any] = ()
    ) -> dict[str, float]:
        """Return the weights that the plan gives, by task name.

        :param tasks: the names of the policies to evaluate, by task name.
        :param policies: these policies.
        :raises StatusError: as the executor does; UNIMPLEMENTED if no executor runs such plans,
            INVALID_ARGUMENT if the plan or what it gives is malformed.
        """
        try:
            plan = plan_pb2.ClientOnlyPlan.FromString(self.plan)
        except DecodeError as error:
            raise _bad(f"it is not a ClientOnlyPlan: {error}") from error
        if plan.phase.WhichOneof("io_router") != "federated_compute_eligibility":
            raise _bad("it has no federated_compute_eligibility router")
        executor = self.executors.get(plan.phase.WhichOneof("spec") or "")
        if not isinstance(executor, Weigher):
            raise StatusError(Code.UNIMPLEMENTED, "this device runs no eligibility plans")
        context = task_eligibility_context_pb2.TaskEligibilityContext()
        for name, policy_names in (tasks or {}).items():
            single = context.tasks.add(task_name=name)
            for policy_name in policy_names:
                single.policies.add(name=policy_name)
        internal = {
            CONTEXT_URI: [context.SerializeToString()],
            POLICIES_URI: [policy.SerializeToString() for policy in policies],
        }
        data = executor.weigh(
            PlanRun(
                plan, self.checkpoint, _Store(self.store, internal), self.slices, self.interruption
            )
        )
        try:
            info = federated_api_pb2.TaskEligibilityInfo.FromString(data)
        except DecodeError as error:
            raise _bad(f"it gives no TaskEligibilityInfo: {error}") from error
        return {weight.task_name: weight.weight for weight in info.task_weights}


class _Store(ExampleStore):
    """The device's store, with collections of the client's own before it."""

    def __init__(self, store: ExampleStore, internal: Mapping[str, Sequence[bytes]]) -> None:
        self._store = store
        self._internal = internal

    def examples(self, selector: plan_pb2.ExampleSelector) -> Iterable[bytes]:
        """Return a collection's examples."""
        if selector.collection_uri in self._internal:
            return self._internal[selector.collection_uri]
        return self._store.examples(selector)


def _bad(problem: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"eligibility plan: {problem}")
