"""What a task is: its specification, its states and the counters that a watcher sees."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeAlias, get_args

from google.protobuf.message import DecodeError

from fcp_core.aggregation.engine import CheckpointFormat
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError

#: Population and task names (the reference platform's rule).
NAME_PATTERN = re.compile(r"\w+(/\w+)*")

#: Where a device finds a task's plan and checkpoint: in the assignment, or at an address.
ResourceForm: TypeAlias = Literal["inline", "uri"]


class AssignmentMode(Enum):
    """How a device may take a task (``PopulationEligibilitySpec.TaskInfo.TaskAssignmentMode``)."""

    SINGLE = 1
    MULTIPLE = 2


class TaskState(Enum):
    """Where a task stands. The last three are final."""

    OPEN = "open"
    CLOSING = "closing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing can change any more."""
        return self in (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)


@dataclass(frozen=True)
class TaskSpec:
    """One task as it is offered to a population: one round of one computation.

    :param population: the population it is offered to.
    :param name: the task name that devices see; several open tasks may share one.
    :param plan: a serialized ``ClientOnlyPlan``.
    :param checkpoint: the initial checkpoint; empty if nothing is broadcast.
    :param aggregation: a serialized ``tensorflow_federated.aggregation.Configuration``.
    :param goal_count: how many contributions complete the task.
    :param minimum_count: how many are enough when the deadline comes (default: the goal).
    :param assignment_mode: SINGLE tasks are handed out one a session, MULTIPLE ones together.
    :param deadline: seconds until the task ends by itself; None: the server's default.
    :param over_selection: how many devices may be assigned at a time, as a multiple of the
        contributions still missing; at least 1; None: the server's default.
    :param max_at_work: how many devices may be assigned at a time in any case, at least 1; None:
        the server's default.
    :param resources: ``inline``: the plan and the checkpoint lie in the assignment, each if it is
        no larger than the server allows; ``uri``: devices fetch them; None: the server's default.
    :param slices: for federated select, ``served_at_id`` -> key -> checkpoint.
    :param result_format: the checkpoint format of the result.
    :param protocol: the aggregation protocol, by name; None: the server's default.
    :param selection: the selection policy, by name; None: the server's default.
    :param eligibility: eligibility policies, by name, on top of those that the configuration
        chooses.
    :param aggregators: which aggregator serves which intrinsic URI, by name, beyond the defaults.
    :param options: options for the policy, protocol and aggregators, by their names.
    """

    population: str
    name: str
    plan: bytes
    aggregation: bytes
    goal_count: int
    checkpoint: bytes = b""
    minimum_count: int | None = None
    assignment_mode: AssignmentMode = AssignmentMode.SINGLE
    deadline: float | None = None
    over_selection: float | None = None
    max_at_work: int | None = None
    resources: ResourceForm | None = None
    slices: Mapping[str, Mapping[int, bytes]] = field(default_factory=dict)
    result_format: CheckpointFormat = "tf_v1"
    protocol: str | None = None
    selection: str | None = None
    eligibility: Sequence[str] = ()
    aggregators: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse a specification that no server could run.

        :raises StatusError: INVALID_ARGUMENT, naming the field and what it must be.
        """
        for label, name in (("population", self.population), ("name", self.name)):
            if not NAME_PATTERN.fullmatch(name):
                raise _bad(f"{label} must match {NAME_PATTERN.pattern!r}, not {name!r}")
        if self.goal_count < 1:
            raise _bad(f"goal_count must be at least 1, not {self.goal_count}")
        if self.minimum_count is not None and not 1 <= self.minimum_count <= self.goal_count:
            raise _bad(
                f"minimum_count must be between 1 and goal_count ({self.goal_count}), "
                f"not {self.minimum_count}"
            )
        if self.over_selection is not None and not self.over_selection >= 1:
            raise _bad(f"over_selection must be at least 1, not {self.over_selection}")
        if self.max_at_work is not None and self.max_at_work < 1:
            raise _bad(f"max_at_work must be at least 1, not {self.max_at_work}")
        if self.resources not in (None, *get_args(ResourceForm)):
            raise _bad(f"resources must be 'inline' or 'uri', not {self.resources!r}")
        if self.deadline is not None and not self.deadline > 0:
            raise _bad(f"deadline must be a positive number of seconds, not {self.deadline}")
        if _has_privacy_ids(self.plan):
            raise _bad(
                "the plan has a privacy_id_config, so a device would bring one contribution for "
                "each privacy id; here it brings one for each assignment. Leave it out"
            )


@dataclass(frozen=True)
class TaskStatus:
    """A task as a watcher sees it.

    :param contributed: contributions that are in the aggregate.
    :param pending: devices that hold an assignment and have not answered yet.
    :param dropped: devices that were assigned and failed, aborted or timed out.
    :param error: why it failed, with its code; None unless it failed or was cancelled.
    """

    task_id: str
    population: str
    name: str
    state: TaskState
    goal_count: int
    assigned: int = 0
    contributed: int = 0
    pending: int = 0
    dropped: int = 0
    created: float = 0.0
    finished: float | None = None
    error: tuple[Code, str] | None = None


def _has_privacy_ids(plan: bytes) -> bool:
    try:
        phase = plan_pb2.ClientOnlyPlan.FromString(plan).phase
    except DecodeError:
        # What is no plan is refused by devices, which may know of other kinds.
        return False
    return phase.example_query_spec.HasField("privacy_id_config")


def _bad(message: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"task specification: {message}")
