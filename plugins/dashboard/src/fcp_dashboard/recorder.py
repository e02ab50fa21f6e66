"""Counts the events of one member: several for each device, so each must cost next to nothing."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, deque
from typing import Any

from fcp_core.rounds.events import (
    Assigned,
    CheckedIn,
    Committed,
    Contributed,
    Dropped,
    Event,
    LedgerRead,
    Rejected,
    Released,
    Surplus,
    TaskClosed,
    TaskOpened,
)
from fcp_dashboard.facts import STEP, STEPS, PopulationSeen, Seen, TaskSeen
from fcp_dashboard.failures import Failures
from fcp_dashboard.shapes import CONTRIBUTED, TURNED_AWAY, Shapes, shape_of_drop, shape_of_late

#: How many sessions, tasks and populations are remembered; the oldest go first.
SESSIONS, TASKS, POPULATIONS = 100_000, 2_000, 1_000
#: How many contributions, and writes, the times of a task are taken from.
TIMES = 64
#: How many events of each kind are kept for the feed.
FEED = 50

#: A device that is turned away for one of these had asked for a task.
_HAD_ASKED = frozenset({"no_task", "not_selected", "expired", "cancelled"})
_VERSION = re.compile(r"[A-Za-z0-9._+-]{1,40}")
_VERSIONS = 50


class Series:
    """Counts for each step of the last ten minutes."""

    __slots__ = ("_at", "_counts")

    def __init__(self) -> None:
        self._at = 0
        self._counts = [0] * STEPS

    def count(self, at: float) -> None:
        """Count one."""
        step = int(at) // STEP
        if step != self._at:
            self._advance(step)
        self._counts[step % STEPS] += 1

    def values(self, now: float) -> list[int]:
        """Return the counts, the oldest first; the last step is the one of *now*."""
        step = int(now) // STEP
        if step != self._at:
            self._advance(step)
        first = (step + 1) % STEPS
        return self._counts[first:] + self._counts[:first]

    def _advance(self, step: int) -> None:
        """Empty what lies between; a clock that was set back begins again."""
        gone = step - self._at
        for number in range(min(gone, STEPS) if gone > 0 else STEPS):
            self._counts[(step - number) % STEPS] = 0
        self._at = step


class _Task:
    """The counters of a task."""

    __slots__ = ("commits", "last", "seen", "series", "times")

    def __init__(self, event: Any) -> None:
        self.seen = TaskSeen(event.task_id, event.population, event.task_name, event.at)
        self.seen.lost, self.seen.late = {}, {}
        self.series = Series()
        self.times: deque[tuple[float, float, float]] = deque(maxlen=TIMES)
        self.commits: deque[float] = deque(maxlen=TIMES)


class _Population:
    """The counters of a population.

    :ivar offers: check-ins by the names of the tasks that they were offered, together.
    :ivar asked: the same of the devices that then asked for a task.
    """

    __slots__ = (
        *("asked", "assigned", "contributed", "figures", "last", "offers"),
        *("rejected", "releases", "series", "total"),
    )

    def __init__(self) -> None:
        self.total = self.assigned = self.contributed = self.releases = 0
        self.last: float | None = None
        self.figures: dict[str, float] = {}
        self.series = Series()
        self.rejected: Counter[str] = Counter()
        self.offers: Counter[tuple[str, ...]] = Counter()
        self.asked: Counter[tuple[str, ...]] = Counter()


class Recorder:
    """What a member's devices and tasks did; all of it is memory, and bounded."""

    def __init__(self) -> None:
        self.failures = Failures()
        self.shapes = Shapes()
        self._populations: OrderedDict[str, _Population] = OrderedDict()
        self._tasks: OrderedDict[str, _Task] = OrderedDict()
        #: Of each session: its client's version, what it was offered, and how many assignments of
        #: it have not ended.
        self._sessions: dict[str, list[Any]] = {}
        self._versions: set[str] = set()
        self._feed: dict[str, deque[Event]] = {}
        self._handlers: dict[type, Any] = {
            CheckedIn: self._checked_in,
            Rejected: self._rejected,
            Assigned: self._assigned,
            Contributed: self._contributed,
            Committed: lambda event: self._task(event).commits.append(event.seconds),
            Dropped: self._dropped,
            Surplus: self._surplus,
            TaskOpened: self._opened,
            Released: self._released,
            LedgerRead: self._ledger_read,
            TaskClosed: lambda event: None,
        }
        for kind in self._handlers:
            self._feed[kind.__name__] = deque(maxlen=FEED)
        self._latest = {kind: self._feed[kind.__name__] for kind in self._handlers}

    def event(self, event: Event) -> None:
        """Count an event."""
        handle = self._handlers.get(type(event))
        if handle is not None:  # a newer server may know more kinds
            self._latest[type(event)].append(event)
            handle(event)

    # What happened.

    def _checked_in(self, event: CheckedIn) -> None:
        population = self._population(event.population)
        population.total += 1
        population.series.count(event.at)
        population.offers[event.offered] += 1
        sessions = self._sessions
        sessions[event.session_id] = [self._version(event.client_version), event.offered, 0]
        if len(sessions) > SESSIONS:
            del sessions[next(iter(sessions))]

    def _rejected(self, event: Rejected) -> None:
        population = self._population(event.population)
        population.rejected[event.reason] += 1
        session = self._sessions.pop(event.session_id, None)
        if session is None:
            population.total += 1
            population.series.count(event.at)
            version = self._version(event.client_version)
        else:
            version = session[0]
            if event.reason in _HAD_ASKED:
                population.asked[session[1]] += 1
        self.shapes.count(event.population, version, TURNED_AWAY)

    def _assigned(self, event: Assigned) -> None:
        population = self._population(event.population)
        population.assigned += 1
        self._task(event).seen.assigned += 1
        session = self._sessions.get(event.session_id)
        if session is not None:
            if not session[2]:
                population.asked[session[1]] += 1
            session[2] += 1

    def _contributed(self, event: Contributed) -> None:
        task = self._task(event)
        seen = task.seen
        seen.contributed += 1
        seen.bytes += event.size
        seen.last = event.at
        task.series.count(event.at)
        upload, fold = event.upload_seconds, event.fold_seconds
        task.times.append((max(0.0, event.seconds - upload - fold), upload, fold))
        self._population(event.population).contributed += 1
        self.shapes.count(event.population, self._end(event.session_id), CONTRIBUTED)

    def _dropped(self, event: Dropped) -> None:
        lost = self._task(event).seen.lost
        lost[event.reached] = lost.get(event.reached, 0) + 1
        version = self._end(event.session_id) or self._version(event.client_version)
        self.shapes.count(event.population, version, shape_of_drop(event.reached, event.phase))
        self.failures.take(event, version)

    def _surplus(self, event: Surplus) -> None:
        late = self._task(event).seen.late
        late[event.reached] = late.get(event.reached, 0) + 1
        version = self._end(event.session_id)
        self.shapes.count(event.population, version, shape_of_late(event.reached))

    def _released(self, event: Released) -> None:
        population = self._population(event.population)
        population.releases += 1
        population.last = event.at
        population.figures = dict(event.figures)

    def _ledger_read(self, event: LedgerRead) -> None:
        population = self._population(event.population)
        population.releases, population.last = event.releases, event.last
        population.figures = dict(event.figures)

    def _opened(self, event: TaskOpened) -> None:
        self._task(event)
        self._population(event.population)

    # What is asked.

    def tasks(self, now: float) -> list[TaskSeen]:
        """Return what was seen of each task."""
        reached: dict[tuple[str, str], tuple[int, int]] = {}
        for name, population in self._populations.items():
            for counts, place in ((population.offers, 0), (population.asked, 1)):
                for offered, count in counts.items():
                    for name_of_task in offered:
                        pair = list(reached.get((name, name_of_task), (0, 0)))
                        pair[place] += count
                        reached[name, name_of_task] = (pair[0], pair[1])
        found = []
        for task in self._tasks.values():
            seen = task.seen
            seen.contributions = task.series.values(now)
            seen.times, seen.commits = list(task.times), list(task.commits)
            seen.offered, seen.eligible = reached.get((seen.population, seen.name), (0, 0))
            found.append(seen)
        return found

    def populations(self, now: float) -> list[PopulationSeen]:
        """Return what was seen of each population."""
        return [
            PopulationSeen(
                name,
                each.total,
                each.assigned,
                each.contributed,
                each.series.values(now),
                dict(each.rejected.most_common()),
                each.releases,
                each.last,
                each.figures,
            )
            for name, each in self._populations.items()
        ]

    def events(self) -> list[Seen]:
        """Return the last events of each kind, the latest first."""
        found = [_shown(event) for events in self._feed.values() for event in events]
        return sorted(found, key=lambda seen: -seen.at)

    # Inside.

    def _population(self, name: str) -> _Population:
        found = self._populations.get(name)
        if found is None:
            found = self._populations[name] = _Population()
            if len(self._populations) > POPULATIONS:
                self._populations.popitem(last=False)
        elif len(found.offers) > 1000:
            # Each set of tasks that was ever on offer together has a counter.
            found.offers, found.asked = _summed(found.offers), _summed(found.asked)
        return found

    def _task(self, event: Any) -> _Task:
        found = self._tasks.get(event.task_id)
        if found is None:
            found = self._tasks[event.task_id] = _Task(event)
            if len(self._tasks) > TASKS:
                self._tasks.popitem(last=False)
        return found

    def _end(self, session_id: str) -> str:
        """End an assignment of a session; return its client's version, if that is known."""
        session = self._sessions.get(session_id)
        if session is None:
            return ""
        session[2] -= 1
        if session[2] <= 0:
            del self._sessions[session_id]
        return str(session[0])

    def _version(self, text: str) -> str:
        """Return a version that a client may have made up, if it looks like one."""
        if text in self._versions:
            return text
        if not _VERSION.fullmatch(text):
            return "other" if text else "unknown"
        if len(self._versions) < _VERSIONS:
            self._versions.add(text)
            return text
        return "other"


