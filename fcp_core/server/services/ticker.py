"""Wakes the services when something is due, and only then."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable
from typing import Protocol

from fcp_core.errors import plugin_errors
from fcp_core.rounds.machine import Clock

logger = logging.getLogger("fcp.services")

#: The longest time slept at a stretch, in seconds: a bound on how late the ticker notices that the
#: machine slept, or that its clock was set and ours follows.
LONGEST = 3600.0


class Ticking(Protocol):
    """Something that has to be called as time passes."""

    def tick(self, now: float) -> None:
        """Do what is due."""
        ...

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        ...


class Ticker:
    """Calls back at given times of the clock.

    There is one timer of the event loop, set to the earliest time; with nothing due there is none.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: dict[str, tuple[float, Callable[[float], None]]] = {}
        self._heap: list[tuple[float, str]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin; call it on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._set_timer()

    def stop(self) -> None:
        """End; nothing is called back any more."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def register(self, key: str, machine: Ticking) -> Callable[[], None]:
        """Call a machine's ``tick`` whenever its ``next_tick`` says.

        :returns: to be called when ``next_tick`` may have changed.
        """

        def due(now: float) -> None:
            machine.tick(now)
            changed()

        def changed() -> None:
            self.at(key, machine.next_tick(), due)

        return changed

    def at(self, key: str, when: float | None, callback: Callable[[float], None]) -> None:
        """Call *callback* with the time once it is *when*; with None do not.

        :param key: replaces what was asked for with the same key.
        """
        if when is None:
            self._due.pop(key, None)
            return
        known = self._due.get(key)
        self._due[key] = (when, callback)
        if known is None or known[0] != when:
            heapq.heappush(self._heap, (when, key))
            self._set_timer()

    def run_due(self) -> None:
        """Call back whatever is due by the clock.

        A test that moves a clock of its own calls it; otherwise the timer does.
        """
        now = self._clock.now()
        due = []
        while (when := self._next()) is not None and when <= now:
            key = heapq.heappop(self._heap)[1]
            due.append((when, key, self._due.pop(key)[1]))
        # What they ask for has its turn later, even if it is due already: others come in between.
        for when, key, callback in due:
            try:
                callback(now)
            except plugin_errors():
                logger.exception("what was due at %.3f (%s) failed", when, key.partition(":")[0])
        self._set_timer()

    def _next(self) -> float | None:
        while self._heap:
            when, key = self._heap[0]
            if key in self._due and self._due[key][0] == when:
                return when
            heapq.heappop(self._heap)
        return None

    def _set_timer(self) -> None:
        if self._loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = self._next()
        if when is not None:
            delay = min(max(0.0, when - self._clock.now()), LONGEST)
            self._timer = self._loop.call_later(delay, self.run_due)
