"""What is known of a task: its settings, its assignments and its counters.

What happens to a task is in ``rounds.task``: only that changes anything here.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence

from fcp_core.protocol.status import Code
from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.effects import Group
from fcp_core.rounds.experience import Awaited, Experiences
from fcp_core.rounds.expiring import Expiring
from fcp_core.rounds.failures import Failures
from fcp_core.rounds.policies import OpenTask
from fcp_core.rounds.reasons import Reasons
from fcp_core.rounds.tasks import TaskState, TaskStatus
from fcp_core.rounds.transitions import Machine

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
    #: How many assignments there were, how many contributions are in the aggregate, how many
    #: assignments ended without one, how many of late devices, and how many are accumulating.
    assigned = contributed = dropped = surplus = _accumulating = 0
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
        self._closing_from = deadline
        self._folded_by = folded_by
        self.durability = durability
        #: How long devices may be silent at first, and whether some always are.
        self.silence = (first_sign_timeout, wordless)
        self.share(Experiences())
        #: The assignments, those that have ended too, so that a repeated call can be answered; and
        #: the same in the order in which they were given.
        self._assignments: dict[str, Assignment] = {}
        self._order: deque[Assignment] = deque()
        self._expiry: Expiring[None] = Expiring()
        self._queue: deque[Group] = deque()
        self._completing = False
        #: How many devices must be at work at a time for any of them to contribute; it may exceed
        #: what is missing.
        self.together = 1
        #: What its protocol says to whoever watches it.
        self.notes: Callable[[], Sequence[str]] = tuple
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
    def pending(self) -> int:
        """How many assignments have not ended."""
        return self.assigned - self.contributed - self.dropped - self.surplus

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
            wanted = self.awaited.experience.devices_for(missing)
        else:
            # Without the small term, 1.1 times 10 would be 12.
            wanted = math.ceil(self._over_selection * missing - 1e-9)
        if missing:
            wanted = max(wanted, self.together)
        return wanted if self.max_at_work is None else min(wanted, self.max_at_work)

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
            self.task_id, self.name, self.capacity, self.missing, self.created, self.at_work
        )

    def status(self, problem: str = "", waits_for: str = "") -> TaskStatus:
        """Return the task as a watcher sees it.

        :param problem: what keeps it from going on, and *waits_for* what it waits for.
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
            notes=tuple(self.notes()),
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
        if self.at_work:
            parts.append(f"{self.at_work} at work")
        others = self.reasons.text(without=[reason for reason, _ in self.outcomes.items()])
        devices = "1 device was" if self.assigned == 1 else f"{self.assigned} devices were"
        story = f"{devices} assigned: {', '.join(parts)}"
        return f"{story}; not assigned: {others}" if others else story

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
        late = sum(a.late for a in self.all())
        assert self.surplus + self.silent >= late, "who is late is counted apart"
        assert [*self._order] == [*self._assignments.values()], "the order is kept"
        assert self._accumulating == running, "what is accumulating is counted"
        assert queued == stages[Stage.QUEUED], "the queue is what is queued"
        ready = queued + running + stages[Stage.KEPT]
        assert len(self._expiry) == self.pending - ready, "what is not ready expires"
        assert not (self._queue and running < self.missing), "no place stays free"
        done = (Stage.QUEUED, Stage.ACCUMULATING, Stage.KEPT)
        self.awaited.validate([a for a in self.live() if a.state not in done])
        cap = self.max_at_work
        assert cap is None or self.at_work <= cap + self.awaited.came_back, "the cap holds"
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
