"""One picture of the whole server, a second old at most, for all who look."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from fcp_core.admin.messages import ListQuery, Population, Task
from fcp_core.plugins.pages import Site
from fcp_core.protocol.status import StatusError
from fcp_core.server.http.metrics import LAG_BUCKETS
from fcp_dashboard.facts import (
    STEPS,
    ErrorGroup,
    MemberSeen,
    PopulationSeen,
    Seen,
    Shape,
    TaskSeen,
    decode,
)
from fcp_dashboard.recorder import Recorder

#: For so many seconds one picture is shown to all.
AGE = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Snapshot(msgspec.Struct):
    """A picture of the server.

    :param at: when it was made, in seconds since the epoch.
    :param tasks: all tasks, or only the newest of those that are open, the oldest first.
    :param open_tasks: how many there are that have not ended, and *ended* how many have.
    :param problem: why it is older than it should be; ``""``: it is not.
    """

    at: float
    tasks: list[Task]
    populations: list[Population]
    members: list[MemberSeen]
    problem: str = ""
    open_tasks: int = 0
    ended: int = 0

    def tasks_seen(self) -> dict[str, TaskSeen]:
        """Return what all members saw of each task, by id."""
        if len(self.members) == 1:
            return {seen.task_id: seen for seen in self.members[0].tasks}
        found: dict[str, TaskSeen] = {}
        for member in self.members:
            for seen in member.tasks:
                known = found.get(seen.task_id)
                found[seen.task_id] = seen if known is None else _both(known, seen)
        return found

    def populations_seen(self) -> dict[str, PopulationSeen]:
        """Return what all members saw of each population, by name."""
        found: dict[str, PopulationSeen] = {}
        for member in self.members:
            for seen in member.populations:
                known = found.get(seen.name)
                found[seen.name] = seen if known is None else _both(known, seen)
        return found

    def shapes(self) -> list[Shape]:
        """Return the shapes of sessions that all members saw."""
        return [shape for member in self.members for shape in member.shapes]

    def errors(self) -> list[ErrorGroup]:
        """Return the groups of failures that all members saw, the most frequent first."""
        found: dict[tuple[str, ...], ErrorGroup] = {}
        for member in self.members:
            for group in member.errors:
                key = (group.population, group.task, group.phase, group.code, group.shape)
                known = found.get(key)
                found[key] = group if known is None else _both_errors(known, group)
        return sorted(found.values(), key=lambda group: -group.count)

    def events(self) -> list[Seen]:
        """Return the last events of all members, the latest first."""
        events = [event for member in self.members for event in member.events]
        return sorted(events, key=lambda event: -event.at)

    @property
    def since(self) -> float:
        """Since when events are counted."""
        return min((member.started for member in self.members), default=self.at)


class Snapshots:
    """Makes them when somebody looks, and one at a time.

    :param newest: how many open tasks are in them, the newest; None: all tasks, which costs more.
    """

    def __init__(
        self,
        site: Site,
        recorder: Recorder,
        newest: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._site = site
        self._recorder = recorder
        self._newest = newest
        self._clock = clock
        self._started = clock()
        self._last: Snapshot | None = None
        self._made = -AGE
        self._making: asyncio.Future[Snapshot] | None = None

    async def get(self) -> Snapshot:
        """Return one that is no older than :data:`AGE`, unless the server cannot make one."""
        if self._last is not None and time.monotonic() - self._made < AGE:
            return self._last
        if self._making is None:
            self._making = asyncio.ensure_future(self._make())
        try:
            return await asyncio.shield(self._making)
        finally:
            if self._making is not None and self._making.done():
                self._making = None

    async def _make(self) -> Snapshot:
        admin, now, newest = self._site.admin, self._clock(), self._newest
        others = asyncio.ensure_future(self._others())
        try:
            shown = await admin.list_tasks(ListQuery(ended=False, newest=newest))
            ended = await admin.list_tasks(ListQuery(ended=True, newest=newest and 1))
            populations = (await admin.list_populations()).populations
        except StatusError as error:
            others.cancel()
            problem = f"not all members of the server answer: {error.message}"
            if self._last is None:
                return Snapshot(now, [], [], [await self.here()], problem)
            return msgspec.structs.replace(self._last, problem=problem)
        members = [await self.here(), *await others]
        tasks = shown.tasks
        if newest is None:  # one that has ended meanwhile is in both
            both = {task.task_id: task for task in (*tasks, *ended.tasks)}
            tasks = sorted(both.values(), key=lambda task: task.created)
        counts = {"open_tasks": shown.total, "ended": ended.total}
        self._last = Snapshot(now, tasks, populations, members, **counts)
        self._made = time.monotonic()
        return self._last

    async def _others(self) -> list[MemberSeen]:
        found = []
        for body in await self._site.others("/dashboard/facts"):
            with contextlib.suppress(msgspec.MsgspecError):
                found.append(decode(body))
        return found

    async def here(self) -> MemberSeen:
        """Return what this member saw."""
        now, recorder = self._clock(), self._recorder
        measured = _summed(await self._site.metrics(_MEASURES))
        return MemberSeen(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            at=now,
            memory=_memory(),
            cpu=time.process_time(),
            lag=_buckets(measured.get("fcp_loop_lag_seconds", {}).get((), ())),
            requests=_requests(measured),
            gauges={
                name.removeprefix("fcp_"): value[0]
                for name in _GAUGES
                if (value := measured.get(name, {}).get(()))
            },
            tasks=recorder.tasks(now),
            populations=recorder.populations(now),
            shapes=recorder.shapes.all(),
            errors=recorder.failures.all(),
            events=recorder.events(),
        )


_GAUGES = ("fcp_in_flight_bytes", "fcp_connections", "fcp_sessions", "fcp_heartbeat_age_seconds")
#: The last one has no end, which JSON cannot say.
_LAG = (*LAG_BUCKETS, 1e9)
_MEASURES = (*_GAUGES, "fcp_loop_lag_seconds", "fcp_requests_total", "fcp_request_seconds")
_Measured = dict[str, dict[tuple[str, ...], list[float]]]


def _summed(dumps: Sequence[Mapping[str, Any]]) -> _Measured:
    """Return the sums of the series of several processes."""
    found: _Measured = {}
    for dump in dumps:
        for name in _MEASURES:
            table = found.setdefault(name, {})
            for labels, values in dump.get(name, ()):
                known = table.setdefault(tuple(labels), [0.0] * len(values))
                for place, value in enumerate(values):
                    known[place] += value
    return found


def _buckets(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return upper bounds and counts of a histogram of the loop's lag."""
    return list(zip(_LAG, values[: len(_LAG)], strict=False))


