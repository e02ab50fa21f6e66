"""Memory for the bodies of uploads, used again and again.

The kernel fills fresh memory with zeros page by page, which for a large body costs about as much as
receiving it. So a body's memory comes back here once nobody looks at it any more: not by a call
that somebody could forget or make too early, but when the last view on it is gone, be it the
service's, the fold's or that of an aggregator that keeps its inputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fcp_core.protocol.blocks import BlockFile

#: The most bytes that are kept while nobody uses them.
KEPT = 64 << 20
#: Seconds for which one block that is larger than that waits for a body that waits for it.
SPARE = 1.0
#: Seconds after which memory that nobody used goes back to the operating system.
IDLE = 5.0
#: Memory goes back to the operating system in steps of so many bytes: it takes milliseconds a
#: megabyte, in which nothing else runs.
STEP = 4 << 20
#: Sizes are rounded up to this many bytes, so that bodies of about one size share memory.
GRAIN = 64 << 10


class Buffers:
    """Lends memory; its methods are the event loop's.

    :param kept: the most bytes to keep for later, and of a body that is in memory.
    :param time: tells seconds.
    :param awaited: whether somebody waits for the memory of a large body.
    :param folder: where bodies lie that are larger than that; None: in memory.
    """

    def __init__(
        self,
        kept: int = KEPT,
        *,
        time: Callable[[], float] = time.monotonic,
        awaited: Callable[[], bool] = lambda: False,
        folder: Path | None = None,
    ) -> None:
        self.kept = kept
        self._folder = folder
        self._awaited = awaited
        self._time = time
        #: What came back, from any thread, even in the middle of a method of this class.
        self._returned: deque[tuple[float, mmap.mmap]] = deque()
        #: What is free, and since when; oldest first.
        self._free: list[tuple[float, mmap.mmap]] = []
        #: A block that is too large to be kept for long.
        self._spare: mmap.mmap | None = None
        #: How much is lent, as far as what came back was put among what is free.
        self._lent = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def free(self) -> int:
        """How many bytes wait for their next use."""
        self._collect()
        return sum(len(block) for _, block in self._free)

    def take(self, size: int) -> memoryview:
        """Return writable memory of *size* bytes, at the beginning of a page.

        It holds whatever was in it before, and comes back by itself.
        """
        self._collect()
        self._loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE, self._tick)
        wanted = -(-max(size, 1) // GRAIN) * GRAIN
        block = self._find(wanted) or _fresh(wanted)
        array = np.frombuffer(block, np.uint8, size)
        self._lent += 1
        weakref.finalize(array, self._take_back, block).atexit = False
        return array.data  # every view on it holds the array, and nothing else does

    def file(self, size: int) -> BlockFile | None:
        """Return a file for a body that is larger than what is kept; None if there is no room.

        Unlike the others, for a thread.
        """
        if self._folder is None:
            return None
        try:
            return BlockFile(size, self._folder)
        except OSError:
            return None  # then memory has to do

    def close(self) -> None:
        """Free all memory that is not in use, and keep none from now on."""
        self._closed = True
        self._spare = None
        self._free.clear()
        self._returned.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def trim(self) -> None:
        """Give back to the operating system what nobody used for :data:`IDLE` seconds."""
        self._collect()
        since = self._time() - IDLE
        idle = [block for when, block in self._free if when <= since]
        self._free = [entry for entry in self._free if entry[0] > since]
        _release(idle)

    def _tick(self) -> None:
        self.trim()
        # With nothing to look after there is no timer until something is lent again.
        again = bool(self._free or self._lent)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(IDLE, self._tick) if again else None

    def _find(self, wanted: int) -> mmap.mmap | None:
        """Return free memory that is large enough and not much larger; the newest is warm."""
        spare = self._spare
        if spare is not None and wanted <= len(spare) <= wanted + wanted // 4:
            self._spare = None
            return spare
        for index in reversed(range(len(self._free))):
            if wanted <= len(self._free[index][1]) <= wanted + wanted // 4:
                return self._free.pop(index)[1]
        return None

    def _take_back(self, block: mmap.mmap) -> None:
        if self._closed:
            return
        self._returned.append((self._time(), block))
        if len(block) > self.kept and self._loop is not None:
            # Nobody will have it again, or one who waits: it need not wait for the next look.
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._collect)

    def _drop(self, which: int) -> None:
        """Free the spare block, unless it found its use."""
        spare = self._spare
        if spare is not None and id(spare) == which:
            self._spare = None
            beyond = [spare]
            del spare
            _release(beyond)

    def _collect(self) -> None:
        """Keep the memory that came back, within the bound."""
        beyond = []
        while self._returned:
            when, block = self._returned.popleft()
            self._lent -= 1
            if len(block) > self.kept and self._spare is None and self._awaited():
                assert self._loop is not None  # it was set when the block was lent
                self._spare = block
                self._loop.call_later(SPARE, self._drop, id(block))
            elif len(block) > self.kept:
                beyond.append(block)
            else:
                self._free.append((when, block))
            del block  # or it would go back here, when the thread has let go of it
        free = sum(len(block) for _, block in self._free)
        while free > self.kept:
            beyond.append(self._free.pop(0)[1])
            free -= len(beyond[-1])
        _release(beyond)


def _fresh(size: int) -> mmap.mmap:
    """Return memory of its own, which goes back to the operating system when it is dropped."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _release(blocks: list[mmap.mmap]) -> None:
    """Give memory back: large blocks in a thread, step by step, so that nobody waits for them."""
    if hasattr(mmap, "MADV_DONTNEED") and any(len(block) > STEP for block in blocks):
        threading.Thread(target=_release_slowly, args=(blocks,), daemon=True).start()


def _release_slowly(blocks: list[mmap.mmap]) -> None:
    while blocks:
        block = blocks.pop()
        for start in range(0, len(block), STEP):
            block.madvise(mmap.MADV_DONTNEED, start, min(STEP, len(block) - start))
            time.sleep(0)  # the others first
