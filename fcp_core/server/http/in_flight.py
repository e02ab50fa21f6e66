"""What is being received: how many bytes, and whose turn it is when there is little room."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from fcp_core.protocol.status import Code, StatusError

#: Bytes that are read straight off the socket at once.
PART = 256 << 10
#: How long an upload waits before it looks whether there is room, in seconds, if nobody says so.
PAUSE = 0.05
#: A body of which nothing came for so many seconds is not waited for.
LIVELY = 1.0


class InFlight:
    """Counts the bytes of the bodies that are being received, as they come, and bounds them.

    :param free: as many bytes of each body are not counted.
    :param beside: count among these, as uploads do. They must leave room for what *waiting* says;
        calls need not: it is a submission that makes room.
    :param waiting: returns how many bytes of uploads wait to be submitted or folded.
    :param on_behind: called with whether more than *limit* bytes wait to begin, when that changes.
    :ivar held: how many bytes there are; those that count beside have none of their own.
    :ivar readers: how many bodies are being read straight off their sockets.
    """

    def __init__(
        self,
        limit: int,
        free: int = 0,
        *,
        beside: InFlight | None = None,
        waiting: Callable[[], int] | None = None,
        on_behind: Callable[[bool], None] = lambda behind: None,
    ) -> None:
        self.limit = limit
        self.free = free
        self.held = 0
        self.readers = 0
        self._pool = self if beside is None else beside
        self._waiting = waiting
        #: Those who may not begin yet, in order, and how many bytes they announced.
        self._line: deque[object] = deque()
        self._lined = 0
        self._on_behind = on_behind
        #: How much is missing of the bodies that come and are waited for.
        self._missing: dict[object, int] = {}
        #: Those of both who wait, with what ends their wait.
        self._paused: dict[object, asyncio.Future[None]] = {}
        #: When something last came of the bodies that come.
        self._came: dict[object, float] = {}

    def goes_on(self, body: object, missing: int) -> bool:
        """Whether more of a body is to be read now; if not, it asks again after :meth:`pause`.

        What the body that lacks the least still lacks is left free by all others, so that one after
        the other becomes complete; what is merely announced takes nothing from anybody.

        :param missing: how much is still to come of it; 0: it is over.
        """
        if not missing:
            self._missing.pop(body, None)
            self._came.pop(body, None)
            self.look()
            return True
        self._missing[body], self._came[body] = missing, time.monotonic()
        size, room = min(PART, missing), self.room()
        if size + missing <= room:  # and what the first one lacks is no more
            return True
        first = min(self._missing, key=self._missing.__getitem__)
        if body is first:
            # The others may have a part each that was not counted when they asked.
            return size <= room + PART * (len(self._missing) - 1)
        return size + self._missing[first] <= room

    async def pause(self, who: object) -> None:
        """Wait until there may be room, and not longer than :data:`PAUSE`."""
        loop = asyncio.get_running_loop()
        news = self._paused[who] = loop.create_future()
        timer = loop.call_later(PAUSE, self._wake, who)
        try:
            await news
        finally:
            timer.cancel()
            del self._paused[who]

    def look(self) -> None:
        """Have those that wait ask again, for there may be more room: as many as it is enough for.

        First those that lack the least.
        """
        if not self._paused:
            return
        room = self.room()
        begun = [body for body in self._paused if body in self._missing]
        for body in sorted(begun, key=self._missing.__getitem__):
            self._wake(body)
            room -= self._missing[body]
            if room <= 0:
                return
        if self._line:
            self._wake(self._line[0])

    def take(self, size: int) -> None:
        """Count *size* bytes more.

        :raises StatusError: UNAVAILABLE if that is over the limit; nothing is counted then.
        """
        self.admit(size)
        self.force(size)

    def force(self, size: int) -> None:
        """Count *size* bytes more, even if that is over the limit."""
        self._pool.held += size

    def admit(self, size: int) -> None:
        """Check that there is room for *size* bytes now; what is announced is not counted.

        :raises StatusError: as :meth:`take`.
        """
        room = self.room()
        if size > room:
            raise StatusError(
                Code.UNAVAILABLE,
                f"the server holds {self.limit - room} bytes of requests and takes "
                f"{self.limit} at a time; send these {size} bytes again later",
            )

    def give_back(self, size: int) -> None:
        """Release *size* bytes."""
        self._pool.held -= size
        self.look()

    def room(self) -> int:
        """Return how many bytes more may be taken."""
        waiting = 0 if self._waiting is None else self._waiting()
        return self.limit - self._pool.held - waiting

    async def wait(self, size: int, timeout: float) -> None:
        """Wait until a body of *size* bytes may begin; those who came before are first.

        That is when there is room for it and for what is missing of those that come, so that few
        at a time become complete, and not many by halves. Whoever announces much and sends nothing
        keeps nobody out. What could never be taken is not waited for: taking it says why.

        :param timeout: how long to wait at most, in seconds; taking then fails.
        """
        if size > self.limit or (not self._line and self._has_room(size)):
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
            for body, missing in self._missing.items()
            if self._came[body] > since or body in self._paused
        )
        return size + sum(coming) <= self.room()

    def _queue(self, more: int) -> None:
        before = self._lined > self.limit
        self._lined += more
        behind = self._lined > self.limit
        if behind is not before:
            self._on_behind(behind)

    def _wake(self, who: object) -> None:
        news = self._paused.get(who)
        if news is not None and not news.done():
            news.set_result(None)
