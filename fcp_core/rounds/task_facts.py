"""What is known of a task (settings, assignments, counters), what is told of it, how it ends.

What its devices do is in ``rounds.task``.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Sequence

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.effects import (
    CompleteEffect,
    DroppedEffect,
    EndEffect,
    Group,
    TaskEffect,
)
from fcp_core.rounds.experience import Awaited, Experiences
from fcp_core.rounds.failures import Failures
from fcp_core.rounds.machine import InvalidTransition, Machine
from fcp_core.rounds.reasons import Reasons
from fcp_core.rounds.tasks import TaskState, TaskStatus

MOVES: dict[TaskState, tuple[TaskState, ...]] = {
    TaskState.OPEN: (TaskState.CLOSING, TaskState.FAILED, TaskState.CANCELLED),
    TaskState.CLOSING: (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED),
    TaskState.COMPLETED: (),
    TaskState.FAILED: (),
    TaskState.CANCELLED: (),
}
FINAL = frozenset(state for state, following in MOVES.items() if not following)


class TaskFacts(Machine[TaskState]):
    """One task's states, assignments and counters.

    :param deadline: when it ends by itself, in seconds since the epoch.
    :param over_selection: devices in progress at a time, as a multiple of the missing
        contributions; None: as many as its experience says.
    :param max_at_work: devices in progress at a time in any case; None: no such limit.
    :param assignment_timeout: seconds after which an assignment whose contribution is not ready is
        dropped.
    :param retention: seconds after that in which an assignment that has ended is still known.
    :param closing_timeout: seconds after the deadline in which there must be a result.
    :param durability: what a crash may lose of it, for whoever watches.
    :param folded_by: who makes it, for the message if there is none.
    :param first_sign_timeout: how many seconds a device may be silent while nothing is known of the
        others.
    :param wordless: whether devices may drop a result without a word.
    :param alike_failures: after how many failures of its first devices, all alike, it ends; 0:
        never.
    """

    MOVES = MOVES

    #: When and why it ended, if it has.
    finished: float | None = None
    error: tuple[Code, str] | None = None
    #: How many assignments have not ended, how many contributions are in the aggregate, how many
    #: assignments ended without one, how many of late devices, and how many are accumulating.
    pending = contributed = dropped = surplus = _accumulating = 0
    #: How many ended without a sign, which ``dropped`` counts too.
    silent = 0
    #: The question that the task answers, for those who watch it.
    query = ""

    def __init__(
        self,
        *,
        task_id: str,
        population: str,
        name: str,
        goal_count: int,
        minimum_count: int | None,
        over_selection: float | None,
        created: float,
        deadline: float,
        assignment_timeout: float,
        max_at_work: int | None = None,
        retention: float = math.inf,
        closing_timeout: float = 600.0,
        folded_by: str = "the engine",
        durability: str = "",
        alike_failures: int = 0,
        first_sign_timeout: float = 120.0,
        wordless: bool = False,
    ) -> None:
        super().__init__(TaskState.OPEN)
        self.task_id, self.population, self.name = task_id, population, name
        self.goal_count = goal_count
        self.minimum_count = goal_count if minimum_count is None else minimum_count
        self.created = created
        self.deadline = deadline
        self.max_at_work = max_at_work
        self._over_selection, self._assignment_timeout = over_selection, assignment_timeout
        self._known_for = assignment_timeout + retention
        self._closing_timeout = closing_timeout
        self._closing_from = deadline
        self._folded_by = folded_by
        self.durability = durability
        #: How long devices may be silent at first, and whether some always are.
        self.silence = (first_sign_timeout, wordless)
        self.share(Experiences())
        #: The assignments, those that have ended too, so that a repeated call can be answered; and
        #: the same in the order in which they were given.
        self.assignments: dict[str, Assignment] = {}
        self._order: deque[Assignment] = deque()
        #: Those whose contributions are not ready, in the order in which they were given, which is
        #: that in which they expire.
        self._unready: dict[str, Assignment] = {}
        self._queue: deque[Group] = deque()
        self._completing = False
        #: How many devices must be at work at a time for any of them to contribute; it may exceed
        #: what is missing.
        self.together = 1
        #: Whether its deadline came between two runs of the server.
        self._expired = False
        #: Why devices do not contribute; whoever watches the task is told.
        self.reasons = Reasons()
        #: The same of those that were assigned only.
        self.outcomes = Reasons()
        #: Whether the first devices all fail in the same way.
        self.failures = Failures(alike_failures)

    def share(self, experiences: Experiences) -> None:
        """Learn together with the tasks of its population; call it before any device has it."""
        self.experiences = experiences
        #: Those of which something is awaited, and what is known of such devices.
        self.awaited = Awaited(experiences, self.name, *self.silence)

    # What it is.

    @property
    def assigned(self) -> int:
        """How many assignments there were."""
        return self.pending + self.contributed + self.dropped + self.surplus

    def all(self) -> list[Assignment]:
        """Return all assignments that are known, those that ended not long ago too."""
        return list(self.assignments.values())

    def live(self) -> list[Assignment]:
        """Return the assignments that have not ended."""
        if not self.pending:
            return []
        return [a for a in self.assignments.values() if not a.ended]

    def status(
        self, problem: str = "", waits_for: str = "", notes: Sequence[str] = ()
    ) -> TaskStatus:
        """Return the task as a watcher sees it.

        :param problem: what keeps it from going on, and *waits_for* what it waits for.
        :param notes: what its protocol says.
        """
        return TaskStatus(
            task_id=self.task_id,
            population=self.population,
            name=self.name,
            state=self._state,
            goal_count=self.goal_count,
            assigned=self.assigned,
            contributed=self.contributed,
            pending=self.pending,
            dropped=self.dropped,
            surplus=self.surplus,
            created=self.created,
            finished=self.finished,
            error=self.error,
            durability=self.durability,
            reasons=dict(self.reasons.items()),
            notes=tuple(notes),
            silent=dict(self.awaited.silences.items()),
            deadline=None if self._state in FINAL else self.deadline,
            begun=self.awaited.begun,
            problem=problem,
            waits_for=waits_for,
            query=self.query,
        )

    def story(self) -> str:
        """Return what came of each assigned device, in counts."""
        silences = self.awaited.silences
        silent = sum(count for _, count in silences.items())
        dropped = self.dropped - self.silent
        drops = self.outcomes.text(without=("silent",))
        parts = [
            f"{self.contributed} contributed",
            f"{self.surplus} came too late",
            f"{dropped} dropped" + (f" ({drops})" if drops else ""),
            f"{silent} silent" + (f" (client versions: {silences})" if silent else ""),
        ]
        at_work = self.pending - self.awaited.overdue
        if at_work:
            parts.append(f"{at_work} at work")
        others = self.reasons.text(without=[reason for reason, _ in self.outcomes.items()])
        devices = "1 device was" if self.assigned == 1 else f"{self.assigned} devices were"
        story = f"{devices} assigned: {', '.join(parts)}"
        return f"{story}; not assigned: {others}" if others else story

    # How it begins again, and how it ends.

    def restore(
        self, contributions: Collection[str], now: float, *, dropped: int = 0, surplus: int = 0
    ) -> list[TaskEffect]:
        """Go on after an earlier run, whose aggregate is there; call it before anything else.

        :param contributions: the assignments that are in the aggregate.
        :param dropped: how many had been dropped, and *surplus* how many came too late.
        """
        for id_ in contributions:
            record = self.assignments[id_] = Assignment(id_, "", now, Stage.CONTRIBUTED)
            self._order.append(record)
        self.contributed, self.dropped, self.surplus = len(contributions), dropped, surplus
        self._expired = self.deadline <= now
        return [] if self.contributed < self.goal_count else self._close(now)

    def cancel(
        self, code: Code, message: str, now: float, *, needed: bool = False
    ) -> list[TaskEffect]:
        """End the task without a result; nothing happens if it has ended.

        :param needed: whether the devices in progress are needed all the same, by the task's next
            machine: then they did not come too late.
        """
        if self._state in FINAL:
            return []
        return self._end(TaskState.CANCELLED, code, message, now, late=not needed)

    def fail(self, code: Code, message: str, now: float) -> list[TaskEffect]:
        """End the task because something of the server's own broke."""
        if self._state in FINAL:
            return []
        return self._end(TaskState.FAILED, code, message, now)

    def reported(self, code: Code, message: str, now: float) -> list[TaskEffect]:
        """Take the outcome of a :class:`CompleteEffect`."""
        if self._state in FINAL:
            return []
        if not self._completing:
            raise InvalidTransition(f"{self!r} did not ask for a result")
        state = TaskState.COMPLETED if code is Code.OK else TaskState.FAILED
        if code is Code.INTERNAL:
            message = f"{self._folded_by} gave no result: {message}"
        return self._end(state, code, message, now)

    def _hopeless(self, now: float) -> list[TaskEffect] | None:
        """End the task if its first devices all failed in the same way, else return None."""
        failures = self.failures
        if self.contributed or self._state is not TaskState.OPEN or not failures.enough:
            return None
        message = f"task {self.name} ended early, since {failures}; {self.story()}"
        return self._end(TaskState.FAILED, failures.code, message, now)

    def _close(self, now: float) -> list[TaskEffect]:
        """Take nothing more; once nothing is accumulating, decide how the task ends."""
        if self._state is TaskState.OPEN:
            self.move(TaskState.CLOSING)
            # The server may not have been running when the deadline came.
            self._closing_from = max(self.deadline, now)
        effects = self._drop_all(
            f"task {self.name} is over", [a for a in self.live() if a.stoppable]
        )
        if self._accumulating or self._completing:
            return effects
        if self.contributed >= self.minimum_count:
            self._completing = True
            return [*effects, CompleteEffect()]
        down = ", while the server was not running," if self._expired else ""
        message = (
            f"task {self.name} came to its deadline{down} with {self.contributed} of "
            f"{self.minimum_count} contributions; {self.story()}"
        )
        return effects + self._end(TaskState.FAILED, Code.DEADLINE_EXCEEDED, message, now)

    def _end(
        self, state: TaskState, code: Code, message: str, now: float, *, late: bool = True
    ) -> list[TaskEffect]:
        self.move(state)
        self.finished = now
        self.error = None if code is Code.OK else (code, message)
        effects = self._drop_all(f"task {self.name} is over", self.live(), late=late)
        self._accumulating = 0
        return [*effects, EndEffect(state, code, message)]

    def _drop_all(
        self, message: str, assignments: list[Assignment], *, late: bool = True
    ) -> list[TaskEffect]:
        self._queue.clear()
        return [self._drop(a, "round_over", Code.ABORTED, message, late=late) for a in assignments]

    def _drop(
        self, assignment: Assignment, phase: str, code: Code, message: str, *, late: bool = False
    ) -> DroppedEffect:
        silent, reached = assignment.state is Stage.ASSIGNED, assignment.state.value
        timed_out = silent and phase == "assignment_timeout"
        overdue = self.awaited.drop(assignment, silent=timed_out)
        assignment.move(Stage.DROPPED)
        assignment.error = StatusError(code, message)
        assignment.late = late
        self.pending -= 1
        self._unready.pop(assignment.id, None)
        if overdue and silent:
            self.silent += 1
            phase = "silent"
        elif late:
            self.surplus += 1
            return DroppedEffect(assignment, phase, code, message, reached)
        else:
            if not overdue and phase != "round_over":  # the server began it again
                self.awaited.experience.lose()
            self.failures.take(assignment.origin, phase, code, message)
        self.dropped += 1
        # Of what the server itself could not do, its own words say more than the code.
        own = f": {message}" if phase == "submit" else ""
        reason = "silent" if phase == "silent" else f"{phase} {code.name}{own}"
        self.reasons.note(reason)
        self.outcomes.note(reason)
        return DroppedEffect(assignment, phase, code, message, reached)

    @property
    def _latest(self) -> float:
        """When it ends in any case."""
        return self._closing_from + self._closing_timeout

    # For tests.

    def validate(self) -> None:
        """Check what always holds.

        :raises AssertionError: naming what does not hold.
        """
        stages = Counter(a.state for a in self.assignments.values())
        queued = sum(len(group.assignments) for group in self._queue)
        running = stages[Stage.ACCUMULATING]
        forgotten = self.assigned - len(self.assignments)
        ended = stages[Stage.CONTRIBUTED] + stages[Stage.DROPPED]
        assert 0 <= self.contributed - stages[Stage.CONTRIBUTED] <= forgotten, "they are counted"
        assert self.pending == len(self.assignments) - ended, "all are counted"
        assert forgotten >= 0, "all were there"
        late = sum(a.late for a in self.all())
        assert self.surplus + self.silent >= late, "who is late is counted apart"
        assert [*self._order] == [*self.assignments.values()], "the order is kept"
        assert self._accumulating == running, "what is accumulating is counted"
        assert queued == stages[Stage.QUEUED], "the queue is what is queued"
        ready = queued + running + stages[Stage.KEPT]
        assert len(self._unready) == self.pending - ready, "what is not ready expires"
        missing = self.goal_count - self.contributed
        assert not (self._queue and running < missing), "no place stays free"
        done = (Stage.QUEUED, Stage.ACCUMULATING, Stage.KEPT)
        self.awaited.validate([a for a in self.live() if a.state not in done])
        cap = self.max_at_work
        at_work = self.pending - self.awaited.overdue
        assert cap is None or at_work <= cap + self.awaited.ever_came_back, "the cap holds"
        assert self._state not in FINAL or not self.pending, "nothing is left at the end"
        if self._state is TaskState.CLOSING:
            assert bool(running) != self._completing, "closing goes on to an end"

    def __repr__(self) -> str:
        """Tell the story."""
        return (
            f"<task {self.name} {self.task_id} {self._state.value}: goal {self.goal_count}, "
            f"assigned {self.assigned}, contributed {self.contributed}, dropped {self.dropped}, "
            f"surplus {self.surplus}, queued {len(self._queue)}>"
        )
