"""The machine of one task, from open to its end; it owns the task's assignments.

Contributions that are ready are *queued* until there is a place, *accumulating* while the engine
works on them, and end as *contributed* or *dropped*. Never more are accumulating than are missing,
so that no device is told "too late" about a contribution that is in the result. What is accumulated
as one, for several devices, contributes or drops them all; only that can exceed the goal. A dropped
assignment gives its capacity back, and so does one that is *overdue*: its device shows no sign of
life for longer than the others need (``rounds.experience``). It may come all the same; whoever is
first counts. The task ends in one of these ways:

* the goal is reached: OPEN -> CLOSING (``CompleteEffect``) -> COMPLETED or FAILED;
* the deadline comes: nothing new is taken, what is accumulating is waited for, then as above if
  there are ``minimum_count`` contributions, else FAILED with DEADLINE_EXCEEDED;
* the first devices all fail in the same way: FAILED, with what they report;
* it is cancelled: CANCELLED, at any time before the end.

The machine does no input or output and reads no clock: each method takes the time in seconds and
returns effects, which the shell carries out in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fcp_core.protocol.status import Code
from fcp_core.rounds import experience
from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.effects import (
    AccumulateEffect,
    CompleteEffect,
    DroppedEffect,
    EndEffect,
    Group,
    KeptEffect,
    TaskEffect,
)
from fcp_core.rounds.experience import Experience, Senders
from fcp_core.rounds.machine import InvalidTransition
from fcp_core.rounds.policies import OpenTask
from fcp_core.rounds.task_facts import FINAL, MOVES, TaskFacts
from fcp_core.rounds.tasks import TaskState

__all__ = [
    "FINAL",
    "MOVES",
    "AccumulateEffect",
    "CompleteEffect",
    "DroppedEffect",
    "EndEffect",
    "Group",
    "InvalidTransition",
    "KeptEffect",
    "TaskEffect",
    "TaskMachine",
]

#: Standard deviations above the mean number of devices; chosen in the policy lab.
DEVIATIONS = 1.0


class TaskMachine(TaskFacts):
    """One task's states, assignments and counters; made as :class:`TaskFacts`."""

    # What it takes.

    @property
    def at_work(self) -> int:
        """How many assignments have not ended and are not overdue."""
        return self.pending - self.awaited.overdue

    @property
    def missing(self) -> int:
        """How many contributions it still lacks."""
        return max(0, self.goal_count - self.contributed)

    @property
    def capacity(self) -> int:
        """How many more devices it may be given now."""
        if self._state is not TaskState.OPEN:
            return 0
        free = self.awaited.overdue
        if free and not self.awaited.experience.wordless:
            # Each place is given away once more if its device is silent, and not over and over: it
            # may be the task that takes long.
            free = min(free, self._devices_for(self.goal_count))
        return max(0, self._devices_for(self.missing) + free - self.pending)

    @property
    def over_selection(self) -> float:
        """Devices to be at work, as a multiple of its goal."""
        return self._over_selection or self._devices_for(self.goal_count) / self.goal_count

    def _devices_for(self, missing: int) -> int:
        """Return how many devices are to be at work for so many contributions."""
        if self._over_selection is None:
            wanted = devices_for(missing, drop_outs(self.awaited.experience))
        else:
            # Without the small term, 1.1 times 10 would be 12.
            wanted = math.ceil(self._over_selection * missing - 1e-9)
        if missing:
            wanted = max(wanted, self.together)
        return wanted if self.max_at_work is None else min(wanted, self.max_at_work)

    def get(self, assignment: str) -> Assignment | None:
        """Return the assignment of that id, also one that ended not long ago, or None."""
        return self.assignments.get(assignment)

    def view(self) -> OpenTask:
        """Return the task as a selection policy sees it."""
        return OpenTask(
            self.task_id, self.name, self.capacity, self.missing, self.created, self.at_work
        )

    # What happens to it.

    def assign(
        self,
        assignment: str,
        session_id: str,
        now: float,
        origin: Sequence[str] = (),
        version: str = "",
    ) -> Assignment:
        """Give the task to a device.

        :param origin: the address and the key that it checked in with, as far as they count.
        :param version: its client's version.
        :raises InvalidTransition: if it has no capacity or knows the assignment already.
        """
        if self.capacity < 1 or assignment in self.assignments:
            raise InvalidTransition(f"{self!r} cannot take assignment {assignment}")
        self._forget(now)
        record = Assignment(assignment, session_id, now, origin=origin, version=version)
        self._add(record)
        self.awaited.steps[0][assignment] = record
        if len(self.awaited.steps[0]) == 1:
            self._watch()
        self._unready[assignment] = record
        return record

    def begin(self, assignment: Assignment, now: float) -> None:
        """Take a device's first sign of life: it has something to contribute."""
        self._came(assignment, 0, now)
        assignment.move(Stage.STARTED)
        assignment.begun = now
        self.awaited.steps[1][assignment.id] = assignment
        self._watch()

    def turn_away(self, assignment: str, now: float) -> list[TaskEffect]:
        """Know a device from now on, which is not known yet, that comes too late for a place."""
        self._forget(now)
        record = Assignment(assignment, "", now)
        self._add(record)
        message = f"task {self.name} has no room for more devices"
        return [self._drop(record, "round_over", Code.ABORTED, message, late=True)]

    def keep(self, assignments: Sequence[str], now: float) -> list[TaskEffect]:
        """Go on without devices: what they contribute will be accumulated, or nothing of it.

        They do not expire, and only what they are kept for drops them.

        :raises InvalidTransition: if one of them cannot be kept; nothing happens then.
        """
        records = [self.assignments.get(assignment) for assignment in assignments]
        known = [record for record in records if record is not None]
        ready = all(Stage.KEPT in record.MOVES[record.state] for record in known)
        if len(known) < len(records) or not ready or len(set(known)) < len(known):
            raise InvalidTransition(f"{self!r} cannot keep {assignments}")
        for record in known:
            self._unready.pop(record.id, None)
            self._came(record, 1, now)
            record.move(Stage.KEPT)
        self._watch()
        return [KeptEffect(record) for record in known]

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
            self._came(assignment, 1, now)
            self._unready.pop(assignment.id, None)
            assignment.queued = now
            assignment.move(Stage.QUEUED)
        self._queue.append(group)
        self._watch()
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
                self.pending -= 1
                bring(self.awaited.experience, self.awaited.senders, assignment.origin)
            else:
                effects.append(self._drop(assignment, "submit", code, message))
        if code is Code.RESOURCE_EXHAUSTED and self._state is TaskState.OPEN:
            # What is kept of contributions has no room for more: waiting would not help.
            if self.contributed >= self.minimum_count:
                return effects + self._close(now)
            had = f"it has {self.contributed} of {self.minimum_count} contributions"
            message = f"task {self.name} has no room for more, and {had}: {message}"
            return effects + self._end(TaskState.FAILED, code, message, now)
        if not self.contributed and (end := self._hopeless(now)) is not None:
            return effects + end
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
        record = self.assignments.get(assignment)
        if record is None or not record.stoppable:
            return []
        if record.state is Stage.QUEUED:
            group = next(g for g in self._queue if record in g.assignments)
            if len(group.assignments) > 1:
                return []
            self._queue.remove(group)
        effects: list[TaskEffect] = [self._drop(record, phase, code, message, late=late)]
        return effects + (self._hopeless(now) or [])

    def tick(self, now: float, *, stuck: bool = False) -> list[TaskEffect]:
        """Let time pass: assignments that took too long, the deadline.

        :param stuck: whether nothing can be stored at the moment: that is not the engine's fault,
            and the time that it has begins again.
        """
        if self._state is TaskState.CLOSING and self._latest <= now:
            if stuck:
                self._closing_from = now
                return []
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
        message = f"nothing was submitted within {self._assignment_timeout:g} s"
        effects: list[TaskEffect] = []
        while self._unready:
            record = next(iter(self._unready.values()))
            if record.assigned + self._assignment_timeout > now:
                break
            late = self._drop(record, "assignment_timeout", Code.DEADLINE_EXCEEDED, message)
            effects.append(late)
        # Last: when fewer are silent, less patience is due to the others.
        for step, those in enumerate(self.awaited.steps):
            while those and self._due(step) <= now:
                self.awaited.lose(next(iter(those.values())), step)
        self._watch()
        return effects

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        if self._state is TaskState.CLOSING:
            return self._latest
        if self._state is not TaskState.OPEN:
            return None
        due = self.deadline
        if self._unready:
            due = min(due, next(iter(self._unready.values())).assigned + self._assignment_timeout)
        return min(due, self._watch())

    # Inside.

    def _add(self, record: Assignment) -> None:
        self.assignments[record.id] = record
        self._order.append(record)
        self.pending += 1

    def _came(self, record: Assignment, step: int, now: float) -> None:
        """Take that a device came as far as it was awaited; :meth:`_watch` must follow."""
        awaited = self.awaited
        if awaited.steps[step].pop(record.id, None) is None and not record.overdue:
            return
        learn(awaited.experience, step, now - (record.begun if step else record.assigned))
        if record.overdue:
            awaited.came_back(record, step)

    def _watch(self) -> float:
        """Return when somebody is overdue next, and note it."""
        due = self.awaited.due = min(self._due(0), self._due(1))
        return due

    def _due(self, step: int) -> float:
        """Return when a device that a step is awaited of is overdue next."""
        those = self.awaited.steps[step]
        if not those:
            return math.inf
        longest = next(iter(those.values()))
        since = longest.begun if step else longest.assigned
        return since + patience(self.awaited.experience, step, len(those) + self.awaited.overdue)

    def _forget(self, now: float) -> None:
        """Forget what ended so long ago that no token of it is valid."""
        while self._order and self._order[0].ended:
            if self._order[0].assigned + self._known_for > now:
                break
            del self.assignments[self._order.popleft().id]

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


