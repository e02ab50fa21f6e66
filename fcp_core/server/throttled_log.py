"""Says in the log what happens to many devices: at once, and then once a minute with a count."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from fcp_core.rounds.text import clean

logger = logging.getLogger("fcp.server")

#: Seconds between two lines of one kind, and how many kinds there are at most.
EVERY, KINDS = 60.0, 1000


class ThrottledLog:
    """The reasons for which devices are turned away, each said seldom.

    :param clock: tells the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Of each kind when it was said last, and how often it was not since.
        self._kinds: dict[str, tuple[float, int]] = {}

    def warn(self, kind: str, reason: str) -> None:
        """Say why a device is turned away, unless something of this kind was said just now.

        :param kind: no word of a device's, or there would be too many kinds.
        """
        now = self._clock()
        last, more = self._kinds.get(kind, (-math.inf, 0))
        if now - last < EVERY:
            self._kinds[kind] = (last, more + 1)
            return
        if len(self._kinds) >= KINDS:
            self._kinds.clear()
        self._kinds[kind] = (now, 0)
        before = f" ({more} more since this was said last)" if more else ""
        logger.warning("a device is turned away: %s%s", clean(reason), before)
