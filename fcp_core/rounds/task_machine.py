"""The machine of one task: one round of one computation, from open to its end.

Theory of operation. A task hands out assignments. An assignment is *assigned* until its device
submits; it is then *queued* until there is a place in the fold, *folding* while the engine works on
it, and ends as *contributed* or *dropped*. Never more contributions are folding than are missing,
so the result holds exactly ``goal_count`` of them, and no device is told "too late" about one that
is in the result. A dropped assignment gives its capacity back. The task ends in one of these ways:

* the goal is reached: OPEN -> CLOSING (``CompleteEffect``) -> COMPLETED or FAILED;
* the deadline comes: nothing new is taken, what is folding is waited for, then as above if there
  are ``minimum_count`` contributions, else FAILED with DEADLINE_EXCEEDED;
* it is cancelled: CANCELLED, at any time before the end.

The machine does no input or output and reads no clock: each method takes the time in seconds and
returns effects, which the shell carries out in order.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.expiring import Expiring
from fcp_core.rounds.policies import OpenTask
from fcp_core.rounds.tasks import TaskState, TaskStatus


class AssignmentStage(Enum):
    """Where an assignment stands; the last two are final."""

    ASSIGNED = "assigned"
    QUEUED = "queued"
    FOLDING = "folding"
    CONTRIBUTED = "contributed"
    DROPPED = "dropped"


@dataclass(frozen=True)
class FoldAssignment:
    """Fold what this assignment's device submitted, then call :meth:`TaskMachine.folded`."""

    assignment: str


@dataclass(frozen=True)
class ReleaseAssignment:
    """An assignment ended without a contribution; whoever waits for it is told so."""

    assignment: str
    phase: str
    code: Code
    message: str


@dataclass(frozen=True)
class CompleteEffect:
    """The round has what it needs: build the result, then call :meth:`TaskMachine.reported`."""


@dataclass(frozen=True)
class EndEffect:
    """The task reached a final state; *code* is OK if it has a result."""

    state: TaskState
    code: Code
    message: str


TaskEffect: TypeAlias = FoldAssignment | ReleaseAssignment | CompleteEffect | EndEffect


class InvalidTransition(Exception):  # noqa: N818 (it names what happened)
    """The shell asked a machine for something that cannot happen in its state."""


