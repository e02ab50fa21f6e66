"""Large uploads come one after another, as long as that is quick."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from fcp_core.server.services.task_parts import LARGE

#: None waits longer than this for the end of one before it, in seconds: that may be a slow device.
PATIENCE = 5.0
#: How often one that waits looks, in seconds.
_PAUSE = 0.05


class LargeUploads:
    """Has a large upload wait until the one before it was received, aggregated and stored.

    :param kept: returns how many bytes of uploads were received and are not aggregated yet, or are
        large and not stored yet.
    :ivar coming: how many large uploads come at the moment.
    """

    def __init__(self, kept: Callable[[], int]) -> None:
        self._kept = kept
        self.coming = 0
        self._ended = 0
        self._waiting: deque[object] = deque()

    @property
    def awaited(self) -> bool:
        """Whether an upload waits."""
        return bool(self._waiting)

    async def begin(self, timeout: float) -> None:
        """Wait for the turn; :meth:`end` must follow.

        :param timeout: how long to wait at most, in seconds. It comes in any case then.
        """
        loop, turn = asyncio.get_running_loop(), object()
        until, seen, patient = loop.time() + timeout, -1, 0.0
        self._waiting.append(turn)
        try:
            while self._waiting[0] is not turn or self.coming or self._kept() >= LARGE:
                if self._ended != seen:
                    seen, patient = self._ended, loop.time() + PATIENCE
                if loop.time() >= min(until, patient):
                    break
                await asyncio.sleep(_PAUSE)
        finally:
            self._waiting.remove(turn)
        self.coming += 1

    def end(self) -> None:
        """Note that an upload has come, or never will."""
        self.coming -= 1
        self._ended += 1
