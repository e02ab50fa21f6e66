"""Whose turn it is when there is little room for the bodies that are received, or little time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

#: Bytes that are read straight off the socket at once.
PART = 256 << 10
#: How long an upload waits before it looks whether there is room, in seconds, if nobody says so.
PAUSE = 0.05
#: A body of which nothing came for so many seconds is not waited for.
LIVELY = 1.0


class BodyQueue:
    """Says which of the bodies that are received may begin, and which go on.

    :param limit: how many bytes there may be of all.
    :param room: returns how many may come now.
    :param on_behind: called with whether more than *limit* bytes wait to begin, when that changes.
    :ivar missing: how much is missing of the bodies that come and are waited for.
    :ivar paused: those who wait to begin or to go on, with what ends their wait.
    """

    def __init__(
        self, limit: int, room: Callable[[], int], on_behind: Callable[[bool], None]
    ) -> None:
        self._limit = limit
        self._room = room
        self._on_behind = on_behind
        #: Those who may not begin yet, in order, and how many bytes they announced.
        self._line: deque[object] = deque()
        self._lined = 0
        self.missing: dict[object, int] = {}
        self.paused: dict[object, asyncio.Future[None]] = {}
        #: When something last came of the bodies that come.
        self._came: dict[object, float] = {}

    def goes_on(self, body: object, missing: int) -> bool:
        """Whether more of a body is to be read now; if not, it asks again after :meth:`pause`.

        What the body that lacks the least still lacks is left free by all others, so that one after
        the other becomes complete; what is merely announced takes nothing from anybody.

        :param missing: how much is still to come of it; 0: it is over.
        """
        if not missing:
            self.missing.pop(body, None)
            self._came.pop(body, None)
            self.look()
            return True
        self.missing[body], self._came[body] = missing, time.monotonic()
        size, room = min(PART, missing), self._room()
        if size + missing <= room:  # and what the first one lacks is no more
            return True
        first = min(self.missing, key=self.missing.__getitem__)
        if body is first:
            # The others may have a part each that was not counted when they asked.
            return size <= room + PART * (len(self.missing) - 1)
        return size + self.missing[first] <= room

    async def pause(self, who: object) -> None:
        """Wait until there may be room, and not longer than :data:`PAUSE`."""
        loop = asyncio.get_running_loop()
        news = self.paused[who] = loop.create_future()
        timer = loop.call_later(PAUSE, self._wake, who)
        try:
            await news
        finally:
            timer.cancel()
            del self.paused[who]

    def look(self) -> None:
        """Have those that wait ask again, for there may be more room: as many as it is enough for.

        First those that lack the least.
        """
        room = self._room()
        begun = [body for body in self.paused if body in self.missing]
        for body in sorted(begun, key=self.missing.__getitem__):
            self._wake(body)
            room -= self.missing[body]
            if room <= 0:
                return
        if self._line:
            self._wake(self._line[0])

    async def wait(self, size: int, timeout: float) -> None:
        """Wait until a body of *size* bytes may begin; those who came before are first.

        That is when there is room for it and for what is missing of those that come, so that few
        at a time become complete, and not many by halves. Whoever announces much and sends nothing
        keeps nobody out.

        :param timeout: how long to wait at most, in seconds; taking then fails.
        """
        if not self._line and self._has_room(size):
            return
        turn, until = object(), time.monotonic() + timeout
        self._line.append(turn)
        self._queue(size)
        try:
            while time.monotonic() < until:
                if self._line[0] is turn and self._has_room(size):
                    return
                await self.pause(turn)
        finally:
            self._line.remove(turn)
            self._queue(-size)
            self.look()

    def _has_room(self, size: int) -> bool:
        since = time.monotonic() - LIVELY
        coming = (
            missing
            for body, missing in self.missing.items()
            if self._came[body] > since or body in self.paused
        )
        return size + sum(coming) <= self._room()

    def _queue(self, more: int) -> None:
        before = self._lined > self._limit
        self._lined += more
        behind = self._lined > self._limit
        if behind is not before:
            self._on_behind(behind)

    def _wake(self, who: object) -> None:
        news = self.paused.get(who)
        if news is not None and not news.done():
            news.set_result(None)


class OneATurn:
    """Lets one after the other do what takes milliseconds: one in a turn of the event loop.

    Others that are ready in the same turn wait, and what is due comes in between.
    """

    def __init__(self) -> None:
        self._busy = False
        self._line: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Wait for a turn in which nobody else does it."""
        loop = asyncio.get_running_loop()
        if self._busy:
            turn = loop.create_future()
            self._line.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was ours already
                    self._next()
                raise
        self._busy = True
        loop.call_soon(self._next)

    def _next(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False
