"""The states of a task, the counters that a watcher sees, and the names of its specification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fcp_core.protocol.status import Code
from fcp_core.rounds.specification import AssignmentMode, ResourceForm, TaskSpec
from fcp_core.rounds.text import NAME_PATTERN, POPULATION_PATTERN

__all__ = [
    "NAME_PATTERN",
    "POPULATION_PATTERN",
    "AssignmentMode",
    "ResourceForm",
    "TaskSpec",
    "TaskState",
    "TaskStatus",
]


class TaskState(Enum):
    """Where a task stands. The last three are final."""

    OPEN = "open"
    CLOSING = "closing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    # By identity, as that of an assignment's stages.
    __hash__ = object.__hash__

    @property
    def is_final(self) -> bool:
        """Whether nothing can change any more."""
        return self in (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)


@dataclass(frozen=True)
class TaskStatus:
    """A task as a watcher sees it.

    :param contributed: contributions that are in the aggregate.
    :param pending: devices that hold an assignment and have not answered yet.
    :param dropped: devices that were assigned and failed, aborted or timed out.
    :param surplus: devices that were assigned and of which nothing more was needed: they came after
        the goal was reached, or the task had ended otherwise.
    :param error: why it failed, with its code; None unless it failed or was cancelled.
    :param durability: ``contribution`` or ``round``; ``""``: not known.
    :param problem: what keeps it from going on at the moment, such as a storage that is full.
    :param reasons: why devices did not contribute, each with how often, the most frequent first.
    :param notes: what its aggregation protocol says of its course, a line each.
    :param silent: of how many devices there is no sign since they were assigned, by the version of
        their client; ``pending`` or, later, ``dropped`` counts them too.
    :param deadline: when it ends by itself, in seconds since the epoch; None: not known any more.
    :param begun: how many of the pending devices have shown themselves and are not overdue.
    :param waits_for: what it waits for at the moment, a sentence; ``""`` if it has ended.
    :param query: the question that it answers, as its specification has it.
    :param release: ``costs`` and ``noise`` of a result that was drawn, as it is booked.
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
    surplus: int = 0
    created: float = 0.0
    finished: float | None = None
    error: tuple[Code, str] | None = None
    durability: str = ""
    problem: str = ""
    reasons: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    silent: Mapping[str, int] = field(default_factory=dict)
    deadline: float | None = None
    begun: int = 0
    waits_for: str = ""
    query: str = ""
    release: Mapping[str, Any] | None = None
