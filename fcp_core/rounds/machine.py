"""What machines are made of: an enforced table of moves, and the time that they are given.

A test or a simulation brings a time of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sized
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

S = TypeVar("S")


class InvalidTransition(Exception):  # noqa: N818 (it names what happened)
    """A machine was asked for something that cannot happen in its state."""


class Machine(Generic[S]):
    """Has a state, which only :meth:`move` changes, and only as the table allows.

    :cvar MOVES: the states that may follow each state.
    """

    __slots__ = ("_state",)

    MOVES: ClassVar[Mapping[Any, Collection[Any]]]

    def __init__(self, state: S) -> None:
        self._state = state

    if TYPE_CHECKING:

        @property
        def state(self) -> S:
            """The current state."""
            raise NotImplementedError

    else:
        # It is asked for everywhere: the same without a call of a function of ours.
        state = property(attrgetter("_state"), doc="The current state.")

    def move(self, state: S) -> None:
        """Change the state.

        :raises InvalidTransition: if the table does not allow it.
        """
        if state not in self.MOVES[self._state]:
            raise InvalidTransition(f"{self!r} cannot go from {self._state} to {state}")
        self._state = state


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
    Members of one server go by the date of what they share: :meth:`follow`.

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
        self._follows = False

    def now(self) -> float:
        """Return the time; it never goes back."""
        with self._lock:
            steady = max(self._steady(), self._last)
            most, self._last = (steady - self._last) * SLEW, steady
            unslewed = self._start + (steady - self._began)
            self._slewed += min(most, max(-most, self._date() - unslewed - self._slewed))
            return unslewed + self._slewed

    def follow(self, date: float) -> None:
        """Show the date of somebody else from now on, whatever this machine's is.

        The first time at once, so before anything is due; then as after a step.

        :param date: that it is there now, in seconds since the epoch.
        """
        with self._lock:
            steady = self._last = max(self._steady(), self._last)
            if not self._follows:
                self._follows, self._start, self._began, self._slewed = True, date, steady, 0.0
            self._date = lambda: date + self._steady() - steady


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


def follow(clock: Clock, date: float) -> None:
    """Have a clock of the system show the date that members share: see ``SystemClock.follow``."""
    if isinstance(clock, SystemClock):
        clock.follow(date)


class Signal:
    """An event that one part of a server announces and another one waits for.

    :ivar waiting: those who wait; while there is nobody, it need not be announced.
    """

    def __init__(self) -> None:
        self.waiting: Sized = ()
        self._call: Callable[[], None] | None = None

    def connect(self, call: Callable[[], None], waiting: Sized) -> None:
        """Call *call* at each announcement while somebody is *waiting*."""
        self._call, self.waiting = call, waiting

    def __call__(self) -> None:
        """Announce it."""
        if self.waiting and self._call is not None:
            self._call()
