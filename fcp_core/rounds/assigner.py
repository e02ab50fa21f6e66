"""The machines that give waiting devices of one population their tasks, as policies decide.

It is asked when a candidate arrives, when a task opens or gets capacity back, when a task ends and
on ticks. A candidate for which no task has room is rejected at once: a device that comes back later
costs less than one that polls. What a policy neither assigns nor rejects is held.

A policy is somebody else's code: what it decides is checked, and a decision that cannot be right is
listed in :attr:`Outcome.problems` and otherwise ignored.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Generic, TypeVar

from fcp_core.errors import describe, plugin_errors
from fcp_core.rounds.machine import Machine
from fcp_core.rounds.policies import (
    Candidate,
    OpenTask,
    Reject,
    RetryWindow,
    Selection,
    SelectionPolicy,
    SelectionView,
    choose_at_most,
)

D = TypeVar("D")

#: Seconds after which a policy that failed is asked again, if nothing happens before.
_ASK_AGAIN = 10.0


class CandidateState(Enum):
    """Where a candidate stands."""

    WAITING = "waiting"
    ASSIGNED = "assigned"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"


MOVES: dict[CandidateState, tuple[CandidateState, ...]] = {
    CandidateState.WAITING: (
        CandidateState.ASSIGNED,
        CandidateState.REJECTED,
        CandidateState.WITHDRAWN,
    ),
    CandidateState.ASSIGNED: (),
    CandidateState.REJECTED: (),
    CandidateState.WITHDRAWN: (),
}


class Waiting(Machine[CandidateState], Generic[D]):
    """A device that waits: what policies are shown of it, and what the shell knows it by.

    :param device: the shell's own; never shown to a policy.
    """

    __slots__ = ("candidate", "device")

    MOVES = MOVES

    def __init__(self, candidate: Candidate, device: D) -> None:
        super().__init__(CandidateState.WAITING)
        self.candidate = candidate
        self.device = device


@dataclass(frozen=True)
class Assigned(Generic[D]):
    """A device that gets a task."""

    device: D
    task_id: str


@dataclass(frozen=True)
class Rejection(Generic[D]):
    """A device that is sent away; *reason* is a short word."""

    device: D
    reason: str
    retry: RetryWindow | None = None


@dataclass
class Outcome(Generic[D]):
    """The result of asking the policies: devices that leave, and faults in the answers.

    :ivar why: for (task, reason), of how many devices it is the reason that they do not have it.
    """

    assigned: list[Assigned[D]] = field(default_factory=list)
    rejected: list[Rejection[D]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    why: Counter[tuple[str, str]] = field(default_factory=Counter)

    def blame(self, tasks: Iterable[OpenTask], reason: str) -> None:
        """Count a reason for which a device does not have these tasks."""
        self.why.update((task.task_id, reason) for task in tasks)


@dataclass
class _Group:
    """The tasks that share a policy and its options."""

    policy: SelectionPolicy
    options: Mapping[str, Any]
    name: str
    state: Any = None
    #: Whether the state is an earlier run's, and the policy has not gone on from it yet.
    restored: bool = False
    tick: float | None = None


class Assigner(Generic[D]):
    """Holds the candidates of one population and has policies decide about them.

    :param rng: the randomness that policies are given.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._waiting: dict[str, Waiting[D]] = {}
        self._groups: dict[str, _Group] = {}
        self._group_of: dict[str, str] = {}
        self._changed: set[str] = set()

    @property
    def waiting(self) -> int:
        """How many candidates wait."""
        return len(self._waiting)

    def open(
        self,
        task_id: str,
        group: str,
        name: str,
        policy: SelectionPolicy,
        options: Mapping[str, Any],
        state: Any = None,
    ) -> None:
        """Add a task.

        :param group: tasks of one group are shown to one policy together; the first brings it.
        :param name: the policy's name, for messages.
        :param state: what the policy kept in an earlier run; used for the first task of a group.
        """
        if group not in self._groups:
            self._groups[group] = _Group(policy, options, name, state, restored=state is not None)
        self._group_of[task_id] = group

    def knows(self, group: str) -> bool:
        """Whether there was a task of a group."""
        return group in self._groups

    def take_changed(self) -> list[tuple[str, str, Any]]:
        """Return the groups whose policies were asked since the last call: name and state, too."""
        changed, self._changed = self._changed, set()
        found = ((key, self._groups[key]) for key in sorted(changed))
        return [(key, group.name, group.state) for key, group in found]

    @property
    def changed(self) -> bool:
        """Whether :meth:`take_changed` has anything to return."""
        return bool(self._changed)

    def close(self, task_id: str) -> None:
        """Remove a task. What its policy keeps stays: the next task goes on from there."""
        self._group_of.pop(task_id, None)

    def arrive(self, candidate: Candidate, device: D) -> None:
        """Add a candidate; *device* is what the outcome names it by."""
        self._waiting[candidate.id] = Waiting(candidate, device)

    def restrict(self, weights: Mapping[str, float] | None) -> None:
        """Give the candidates that may take any task these weights instead."""
        for waiting in self._waiting.values():
            if waiting.candidate.weights is None:
                waiting.candidate = replace(waiting.candidate, weights=weights)

    def withdraw(self, candidate: str) -> D | None:
        """Remove a candidate; return its device, or None if it does not wait any more."""
        if candidate not in self._waiting:
            return None
        return self._take(candidate, CandidateState.WITHDRAWN)

    def withdraw_if(self, test: Callable[[D], bool]) -> list[D]:
        """Remove the candidates whose devices are as *test* says; return those."""
        found = [key for key, waiting in self._waiting.items() if test(waiting.device)]
        return [self._take(each, CandidateState.WITHDRAWN) for each in found]

    def withdraw_all(self) -> list[D]:
        """Remove all candidates; return their devices."""
        return self.withdraw_if(lambda device: True)

    def decide(self, tasks: Sequence[OpenTask], now: float, limit: int | None = None) -> Outcome[D]:
        """Ask the policies.

        :param tasks: the SINGLE tasks that are open and were added, oldest first.
        :param limit: how many devices may be assigned in all; None: as many as the tasks take.
        :returns: who leaves; those are no candidates any more.
        """
        outcome: Outcome[D] = Outcome()
        for group in self._groups.values():
            # A policy that is not asked this time has nothing to wait for.
            group.tick = None
        tasks = _within(tasks, limit)
        self._turn_away(tasks, outcome)
        room: dict[str, list[OpenTask]] = {}
        for task in tasks:
            if task.capacity > 0:
                room.setdefault(self._group_of[task.task_id], []).append(task)
        refusals: dict[str, list[Reject]] = {}
        askers: dict[str, int] = {}
        keys = list(room)
        left = limit
        if left is not None:
            # The policy with the fewest in progress is asked first: none takes all places for ever.
            keys.sort(key=lambda key: sum(task.pending for task in room[key]))
        for key in keys:
            if not self._waiting or left == 0:
                break
            shown = _within(room[key], left)
            names = {task.name for task in shown}
            asked = {
                key: waiting.candidate
                for key, waiting in self._waiting.items()
                if waiting.candidate.eligible_for_any(names)
            }
            if asked:
                if len(room) > 1:
                    for candidate_id in asked:
                        askers[candidate_id] = askers.get(candidate_id, 0) + 1
                before = len(outcome.assigned)
                kept = self._groups[key].state
                self._ask(self._groups[key], asked, shown, now, outcome, refusals, left)
                if kept is not None or self._groups[key].state is not None:
                    self._changed.add(key)
                if left is not None:
                    left -= len(outcome.assigned) - before
        for candidate_id, answers in refusals.items():
            # One that another policy holds stays.
            everyone = len(answers) == askers.get(candidate_id, 1)
            if everyone and candidate_id in self._waiting:
                device = self._take(candidate_id, CandidateState.REJECTED)
                retry = next((answer.retry for answer in answers if answer.retry), None)
                outcome.rejected.append(Rejection(device, "not_selected", retry))
        if outcome.assigned:
            taken = Counter(assign.task_id for assign in outcome.assigned)
            rest = [replace(task, capacity=task.capacity - taken[task.task_id]) for task in tasks]
            self._turn_away(_within(rest, left), outcome)
        return outcome

    def next_tick(self) -> float | None:
        """Return when a policy wants to be asked again, or None."""
        if not self._waiting:
            return None
        return min((g.tick for g in self._groups.values() if g.tick is not None), default=None)

    def _turn_away(self, tasks: Sequence[OpenTask], outcome: Outcome[D]) -> None:
        """Reject the candidates for which no task has room."""
        names = {task.name for task in tasks if task.capacity > 0}
        away = [
            key
            for key, waiting in self._waiting.items()
            if not waiting.candidate.eligible_for_any(names)
        ]
        for candidate_id in away:
            device = self._take(candidate_id, CandidateState.REJECTED)
            outcome.rejected.append(Rejection(device, "no_task"))

    def _take(self, candidate: str, state: CandidateState) -> D:
        """Remove a candidate that was decided about; return its device."""
        waiting = self._waiting.pop(candidate)
        waiting.move(state)
        return waiting.device

    def _ask(
        self,
        group: _Group,
        candidates: dict[str, Candidate],
        tasks: Sequence[OpenTask],
        now: float,
        outcome: Outcome[D],
        refusals: dict[str, list[Reject]],
        limit: int | None,
    ) -> None:
        view = SelectionView(
            candidates=tuple(candidates.values()),
            tasks=tuple(tasks),
            now=now,
            rng=self._rng,
            state=group.state,
            options=group.options,
        )
        try:
            selection = _select(group, view, limit)
        except plugin_errors() as error:  # A plugin may raise anything.
            fault = f"selection policy {group.name} raised {describe(error)}"
            outcome.problems.append(fault)
            outcome.blame(tasks, fault)
            group.tick = now + _ASK_AGAIN
            return
        group.state, group.restored = selection.state, False
        if selection.tick_in is not None:
            # A policy that asks for no pause at all would keep the server busy.
            group.tick = now + max(selection.tick_in, 0.01)
        left = {task.task_id: task for task in tasks}
        room = len(outcome.assigned) + (math.inf if limit is None else limit)
        capacity = {task.task_id: task.capacity for task in tasks}
        for decision in selection.decisions:
            problem: str | None = None
            candidate = candidates.pop(decision.candidate, None)
            if candidate is None:
                problem = "does not wait, or was decided about before"
            elif isinstance(decision, Reject):
                refusals.setdefault(candidate.id, []).append(decision)
                shown = [task for task in tasks if candidate.eligible(task.name)]
                outcome.blame(shown, f"rejected by selection policy {group.name}")
            elif decision.task_id not in left:
                problem = f"was assigned task {decision.task_id}, which is not open to it"
            elif not candidate.eligible(left[decision.task_id].name):
                problem = f"was assigned task {decision.task_id}, for which it is not eligible"
            elif capacity[decision.task_id] < 1 or len(outcome.assigned) >= room:
                problem = f"was assigned task {decision.task_id}, which is full"
            else:
                capacity[decision.task_id] -= 1
                device = self._take(candidate.id, CandidateState.ASSIGNED)
                outcome.assigned.append(Assigned(device, decision.task_id))
            if problem is not None:
                outcome.problems.append(
                    f"selection policy {group.name}: candidate {decision.candidate} {problem}"
                )
                outcome.blame(tasks, f"selection policy {group.name} decided what it may not")


def _select(group: _Group, view: SelectionView, limit: int | None) -> Selection:
    """Ask a policy."""
    try:
        return choose_at_most(limit, group.policy, view)
    except plugin_errors():
        if not group.restored:
            raise
        # A newer version may keep something else: it begins with nothing.
        return choose_at_most(limit, group.policy, replace(view, state=None))


def _within(tasks: Sequence[OpenTask], limit: int | None) -> Sequence[OpenTask]:
    """Return the tasks with no more room each than there is in all."""
    if limit is None:
        return tasks
    return [replace(task, capacity=min(task.capacity, limit)) for task in tasks]
