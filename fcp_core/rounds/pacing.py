"""The figures behind pace steering: how many devices come, how many exist, when they are due.

No device is recognised. What is known is when check-ins came and which windows were handed out, and
that is enough: every device but a new one comes because of a window, and holds one window at a
time. Theory of operation, with time cut into slots of a minute:

* each window handed out is booked on the slots that it covers;
* of the devices that were due lately, the share that came says how many are awake: what is booked
  for the near future is scaled with it; of the far future it is assumed that all come;
* if more came than were due, the others were asleep when they were due, or nobody knew of them.
  More will follow, so that surplus is expected on top, less and less.
"""

from __future__ import annotations

import math
from collections import deque
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.wkt import Duration
from fcp_core.rounds.policies import RetryWindow

Slots: TypeAlias = npt.NDArray[np.float64]

#: Seconds over which the rate of check-ins is measured.
RATE_WINDOW = 60.0

#: Seconds in a slot.
SLOT = 60.0

#: How soon an open task is to have its devices, in seconds.
FILL_TIME = 60.0

#: How many slots ahead are kept account of: two days.
HORIZON = 2880

_PAST = 240  # slots behind that are kept
_RECENT = 10  # slots from which the share that comes and the surplus are measured
_SHARE_MEMORY = 3600.0  # seconds for which today's share says something of the future's
_SURPLUS_MEMORY = 10800.0
_HERD_MEMORY = 600.0  # a surplus above the usual rate is devices that failed and tried again
_OVERDUE_MEMORY = 2 * 86400.0  # who was due so long ago does not come any more
_NEEDS_MEMORY = 600.0

_LEAD = np.arange(HORIZON) * SLOT
_SHARE_DECAY = np.exp(-_LEAD / _SHARE_MEMORY)
_SURPLUS_DECAY = np.exp(-_LEAD / _SURPLUS_MEMORY)
_HERD_DECAY = np.exp(-_LEAD / _HERD_MEMORY)


