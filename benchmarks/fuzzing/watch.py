"""What the running process costs while it is fuzzed: its memory, and how long its loop stands."""

from __future__ import annotations

import asyncio
import os
import time

#: Seconds between two looks.
_EVERY = 0.005


class Watch:
    """Looks at the process from its event loop, again and again.

    A stall is the time from when a look was due until it came, or what the process computed
    meanwhile, if that is less: other programs on the machine make no stall.

    :ivar stall: the longest stall, in seconds.
    :ivar peak: the most resident memory since :meth:`begin`, in bytes; *base* is what it was then.
    """

    def __init__(self) -> None:
        self.stall = 0.0
        self.base = self.peak = memory()
        self._task = asyncio.get_running_loop().create_task(self._look())

    def begin(self) -> None:
        """Measure memory from now on."""
        self.base = self.peak = memory()

    def end(self) -> None:
        """Stop looking."""
        self._task.cancel()

    async def _look(self) -> None:
        while True:
            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.sleep(_EVERY)
            late = time.perf_counter() - wall - _EVERY
            self.stall = max(self.stall, min(late, time.process_time() - cpu))
            self.peak = max(self.peak, memory())


def memory() -> int:
    """Return the memory that the process has, in bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