def _summed(counts: Counter[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    """Return the same counts, by single names."""
    found: Counter[tuple[str, ...]] = Counter()
    for names, count in counts.items():
        for name in names:
            found[name,] += count
    return found


def _shown(event: Event) -> Seen:
    """Return an event for the feed."""
    text = ""
    if isinstance(event, Rejected):
        text = f"turned away: {event.reason}"
    elif isinstance(event, CheckedIn):
        text = f"offered {', '.join(event.offered[:3]) or 'nothing'}"
        if len(event.offered) > 3:
            text += f" and {len(event.offered) - 3} more"
    elif isinstance(event, Contributed):
        text = f"{event.size} bytes after {event.seconds:.1f} s"
    elif isinstance(event, Committed):
        text = f"{event.contributions} stored in {event.size} bytes, {1000 * event.seconds:.1f} ms"
    elif isinstance(event, Dropped):
        text = f"{event.phase} {event.code.name}: {event.message}"
    elif isinstance(event, Surplus):
        text = event.message
    elif isinstance(event, Released | LedgerRead):
        text = ", ".join(f"{name} {value:.4g}" for name, value in event.figures.items())
    elif isinstance(event, TaskOpened):
        text = f"wants {event.goal_count} contributions"
    elif isinstance(event, TaskClosed):
        text = f"{event.code.name}: {event.message}" if event.message else event.code.name
    name = getattr(event, "task_name", "")
    return Seen(event.at, type(event).__name__, event.population, name, text[:300])
