"""The machine of one task, from open to its end; it owns the task's assignments.

Contributions that are ready are *queued* until there is a place, *accumulating* while the engine
works on them, and end as *contributed* or *dropped*. Never more are accumulating than are missing,
so that no device is told "too late" about a contribution that is in the result. What is accumulated
as one, for several devices, contributes or drops them all; only that can exceed the goal. A dropped
assignment gives its capacity back. The task ends in one of these ways:

* the goal is reached: OPEN -> CLOSING (``CompleteEffect``) -> COMPLETED or FAILED;
* the deadline comes: nothing new is taken, what is accumulating is waited for, then as above if
  there are ``minimum_count`` contributions, else FAILED with DEADLINE_EXCEEDED;
* it is cancelled: CANCELLED, at any time before the end.

The machine does no input or output and reads no clock: each method takes the time in seconds and
returns effects, which the shell carries out in order.
"""

from __future__ import annotations

import math
from collections import Counter, deque

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.effects import (
    AccumulateEffect,
    CompleteEffect,
    DroppedEffect,
    EndEffect,
    Group,
    TaskEffect,
)
from fcp_core.rounds.expiring import Expiring
from fcp_core.rounds.policies import OpenTask
from fcp_core.rounds.reasons import Reasons
from fcp_core.rounds.tasks import TaskState, TaskStatus
from fcp_core.rounds.transitions import InvalidTransition, Machine

__all__ = [
    "AccumulateEffect",
    "CompleteEffect",
    "DroppedEffect",
    "EndEffect",
    "Group",
    "InvalidTransition",
    "TaskEffect",
    "TaskMachine",
]

MOVES: dict[TaskState, tuple[TaskState, ...]] = {
    TaskState.OPEN: (TaskState.CLOSING, TaskState.FAILED, TaskState.CANCELLED),
    TaskState.CLOSING: (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED),
    TaskState.COMPLETED: (),
    TaskState.FAILED: (),
    TaskState.CANCELLED: (),
}
FINAL = frozenset(state for state, following in MOVES.items() if not following)


