"""A population for tests of selection policies: devices arrive, time passes, tasks open."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fcp_core.rounds.policies import (
    Assign,
    Candidate,
    OpenTask,
    Selection,
    SelectionPolicy,
    SelectionView,
)

#: The names of the tasks that the kit opens.
TASK_NAMES = ("train", "evaluate", "count/words")

#: The versions of clients; the published client's is whatever its embedder says.
VERSIONS = ("1", "v2024.2", "")

#: A device's eligibility weights by task name; None if they were not evaluated.
Weights = Mapping[str, float] | None


@dataclass(frozen=True)
class Opening:
    """A task that opens: its name, and how many devices it takes at a time."""

    name: str
    capacity: int


@dataclass(frozen=True)
class Step:
    """What happens until a policy is asked again.

    :param elapsed: how much time passes, in seconds; None: as much as the policy asked for.
    :param arrivals: the devices that arrive.
    :param opens: the tasks that open.
    :param leave: how many of those that wait go away.
    :param vanish: how many of those that were assigned last do not start; their tasks have room
        again.
    """

    elapsed: float | None = 1.0
    arrivals: tuple[Weights, ...] = ()
    opens: tuple[Opening, ...] = ()
    leave: int = 0
    vanish: int = 0


def weights() -> SearchStrategy[Weights]:
    """Draw the eligibility of a device; a task that is missing is not for it."""
    values = st.sampled_from([0.0, 1.0, 2.5, 1e6])
    return st.none() | st.dictionaries(st.sampled_from(TASK_NAMES), values)


def openings() -> SearchStrategy[Opening]:
    """Draw tasks that open."""
    return st.builds(Opening, st.sampled_from(TASK_NAMES), st.integers(1, 4))


def steps() -> SearchStrategy[Step]:
    """Draw what happens to a population between two questions."""
    return st.builds(
        Step,
        elapsed=st.none() | st.sampled_from([0.0, 0.5, 5.0, 60.0, 3600.0]),
        arrivals=st.lists(weights(), max_size=6).map(tuple),
        opens=st.lists(openings(), max_size=2).map(tuple),
        leave=st.integers(0, 2),
        vanish=st.integers(0, 2),
    )


def scripts() -> SearchStrategy[list[Step]]:
    """Draw the history of a population."""
    return st.lists(steps(), min_size=1, max_size=8)


@dataclass
class Population:
    """What a server keeps of a population: who waits, which tasks are open, what is decided.

    :param versions: the clients' versions, in turns.
    :param tick: when the policy wants to be asked again.
    """

    options: Mapping[str, Any]
    seed: int = 0
    now: float = 1_000_000.0
    state: Any = None
    tick: float | None = None
    candidates: dict[str, Candidate] = field(default_factory=dict)
    tasks: dict[str, OpenTask] = field(default_factory=dict)
    last: list[Assign] = field(default_factory=list)
    versions: tuple[str, ...] = VERSIONS

    def __post_init__(self) -> None:
        # Names tell nothing of the order.
        self._names = random.Random(self.seed)
        self._asked = itertools.count()
        self._versions = itertools.cycle(self.versions)

    def advance(self, step: Step) -> None:
        """Let a step happen."""
        elapsed = step.elapsed
        if elapsed is None:
            elapsed = 0.0 if self.tick is None else max(0.0, self.tick - self.now)
        self.now += elapsed
        for name in list(self.candidates)[: step.leave]:
            del self.candidates[name]
        for assign in self.last[: step.vanish]:
            self.give_room(assign.task_id, 1)
        for opening in step.opens:
            name = self._name()
            room = opening.capacity
            self.tasks[name] = OpenTask(name, opening.name, room, room, self.now)
        for arrival in step.arrivals:
            self.arrive(arrival)

    def arrive(self, weights: Weights) -> str:
        """Let a device arrive; return its name."""
        name = self._name()
        self.candidates[name] = Candidate(name, self.now, weights, next(self._versions))
        return name

    def give_room(self, task_id: str, places: int) -> None:
        """Change how many more devices a task takes."""
        task = self.tasks[task_id]
        self.tasks[task_id] = replace(
            task, capacity=task.capacity + places, pending=task.pending - places
        )

    def view(self) -> SelectionView:
        """Return what the policy is shown now."""
        return SelectionView(
            candidates=tuple(self.candidates.values()),
            tasks=tuple(task for task in self.tasks.values() if task.capacity > 0),
            now=self.now,
            rng=random.Random(self.seed * 1_000_003 + next(self._asked)),
            state=self.state,
            options=self.options,
        )

    def take(self, selection: Selection) -> None:
        """Do what a policy decided; what it may not decide is left out."""
        self.state = selection.state
        # As the server does: a policy that wants no pause at all gets one.
        self.tick = None if selection.tick_in is None else self.now + max(selection.tick_in, 0.01)
        self.last = []
        for decision in selection.decisions:
            candidate = self.candidates.get(decision.candidate)
            if candidate is None:
                continue
            if isinstance(decision, Assign):
                task = self.tasks.get(decision.task_id)
                if task is None or not task.capacity or not candidate.eligible(task.name):
                    continue
                self.give_room(task.task_id, -1)
                self.last.append(decision)
            del self.candidates[candidate.id]

    def _name(self) -> str:
        return f"{self._names.getrandbits(64):016x}"


class FirstCome(SelectionPolicy):
    """First come, first served."""

    def select(self, view: SelectionView) -> Selection:
        """Give places in the order in which devices came."""
        room = {task.task_id: task.capacity for task in view.tasks}
        decisions = []
        for candidate in view.candidates:
            for task in view.tasks:
                if room[task.task_id] and candidate.eligible(task.name):
                    room[task.task_id] -= 1
                    decisions.append(Assign(candidate.id, task.task_id))
                    break
        return Selection(decisions)