def learn(known: Experience, step: int, seconds: float) -> None:
    """Take how long a device took for a step."""
    times, (mean, deviation) = known.times[step], known.means[step]
    if times:
        weight = 1 / min(times + 1, experience.TIMES_OF)
        deviation += weight * (abs(seconds - mean) - deviation)
        mean += weight * (seconds - mean)
    else:
        mean, deviation = seconds, seconds / 2
    known.times[step], known.means[step] = times + 1, (mean, deviation)
    known.learned[step] = max(experience.SHORTEST, mean + 4 * deviation)


def bring(known: Experience, senders: Senders, origin: Sequence[str]) -> None:
    """Take that a device has contributed, and whose it is."""
    if known.ended >= experience.SHARE_OF:
        known.fade()
    known.ended += 1
    if origin:
        senders.later.append(origin)
        if len(senders.later) >= experience.LATER:
            senders.settle()


def patience(known: Experience, step: int, silent: int) -> float:
    """Return how many seconds a device may take for a step until it is overdue.

    Who comes first is fast: as long as more are silent than ever came, those prove nothing.

    :param silent: how many devices of the task are awaited.
    """
    if not known.times[step]:
        return known.first
    learned = known.learned[step]
    return learned if known.times[step] >= silent else max(known.first, learned)


def drop_outs(known: Experience) -> float:
    """Return the share of assignments that is expected to come to nothing."""
    return (known.lost + experience.PRIOR * experience.WEIGHT) / (known.ended + experience.WEIGHT)


def devices_for(missing: int, drop_outs: float) -> int:
    """Return how many devices are to be at work for so many contributions.

    :param drop_outs: the share that is expected to come to nothing.
    """
    if missing < 1:
        return 0
    share = min(drop_outs, 0.9)
    wanted = (missing + DEVIATIONS * math.sqrt(missing * share)) / (1 - share)
    # A whole number of devices stands for half a device on either side.
    return max(missing, min(2 * missing, math.ceil(wanted - 0.5)))