class TaskMachine(Machine[TaskState]):
    """One task's states, assignments and counters.

    :param deadline: when it ends by itself, in seconds since the epoch.
    :param over_selection: devices in progress at a time, as a multiple of the missing
        contributions.
    :param max_at_work: devices in progress at a time in any case; None: no such limit.
    :param assignment_timeout: seconds after which an assignment whose contribution is not ready is
        dropped.
    :param retention: seconds after that in which an assignment that has ended is still known.
    :param closing_timeout: seconds after the deadline in which there must be a result.
    :param folded_by: who makes it, for the message if there is none.
    """

    MOVES = MOVES

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
        retention: float = math.inf,
        closing_timeout: float = 600.0,
        folded_by: str = "the engine",
    ) -> None:
        super().__init__(TaskState.OPEN)
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
        self._known_for = assignment_timeout + retention
        self._closing_timeout = closing_timeout
        self._folded_by = folded_by
        self.finished: float | None = None
        self.error: tuple[Code, str] | None = None
        #: The assignments, those that have ended too, so that a repeated call can be answered; and
        #: the same in the order in which they were given.
        self._assignments: dict[str, Assignment] = {}
        self._order: deque[Assignment] = deque()
        #: How many assignments there were, how many contributions are in the aggregate, how many
        #: assignments ended without one, how many of late devices, and how many are accumulating.
        self.assigned = 0
        self.contributed = 0
        self.dropped = 0
        self.surplus = 0
        self._accumulating = 0
        self._expiry: Expiring[None] = Expiring()
        self._queue: deque[Group] = deque()
        self._completing = False
        #: Why devices do not contribute; whoever watches the task is told.
        self.reasons = Reasons()

    # What it is.

    @property
    def pending(self) -> int:
        """How many assignments have not ended."""
        return self.assigned - self.contributed - self.dropped - self.surplus

    @property
    def missing(self) -> int:
        """How many contributions it still lacks."""
        return max(0, self.goal_count - self.contributed)

    @property
    def capacity(self) -> int:
        """How many more devices it may be given now."""
        if self._state is not TaskState.OPEN:
            return 0
        # Without the small term, 1.1 times 10 would be 12.
        wanted = math.ceil(self._over_selection * self.missing - 1e-9)
        if self.max_at_work is not None:
            wanted = min(wanted, self.max_at_work)
        return max(0, wanted - self.pending)

    def get(self, assignment: str) -> Assignment | None:
        """Return the assignment of that id, also one that ended not long ago, or None."""
        return self._assignments.get(assignment)

    def all(self) -> list[Assignment]:
        """Return all assignments that are known, those that ended not long ago too."""
        return list(self._assignments.values())

    def live(self) -> list[Assignment]:
        """Return the assignments that have not ended."""
        if not self.pending:
            return []
        return [a for a in self._assignments.values() if not a.ended]

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
            reasons=dict(self.reasons.items()),
        )

    # What happens to it.

    def assign(self, assignment: str, session_id: str, now: float) -> Assignment:
        """Give the task to a device.

        :raises InvalidTransition: if it has no capacity or knows the assignment already.
        """
        if self.capacity < 1 or assignment in self._assignments:
            raise InvalidTransition(f"{self!r} cannot take assignment {assignment}")
        self._forget(now)
        record = self._add(assignment, session_id, now)
        self._expiry.put(assignment, None, now + self._assignment_timeout)
        return record

    def turn_away(self, assignment: str, now: float) -> list[TaskEffect]:
        """Know a device from now on, which is not known yet, that comes too late for a place."""
        self._forget(now)
        record = self._add(assignment, "", now)
        message = f"task {self.name} has no room for more devices"
        return [self._drop(record, "round_over", Code.ABORTED, message, late=True)]

    def queue(self, group: Group, now: float) -> list[TaskEffect]:
        """Have contributions accumulated: now, or as soon as there is a place.

        :raises InvalidTransition: if one of them cannot be, as when it has been already; nothing
            happens then.
        """
        ready = all(Stage.QUEUED in a.MOVES[a.state] for a in group.assignments)
        distinct = len(set(group.assignments)) == len(group.assignments) > 0
        if self._state is not TaskState.OPEN or not ready or not distinct:
            raise InvalidTransition(f"{self!r} cannot accumulate {group.assignments}")
        for assignment in group.assignments:
            self._expiry.pop(assignment.id)
            assignment.queued = now
            assignment.move(Stage.QUEUED)
        self._queue.append(group)
        return self._fill()

    def accumulated(self, group: Group, code: Code, message: str, now: float) -> list[TaskEffect]:
        """Take the outcome of an :class:`AccumulateEffect`."""
        if self._state in FINAL:
            return []
        if any(a.state is not Stage.ACCUMULATING for a in group.assignments):
            raise InvalidTransition(f"{self!r} did not have {group.assignments} accumulated")
        self._accumulating -= len(group.assignments)
        effects: list[TaskEffect] = []
        for assignment in group.assignments:
            if code is Code.OK:
                assignment.move(Stage.CONTRIBUTED)
                self.contributed += 1
            else:
                effects.append(self._drop(assignment, "submit", code, message))
        if code is Code.RESOURCE_EXHAUSTED and self._state is TaskState.OPEN:
            # What is kept of contributions has no room for more: waiting would not help.
            if self.contributed >= self.minimum_count:
                return effects + self._close(now)
            had = f"it has {self.contributed} of {self.minimum_count} contributions"
            message = f"task {self.name} has no room for more, and {had}: {message}"
            return effects + self._end(TaskState.FAILED, code, message, now)
        goes_on = self.missing and self._state is TaskState.OPEN
        return effects + (self._fill() if goes_on else self._close(now))

    def drop(
        self,
        assignment: str,
        phase: str,
        code: Code,
        message: str,
        now: float,
        *,
        late: bool = False,
    ) -> list[TaskEffect]:
        """Let go of a device that failed, aborted or went away.

        Nothing happens if the assignment has ended or is accumulating, or is queued together with
        others: it cannot be stopped then.

        :param phase: how far it came, a short word.
        :param late: whether it is no fault of the device.
        """
        record = self._assignments.get(assignment)
        if record is None or not record.stoppable:
            return []
        if record.state is Stage.QUEUED:
            group = next(g for g in self._queue if record in g.assignments)
            if len(group.assignments) > 1:
                return []
            self._queue.remove(group)
        return [self._drop(record, phase, code, message, late=late)]

    def tick(self, now: float) -> list[TaskEffect]:
        """Let time pass: assignments that took too long, the deadline."""
        if self._state is TaskState.CLOSING and self._latest <= now:
            awaited = "the result" if self._completing else "contributions in progress"
            message = (
                f"task {self.name} waited for {awaited} of {self._folded_by} until "
                f"{self._closing_timeout:g} s after its deadline, and in vain"
            )
            return self.fail(Code.DEADLINE_EXCEEDED, message, now)
        if self._state is not TaskState.OPEN:
            return []
        if self.deadline <= now:
            return self._close(now)
        return [
            self._drop(
                self._assignments[assignment],
                "assignment_timeout",
                Code.DEADLINE_EXCEEDED,
                f"nothing was submitted within {self._assignment_timeout:g} s",
            )
            for assignment, _ in self._expiry.pop_due(now)
        ]

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        if self._state is TaskState.CLOSING:
            return self._latest
        if self._state is not TaskState.OPEN:
            return None
        expiry = self._expiry.next_expiry()
        return self.deadline if expiry is None else min(expiry, self.deadline)

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

    def validate(self) -> None:
        """Check what always holds.

        :raises AssertionError: naming what does not hold.
        """
        stages = Counter(a.state for a in self._assignments.values())
        queued = sum(len(group.assignments) for group in self._queue)
        running = stages[Stage.ACCUMULATING]
        forgotten = self.assigned - len(self._assignments)
        ended = stages[Stage.CONTRIBUTED] + stages[Stage.DROPPED]
        assert 0 <= self.contributed - stages[Stage.CONTRIBUTED] <= forgotten, "they are counted"
        assert self.contributed + self.dropped + self.surplus == ended + forgotten, (
            "all are counted"
        )
        assert self.surplus >= sum(a.late for a in self.all()), "who is late is counted apart"
        assert [*self._order] == [*self._assignments.values()], "the order is kept"
        assert self._accumulating == running, "what is accumulating is counted"
        assert queued == stages[Stage.QUEUED], "the queue is what is queued"
        assert len(self._expiry) == self.pending - queued - running, "what is not ready expires"
        assert not (self._queue and running < self.missing), "no place stays free"
        assert self.max_at_work is None or self.pending <= self.max_at_work, "the cap holds"
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

    # Inside.

    def _add(self, assignment: str, session_id: str, now: float) -> Assignment:
        record = self._assignments[assignment] = Assignment(assignment, session_id, now)
        self._order.append(record)
        self.assigned += 1
        return record

    def _forget(self, now: float) -> None:
        """Forget what ended so long ago that no token of it is valid."""
        while self._order and self._order[0].ended:
            if self._order[0].assigned + self._known_for > now:
                break
            del self._assignments[self._order.popleft().id]

    @property
    def _latest(self) -> float:
        """When it ends in any case."""
        return self.deadline + self._closing_timeout

    def _fill(self) -> list[TaskEffect]:
        """Have as many contributions accumulated as are missing."""
        effects: list[TaskEffect] = []
        while self._state is TaskState.OPEN and self._queue and self._accumulating < self.missing:
            group = self._queue.popleft()
            for assignment in group.assignments:
                assignment.move(Stage.ACCUMULATING)
            self._accumulating += len(group.assignments)
            effects.append(AccumulateEffect(group))
        return effects

    def _close(self, now: float) -> list[TaskEffect]:
        """Take nothing more; once nothing is accumulating, decide how the task ends."""
        if self._state is TaskState.OPEN:
            self.move(TaskState.CLOSING)
        effects = self._drop_all(
            f"task {self.name} is over", [a for a in self.live() if a.stoppable]
        )
        if self._accumulating or self._completing:
            return effects
        if self.contributed >= self.minimum_count:
            self._completing = True
            return [*effects, CompleteEffect()]
        why = str(self.reasons)
        message = (
            f"task {self.name} came to its deadline with {self.contributed} of "
            f"{self.minimum_count} contributions; {self.assigned} devices were assigned, "
            f"{self.dropped} were dropped{': ' + why if why else ''}; {self.surplus} came too late"
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
        assignment.move(Stage.DROPPED)
        assignment.error = StatusError(code, message)
        assignment.late = late
        self._expiry.pop(assignment.id)
        if late:
            self.surplus += 1
            return DroppedEffect(assignment, phase, code, message)
        self.dropped += 1
        # Of what the server itself could not do, its own words say more than the code.
        own = f": {message}" if phase == "submit" and code is Code.INTERNAL else ""
        self.reasons.note(f"{phase} {code.name}{own}")
        return DroppedEffect(assignment, phase, code, message)