def _requests(measured: _Measured) -> dict[str, tuple[float, float, float]]:
    found: dict[str, list[float]] = {}
    for (route, status), values in measured.get("fcp_requests_total", {}).items():
        entry = found.setdefault(route, [0.0, 0.0, 0.0])
        entry[0] += values[0]
        entry[2] += values[0] if status.startswith("5") else 0.0
    for (route, *_), values in measured.get("fcp_request_seconds", {}).items():
        found.setdefault(route, [0.0, 0.0, 0.0])[1] += values[-1]
    return {route: (entry[0], entry[1], entry[2]) for route, entry in found.items()}


def _memory() -> int:
    """Return the bytes of memory that the process has."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError):
        return 0


def _both(one: Any, other: Any) -> Any:
    """Add up what two members saw of the same."""
    values: dict[str, Any] = {}
    for name in one.__struct_fields__:
        mine, theirs = getattr(one, name), getattr(other, name)
        if name == "figures":  # of the last release, wherever it was
            values[name] = mine if (one.last or 0.0) >= (other.last or 0.0) else theirs
        elif name == "releases":  # each knows of all that were booked when it read the ledger
            values[name] = max(mine, theirs)
        elif isinstance(mine, dict):
            values[name] = {
                key: mine.get(key, 0) + theirs.get(key, 0) for key in {**mine, **theirs}
            }
        elif isinstance(mine, list) and len(mine) == len(theirs) == STEPS:
            values[name] = [a + b for a, b in zip(mine, theirs, strict=True)]
        elif isinstance(mine, list):
            values[name] = [*mine, *theirs]
        elif isinstance(mine, int):
            values[name] = mine + theirs
        elif name == "last":
            values[name] = max(mine or 0.0, theirs or 0.0) or None
        else:
            values[name] = mine
    return type(one)(**values)


def _both_errors(one: ErrorGroup, other: ErrorGroup) -> ErrorGroup:
    return msgspec.structs.replace(
        one,
        count=one.count + other.count,
        first=min(one.first, other.first),
        last=max(one.last, other.last),
        versions={
            key: one.versions.get(key, 0) + other.versions.get(key, 0)
            for key in {**one.versions, **other.versions}
        },
    )