class TaskMachine:
    """One task's states, assignments and counters.

    :param deadline: when it ends by itself, in seconds since the epoch.
    :param over_selection: devices at work at a time, as a multiple of the missing contributions.
    :param max_at_work: devices at work at a time in any case; None: no such limit.
    :param assignment_timeout: seconds after which an assignment whose device has not submitted is
        dropped.
    """

    def __init__(
        self,
        *,
        task_id: str,
        population: str,
        name: str,
        goal_count: int,
        minimum_count: int | None,
        over_selection: float,
        created: float,
        deadline: float,
        assignment_timeout: float,
        max_at_work: int | None = None,
    ) -> None:
        self.task_id = task_id
        self.population = population
        self.name = name
        self.goal_count = goal_count
        self.minimum_count = goal_count if minimum_count is None else minimum_count
        self.created = created
        self.deadline = deadline
        self.max_at_work = max_at_work
        self._over_selection = over_selection
        self._assignment_timeout = assignment_timeout
        self.state = TaskState.OPEN
        self.finished: float | None = None
        self.error: tuple[Code, str] | None = None
        self.assigned = 0
        self.contributed = 0
        self.dropped = 0
        self._live: dict[str, AssignmentStage] = {}
        self._expiry: Expiring[None] = Expiring()
        self._queue: deque[str] = deque()
        self._folding = 0
        self._completing = False
        self._reasons: Counter[str] = Counter()

    @property
    def pending(self) -> int:
        """How many assignments have not ended."""
        return len(self._live)

    @property
    def missing(self) -> int:
        """How many contributions it still lacks."""
        return self.goal_count - self.contributed

    @property
    def capacity(self) -> int:
        """How many more devices it may be given now."""
        if self.state is not TaskState.OPEN:
            return 0
        # Without the small term, 1.1 times 10 would be 12.
        wanted = math.ceil(self._over_selection * self.missing - 1e-9)
        if self.max_at_work is not None:
            wanted = min(wanted, self.max_at_work)
        return max(0, wanted - self.pending)

    def stage(self, assignment: str) -> AssignmentStage | None:
        """Return the stage of an assignment that has not ended, or None."""
        return self._live.get(assignment)

    def view(self) -> OpenTask:
        """Return the task as a selection policy sees it."""
        return OpenTask(
            self.task_id, self.name, self.capacity, self.missing, self.created, self.pending
        )

    def status(self) -> TaskStatus:
        """Return the task as a watcher sees it."""
        return TaskStatus(
            task_id=self.task_id,
            population=self.population,
            name=self.name,
            state=self.state,
            goal_count=self.goal_count,
            assigned=self.assigned,
            contributed=self.contributed,
            pending=self.pending,
            dropped=self.dropped,
            created=self.created,
            finished=self.finished,
            error=self.error,
        )

    def assign(self, assignment: str, now: float) -> None:
        """Give the task a device.

        :raises InvalidTransition: if it has no capacity or knows the assignment already.
        """
        if self.capacity < 1 or assignment in self._live:
            raise InvalidTransition(f"{self!r} cannot take assignment {assignment}")
        self.assigned += 1
        self._live[assignment] = AssignmentStage.ASSIGNED
        self._expiry.put(assignment, None, now + self._assignment_timeout)

    def submit(self, assignment: str, now: float) -> list[TaskEffect]:
        """Take a device's submission: it is folded now, or as soon as there is a place.

        :raises StatusError: ABORTED if the assignment has ended.
        """
        if self._live.get(assignment) is not AssignmentStage.ASSIGNED:
            raise StatusError(
                Code.ABORTED, f"the assignment to task {self.name} has ended; check in again"
            )
        self._expiry.pop(assignment)
        self._live[assignment] = AssignmentStage.QUEUED
        self._queue.append(assignment)
        return self._fill()

    def folded(self, assignment: str, code: Code, message: str, now: float) -> list[TaskEffect]:
        """Take the outcome of a :class:`FoldAssignment`."""
        if self.state.is_final:
            return []
        if self._live.get(assignment) is not AssignmentStage.FOLDING:
            raise InvalidTransition(f"{self!r} did not have assignment {assignment} folded")
        self._folding -= 1
        effects: list[TaskEffect] = []
        if code is Code.OK:
            del self._live[assignment]
            self.contributed += 1
        else:
            effects.append(self._release(assignment, "submit", code, message))
        goes_on = self.missing and self.state is TaskState.OPEN
        return effects + (self._fill() if goes_on else self._close(now))

    def drop(
        self, assignment: str, phase: str, code: Code, message: str, now: float
    ) -> list[TaskEffect]:
        """Let go of a device that failed, aborted or went away.

        Nothing happens if the assignment has ended, or is in the fold, where it cannot be stopped.

        :param phase: how far it came, a short word.
        """
        stage = self._live.get(assignment)
        if stage is None or stage is AssignmentStage.FOLDING:
            return []
        return [self._release(assignment, phase, code, message)]

    def tick(self, now: float) -> list[TaskEffect]:
        """Let time pass: assignments that took too long, the deadline."""
        if self.state is not TaskState.OPEN:
            return []
        if self.deadline <= now:
            return self._close(now)
        return [
            self._release(
                assignment,
                "assignment_timeout",
                Code.DEADLINE_EXCEEDED,
                f"nothing was submitted within {self._assignment_timeout:g} s",
            )
            for assignment, _ in self._expiry.pop_due(now)
        ]

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        if self.state is not TaskState.OPEN:
            return None
        expiry = self._expiry.next_expiry()
        return self.deadline if expiry is None else min(expiry, self.deadline)

    def cancel(self, code: Code, message: str, now: float) -> list[TaskEffect]:
        """End the task without a result; nothing happens if it has ended."""
        if self.state.is_final:
            return []
        return self._end(TaskState.CANCELLED, code, message, now)

    def fail(self, code: Code, message: str, now: float) -> list[TaskEffect]:
        """End the task because something of the server's own broke."""
        if self.state.is_final:
            return []
        return self._end(TaskState.FAILED, code, message, now)

    def reported(self, code: Code, message: str, now: float) -> list[TaskEffect]:
        """Take the outcome of a :class:`CompleteEffect`."""
        if self.state.is_final:
            return []
        if not self._completing:
            raise InvalidTransition(f"{self!r} did not ask for a result")
        state = TaskState.COMPLETED if code is Code.OK else TaskState.FAILED
        return self._end(state, code, message, now)

    def validate(self) -> None:
        """Check what always holds.

        :raises AssertionError: naming what does not hold.
        """
        stages = Counter(self._live.values())
        assert self.assigned == self.contributed + self.dropped + self.pending, "counters add up"
        assert self._folding == stages[AssignmentStage.FOLDING], "folds are counted"
        assert self._folding + self.contributed <= self.goal_count, "no fold beyond the goal"
        assert len(self._queue) == stages[AssignmentStage.QUEUED], "the queue is what is queued"
        assert len(self._expiry) == stages[AssignmentStage.ASSIGNED], "what is assigned expires"
        assert not (self._queue and self._folding < self.missing), "no place stays free"
        assert self.max_at_work is None or self.pending <= self.max_at_work, "the cap holds"
        assert not self.state.is_final or not self._live, "nothing is left at the end"
        if self.state is TaskState.CLOSING:
            assert bool(self._folding) != self._completing, "closing goes on to an end"

    def __repr__(self) -> str:
        """Tell the story."""
        return (
            f"<task {self.name} {self.task_id} {self.state.value}: goal {self.goal_count}, "
            f"assigned {self.assigned}, contributed {self.contributed}, dropped {self.dropped}, "
            f"folding {self._folding}, queued {len(self._queue)}>"
        )

    def _fill(self) -> list[TaskEffect]:
        """Start as many folds as there are contributions missing."""
        effects: list[TaskEffect] = []
        while self.state is TaskState.OPEN and self._queue and self._folding < self.missing:
            assignment = self._queue.popleft()
            self._live[assignment] = AssignmentStage.FOLDING
            self._folding += 1
            effects.append(FoldAssignment(assignment))
        return effects

    def _close(self, now: float) -> list[TaskEffect]:
        """Take nothing more; once nothing is folding, decide how the round ends."""
        self.state = TaskState.CLOSING
        effects = self._release_all(f"the round of task {self.name} is over")
        if self._folding or self._completing:
            return effects
        if self.contributed >= self.minimum_count:
            self._completing = True
            return [*effects, CompleteEffect()]
        why = ", ".join(f"{count} x {reason}" for reason, count in self._reasons.most_common(8))
        message = (
            f"task {self.name} came to its deadline with {self.contributed} of "
            f"{self.minimum_count} contributions; {self.assigned} devices were assigned, "
            f"{self.dropped} were dropped{': ' + why if why else ''}"
        )
        return effects + self._end(TaskState.FAILED, Code.DEADLINE_EXCEEDED, message, now)

    def _end(self, state: TaskState, code: Code, message: str, now: float) -> list[TaskEffect]:
        self.state = state
        self.finished = now
        self.error = None if code is Code.OK else (code, message)
        self._folding = 0
        for assignment, stage in self._live.items():
            if stage is AssignmentStage.FOLDING:
                self._live[assignment] = AssignmentStage.ASSIGNED
        effects = self._release_all(f"the round of task {self.name} is over")
        return [*effects, EndEffect(state, code, message)]

    def _release_all(self, message: str) -> list[TaskEffect]:
        return [
            self._release(assignment, "round_over", Code.ABORTED, message)
            for assignment, stage in list(self._live.items())
            if stage is not AssignmentStage.FOLDING
        ]

    def _release(self, assignment: str, phase: str, code: Code, message: str) -> ReleaseAssignment:
        if self._live.pop(assignment) is AssignmentStage.QUEUED:
            self._queue.remove(assignment)
        self._expiry.pop(assignment)
        self.dropped += 1
        self._reasons[f"{phase} {code.name}"] += 1
        return ReleaseAssignment(assignment, phase, code, message)
