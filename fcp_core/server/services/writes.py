"""Writes that must not be given up: they are tried again until the storage takes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fcp_core.errors import plugin_errors
from fcp_core.protocol.status import Code, StatusError

logger = logging.getLogger("fcp.services")

T = TypeVar("T")

#: Seconds between two attempts: at first, and at most.
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 5.0
#: Seconds after which a write that goes on is a trouble too.
SLOW = 5.0


@dataclass(eq=False)
class _Write:
    what: str
    began: float = field(default_factory=time.monotonic)
    error: str = ""


class Writes:
    """The writes that are in progress.

    :ivar going: the same, in the order in which they began.
    """

    def __init__(self) -> None:
        self.going: dict[_Write, None] = {}

    async def until_done(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what *attempt* returns, which is tried again until it does.

        :param what: it is, for the log and for who watches.
        :param attempt: may have been done although it failed, so it must be safe to repeat.
        :raises StatusError: what *attempt* raises, unless that is UNAVAILABLE.
        """
        write = _Write(what)
        self.going[write] = None
        pause = _FIRST_PAUSE
        try:
            while True:
                try:
                    result = await attempt()
                    break
                except plugin_errors(awaited=True) as error:
                    # What says so itself will not be better the next time.
                    if isinstance(error, StatusError) and error.code is not Code.UNAVAILABLE:
                        raise
                    reason = str(error) or type(error).__name__
                    if reason != write.error:
                        logger.error("%s cannot be stored; we try again: %s", what, reason)
                    write.error = reason
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
        finally:
            del self.going[write]
        if write.error:
            logger.warning("%s: stored at last", what)
        return result

    def trouble(self) -> str:
        """Say what keeps the storage from taking what is written; ``""`` if nothing does."""
        for write in self.going:
            if write.error:
                return f"{write.what} cannot be stored: {write.error}"
        oldest = next(iter(self.going), None)
        seconds = 0.0 if oldest is None else time.monotonic() - oldest.began
        if oldest is None or seconds < SLOW:
            return ""
        return f"{oldest.what}: not written after {seconds:.0f} s"