class CheckInRate:
    """Counts check-ins over the last minute, second by second."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque()
        self._sum = 0

    def count(self, now: float, number: int = 1) -> None:
        """Count check-ins."""
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + number)
        else:
            self._seconds.append((second, number))
        self._sum += number
        self._forget(now)

    def rate(self, now: float) -> float:
        """Return check-ins a second over the last minute."""
        self._forget(now)
        return self._sum / RATE_WINDOW

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] <= now - RATE_WINDOW:
            self._sum -= self._seconds.popleft()[1]


class Pace:
    """The account of one population's check-ins and of the windows that were handed out."""

    def __init__(self) -> None:
        self._rate = CheckInRate()
        self._base: int | None = None
        self._due: Slots = np.zeros(_PAST + HORIZON + _PAST)
        self._came: Slots = np.zeros(_PAST + HORIZON + _PAST)
        self._at = _PAST  # where the current slot is
        self._overdue = 0.0
        self._needs = (0.0, 0.0)
        #: What happened and is not in the account yet: when, and the window that was handed out;
        #: None: a check-in. It is worked off once somebody asks, who mostly does not.
        self.later: list[tuple[float, RetryWindow | None]] = []

    def settle(self) -> None:
        """Bring the account up to date."""
        later, self.later = self.later, []
        for now, window in later:
            if window is None:
                self.came(now)
            else:
                self.handed_out(window, now)

    def came(self, now: float, number: int = 1) -> None:
        """Record check-ins."""
        self._advance(now)
        self._rate.count(now, number)
        self._came[self._at] += number

    def handed_out(self, window: RetryWindow, now: float, number: int = 1) -> None:
        """Record a window that *number* devices were given."""
        self._advance(now)
        assert self._base is not None  # set by advancing
        # Before the current slot is only where the clock was set back.
        start = max((now + window.delay_min) / SLOT - self._base, self._at)
        end = max((now + window.delay_max) / SLOT - self._base, start)
        last = min(int(end), len(self._due) - 1)
        first = min(int(start), last)
        if first == last:
            self._due[first] += number
            return
        share = number / (end - start)
        self._due[first] += share * (first + 1 - start)
        self._due[first + 1 : last] += share
        self._due[last] += share * (end - last)

    def instead(self, booked: RetryWindow, window: RetryWindow, at: float, now: float) -> None:
        """Record that a device follows another window than the one recorded for it.

        :param at: when the device was given both.
        """
        self._advance(now)
        # What is over cannot be taken back.
        if booked != window and now < at + booked.delay_min:
            self.handed_out(booked, at, -1)
            self.handed_out(window, at)

    def rate(self, now: float) -> float:
        """Return check-ins a second over the last minute."""
        self.settle()
        return self._rate.rate(now)

    def recent(self, seconds: float, now: float) -> float:
        """Return how many came in the last *seconds*, of at most four hours."""
        self._advance(now)
        slots = min(math.ceil(seconds / SLOT), _PAST)
        return float(self._came[self._at - slots + 1 : self._at + 1].sum())

    def population_size(self, now: float) -> float:
        """Estimate how many devices there are: those who are due, and those who were and sleep."""
        self._advance(now)
        return float(self._due[self._at :].sum() + self._overdue)

    def needs(self, missing: int, now: float) -> float:
        """Return how many contributions are wanted, remembering what was for some minutes.

        Between two rounds of a program no contribution is missing for a moment.

        :param missing: what the open tasks lack now.
        """
        value, at = self._needs
        self._needs = (max(missing, value * 0.5 ** ((now - at) / _NEEDS_MEMORY)), now)
        return self._needs[0]

    def forecast(self, usual: float, now: float) -> Slots:
        """Return how many check-ins are expected in this slot and each later one.

        :param usual: the check-ins a second that are usual; a surplus above it does not last.
        """
        due, share, surplus = self._measure(now)
        steady = min(surplus, usual * SLOT)
        share_then = 1 - (1 - share) * _SHARE_DECAY
        expected: Slots = due * share_then + steady * _SURPLUS_DECAY
        if surplus > steady:
            expected += (surplus - steady) * _HERD_DECAY
        return expected

    def _measure(self, now: float) -> tuple[Slots, float, float]:
        """Return what is due from now on, the share that comes, and the surplus a slot."""
        self._advance(now)
        due = self._due[self._at : self._at + HORIZON]
        lately = slice(self._at - _RECENT, self._at)
        was_due, came = float(self._due[lately].sum()), float(self._came[lately].sum())
        share = min(1.0, max(0.05, came / was_due)) if was_due >= 1 else 1.0
        return due, share, max(0.0, came - was_due) / _RECENT

    def _advance(self, now: float) -> None:
        """Let the current slot be the one of *now*; it does not go back."""
        if self.later:
            self.settle()
        slot = int(now // SLOT)
        if self._base is None or slot < self._base:
            # It begins, or the clock was set back by hours: the account moves along.
            self._base = slot - self._at
        steps = min(slot - self._base - self._at, len(self._due))
        while steps > 0:
            gone = min(steps, len(self._due) - self._at, _PAST)
            passed = slice(self._at, self._at + gone)
            change = float(self._due[passed].sum() - self._came[passed].sum())
            kept = math.exp(-gone * SLOT / _OVERDUE_MEMORY)
            # New devices come without having been due, and are no debt to be paid back.
            self._overdue = max(0.0, self._overdue * kept + change)
            self._at += gone
            steps -= gone
            if self._at >= 2 * _PAST:
                self._shift(self._at - _PAST)
        idle = slot - self._base - self._at
        if idle > 0:  # nothing was booked for so late
            self._overdue *= math.exp(-idle * SLOT / _OVERDUE_MEMORY)
            self._base += idle

    def _shift(self, slots: int) -> None:
        assert self._base is not None  # set before the first shift
        for values in (self._due, self._came):
            values[:-slots] = values[slots:]
            values[-slots:] = 0
        self._base += slots
        self._at -= slots


@lru_cache(maxsize=256)
def duration(seconds: float) -> Duration:
    """Return seconds as a Duration, to the nanosecond; it is shared: copy it."""
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


@lru_cache(maxsize=256)
def window_message(window: RetryWindow) -> common.RetryWindow:
    """Return a retry window as it goes over the wire; it is shared: copy it."""
    return common.RetryWindow(
        delay_min=duration(window.delay_min), delay_max=duration(window.delay_max)
    )
