"""Time and waiting, passed in so that a test or a simulation can bring its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

#: By how much a clock is faster or slower while it comes to another date: a second in 2000.
SLEW = 0.0005


#: Returns the seconds since the machine started, those that it slept included if it can tell.
_steady: Callable[[], float] = time.monotonic
if hasattr(time, "CLOCK_BOOTTIME"):
    _steady = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class Clock(Protocol):
    """Tells the time in seconds since the epoch."""

    def now(self) -> float:
        """Return the time."""
        ...


class SystemClock:
    """The machine's clock, whose steps do not move what is due.

    It begins with the date and goes on by the clock that cannot be set, so that intervals are right
    whatever is done to the date. If the date is another one later, it runs :data:`SLEW` faster or
    slower until it shows that: dates become right, and a deadline moves by that share at most.

    :param date: returns seconds since the epoch.
    :param steady: returns seconds of a clock that only goes forward.
    """

    def __init__(
        self, date: Callable[[], float] = time.time, steady: Callable[[], float] = _steady
    ) -> None:
        self._date = date
        self._steady = steady
        self._lock = threading.Lock()
        self._began = self._last = steady()
        self._start = date()
        #: By how much it was slewed.
        self._slewed = 0.0

    def now(self) -> float:
        """Return the time; it never goes back."""
        with self._lock:
            steady = max(self._steady(), self._last)
            most, self._last = (steady - self._last) * SLEW, steady
            unslewed = self._start + (steady - self._began)
            self._slewed += min(most, max(-most, self._date() - unslewed - self._slewed))
            return unslewed + self._slewed


class ManualClock:
    """A clock that moves only when it is set, and only forward."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        """Return the time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward by *seconds*.

        :raises ValueError: if *seconds* is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock does not go back ({seconds} s)")
        self._now += seconds
