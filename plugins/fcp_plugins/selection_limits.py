"""The policies that limit another one: ``rate_capped`` and ``time_windows``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.rounds.policies import (
    Assign,
    Decision,
    OpenTask,
    Reject,
    RetryWindow,
    Selection,
    SelectionPolicy,
    SelectionView,
    choose_at_most,
)

#: Into how many parts the period of a rate cap is divided: assignments are remembered by the part
#: they fell into, which counts until its end is one period ago.
_PARTS = 60

#: Who would have to wait longer until anybody is assigned is sent away, in seconds.
WAIT = 60.0

_DAY = 86400
_WEEK = 7 * _DAY
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
#: The epoch was a Thursday.
_EPOCH_DAY = 3


class RateCappedPolicy(SelectionPolicy):
    """Lets another policy choose, but never more than so many devices in any period.

    The state holds when how many were assigned to which name, and the inner policy's state.

    :param period: in seconds.
    :param limit: how many devices in a period; None: any number.
    :param task_limit: the same for the tasks of one name.
    :param wait: who would have to wait longer, in seconds, is rejected.
    :raises UsageError: if there is neither limit.
    """

    def __init__(
        self,
        inner: SelectionPolicy,
        period: float,
        limit: int | None,
        task_limit: int | None,
        wait: float = WAIT,
    ) -> None:
        if limit is None and task_limit is None:
            raise UsageError(
                "[fcp:selection.rate_capped]: neither limit nor task_limit is set; "
                "set at least one of them."
            )
        self._inner = inner
        self._period = period
        self._limit = limit
        self._task_limit = task_limit
        self._wait = wait

    def select(self, view: SelectionView) -> Selection:
        """Decide."""
        state = view.state or {"parts": [], "inner": None}
        log = _Log(state["parts"], self._period, view.now)
        shown, total = self._shown(view.tasks, log)
        names = {task.name for task in shown}
        candidates = [c for c in view.candidates if c.eligible_for_any(names)]
        selection = Selection(state=state["inner"])
        if candidates and shown:
            inner_view = replace(view, candidates=candidates, tasks=shown, state=state["inner"])
            selection = choose_at_most(total, self._inner, inner_view)
        decisions = list(selection.decisions)
        name_of = {task.task_id: task.name for task in view.tasks}
        for decision in decisions:
            if isinstance(decision, Assign):
                log.add(name_of[decision.task_id])
        ticks = [] if selection.tick_in is None else [selection.tick_in]
        decided = {decision.candidate for decision in decisions}
        waits = {task.name: self._until(task.name, log) for task in view.tasks}
        for candidate in view.candidates:
            if candidate.id in decided:
                continue
            until = min(
                (wait for name, wait in waits.items() if candidate.eligible(name)), default=0.0
            )
            if until > self._wait:
                window = RetryWindow(until, until + self._period / _PARTS)
                decisions.append(Reject(candidate.id, window))
            elif until > 0:
                ticks.append(until)
        return Selection(
            decisions,
            {"parts": log.parts, "inner": selection.state},
            min(ticks, default=None),
        )

    def _shown(self, tasks: Sequence[OpenTask], log: _Log) -> tuple[list[OpenTask], int | None]:
        """Return the tasks with the room that the limits leave, and the room in all."""
        total = None if self._limit is None else max(0, self._limit - log.count())
        free: dict[str, int] = {}
        shown = []
        for task in tasks:
            room = task.capacity
            if self._task_limit is not None:
                left = free.setdefault(task.name, self._task_limit - log.count(task.name))
                room = min(room, left)
                free[task.name] -= max(0, room)
            if total is not None:
                room = min(room, total)
            if room > 0:
                shown.append(replace(task, capacity=room))
        return shown, total

    def _until(self, name: str, log: _Log) -> float:
        """Return in how many seconds a task of that name may be given again."""
        waits = [0.0]
        if self._limit is not None and log.count() >= self._limit:
            waits.append(log.frees(None))
        if self._task_limit is not None and log.count(name) >= self._task_limit:
            waits.append(log.frees(name))
        return max(waits)


class _Log:
    """How many devices were assigned lately, by part of the period and task name."""

    def __init__(self, parts: Sequence[Any], period: float, now: float) -> None:
        self._now = now
        self._period = period
        self._part = period / _PARTS
        self.parts = [[part, dict(names)] for part, names in parts if self._ends(part) > now]

    def _ends(self, part: int) -> float:
        return (part + 1) * self._part + self._period

    def count(self, name: str | None = None) -> int:
        if name is None:
            return sum(sum(names.values()) for _, names in self.parts)
        return sum(names.get(name, 0) for _, names in self.parts)

    def add(self, name: str) -> None:
        part = int(self._now // self._part)
        if not self.parts or self.parts[-1][0] != part:
            self.parts.append([part, {}])
        names = self.parts[-1][1]
        names[name] = names.get(name, 0) + 1

    def frees(self, name: str | None) -> float:
        """Return in how many seconds the oldest assignment stops to count."""
        oldest = next(part for part, names in self.parts if name is None or name in names)
        return self._ends(oldest) - self._now


@dataclass(frozen=True)
class WeekWindows:
    """When it is open: parts of the week, in seconds from its beginning on a clock of its own.

    :param offset: what that clock is ahead of UTC, in seconds.
    """

    spans: tuple[tuple[int, int], ...]
    offset: int

    def until_open(self, now: float) -> float:
        """Return seconds until it opens; 0 if it is open."""
        week = (now + self.offset + _EPOCH_DAY * _DAY) % _WEEK
        # One that began before the week's end may go on after it.
        if any(a <= week < b or a <= week + _WEEK < b for a, b in self.spans):
            return 0.0
        return min((start - week) % _WEEK for start, _ in self.spans)


class TimeWindowsPolicy(SelectionPolicy):
    """Lets another policy choose at some times, and nobody at others.

    Its state is the inner policy's.

    :param wait: who would have to wait longer, in seconds, is rejected.
    """

    def __init__(self, inner: SelectionPolicy, windows: WeekWindows, wait: float = WAIT) -> None:
        self._inner = inner
        self._windows = windows
        self._wait = wait

    def select(self, view: SelectionView) -> Selection:
        """Decide."""
        until = self._windows.until_open(view.now)
        if until <= 0:
            return self._inner.select(view)
        if until <= self._wait:
            return Selection(state=view.state, tick_in=until)
        retry = RetryWindow(until, until + self._wait)
        decisions: list[Decision] = [Reject(candidate.id, retry) for candidate in view.candidates]
        return Selection(decisions, view.state)


def parse_windows(windows: Sequence[str], days: Sequence[str], utc_offset: str) -> WeekWindows:
    """Read the options of ``time_windows``.

    :param windows: ``HH:MM-HH:MM``; one that ends before it begins goes on into the next day.
    :param days: the days on which windows begin; empty: all.
    :param utc_offset: ``+HH:MM`` or ``-HH:MM``.
    :raises UsageError: if one of them is not of its form, or there is no window.
    """

    def bad(option: str, item: str, wanted: str) -> UsageError:
        return UsageError(f"[fcp:selection.time_windows] {option}: {item!r} is not {wanted}.")

    sign = re.fullmatch(r"([+-])(\d\d):([0-5]\d)", utc_offset.strip())
    if sign is None or int(sign[2]) > 14:
        raise bad("utc_offset", utc_offset, "an offset such as +02:00 or -05:30")
    offset = (int(sign[2]) * 3600 + int(sign[3]) * 60) * (-1 if sign[1] == "-" else 1)
    for day in days:
        if day.lower() not in _DAYS:
            raise bad("days", day, f"one of {', '.join(_DAYS)}")
    begins = [i for i, day in enumerate(_DAYS) if not days or day in {d.lower() for d in days}]
    spans = []
    for window in windows:
        times = re.fullmatch(r"(\d\d):([0-5]\d)\s*-\s*(\d\d):([0-5]\d)", window)
        if times is None:
            raise bad("windows", window, "a window such as 22:00-06:00")
        start, end = (int(times[i]) * 3600 + int(times[i + 1]) * 60 for i in (1, 3))
        if start >= _DAY or end > _DAY or start == end:
            raise bad("windows", window, "a window within 00:00-24:00 that has a length")
        length = end - start if end > start else end + _DAY - start
        spans += [(day * _DAY + start, day * _DAY + start + length) for day in begins]
    if not spans:
        raise bad("windows", "", "at least one window")
    return WeekWindows(tuple(spans), offset)
