"""Time and waiting, passed in so that a test or a simulation can bring its own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time in seconds since the epoch."""

    def now(self) -> float:
        """Return the time."""
        ...


class SystemClock:
    """The machine's clock."""

    now = staticmethod(time.time)


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
