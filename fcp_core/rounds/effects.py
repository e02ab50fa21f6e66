"""What a task's machine wants done; the shell carries it out, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from fcp_core.protocol.status import Code
from fcp_core.rounds.assignment import Assignment
from fcp_core.rounds.tasks import TaskState


@dataclass(frozen=True, eq=False)
class Group:
    """Assignments whose contributions are accumulated as one, nearly always a single one.

    :param slot: the upload of the only one that is accumulated; None: the checkpoints are.
    :param checkpoints: what the protocol computed: one, or parts that make a whole.
    """

    assignments: tuple[Assignment, ...]
    slot: str | None = None
    checkpoints: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class AccumulateEffect:
    """Accumulate this, then call :meth:`TaskMachine.accumulated`."""

    group: Group


@dataclass(frozen=True)
class KeptEffect:
    """What is held of an assignment's uploads is not needed any more."""

    assignment: Assignment


@dataclass(frozen=True)
class DroppedEffect:
    """An assignment ended without a contribution; whoever waits for it is told so.

    :param phase: how far it came, a short word.
    :param reached: the stage that it had, the value of one of ``assignment.Stage``.
    """

    assignment: Assignment
    phase: str
    code: Code
    message: str
    reached: str = field(default="", compare=False)


@dataclass(frozen=True)
class CompleteEffect:
    """The task has what it needs: build the result, then call :meth:`TaskMachine.reported`."""


@dataclass(frozen=True)
class EndEffect:
    """The task reached a final state; *code* is OK if it has a result."""

    state: TaskState
    code: Code
    message: str


TaskEffect: TypeAlias = AccumulateEffect | KeptEffect | DroppedEffect | CompleteEffect | EndEffect
