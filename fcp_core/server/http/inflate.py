"""Undoes gzip step by step, into memory that is used again."""

from __future__ import annotations

import asyncio
import importlib
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.buffers import Buffers

#: Compressed bytes that are handed to the decompressor at once, and decompressed bytes that it
#: makes at once: they stay in the processor's cache until they are copied to where they belong, and
#: the memory of more than this would be fresh each time.
SLICE = 64 << 10
PIECE = 128 << 10
#: How each gzip member begins.
MAGIC = b"\x1f\x8b"


def _decompressor() -> Any:
    """Return the fastest module that has the interface of :mod:`zlib`."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:  # there is no wheel for every machine
        return zlib


_zlib = _decompressor()


class Output:
    """Decompressed bytes, in memory that is used again.

    What a ``bytearray`` takes in one thread and gives back in another is fresh each time, and then
    costs a tenth of the decompression.
    """

    def __init__(self, buffers: Buffers, size: int) -> None:
        self._buffers = buffers
        self._memory = buffers.take(size)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iadd__(self, made: bytes) -> Output:
        end = self._size + len(made)
        self._memory[self._size : end] = made
        self._size = end
        return self

    async def reserve(self, executor: Executor) -> int:
        """Return how many bytes may be added, of which there is at least one."""
        if self._size == len(self._memory):
            await self._move(2 * self._size, executor)
        return len(self._memory) - self._size

    async def whole(self, executor: Executor) -> memoryview:
        """Return all, in memory that is not much larger."""
        if len(self._memory) > self._size + self._size // 2:
            await self._move(self._size, executor)
        return self._memory[: self._size]

    async def _move(self, size: int, executor: Executor) -> None:
        # In a thread, with a copy that lets others run: 200 MB take a tenth of a second.
        memory = self._buffers.take(size)
        source, target = (np.frombuffer(m, np.uint8, self._size) for m in (self._memory, memory))
        await asyncio.get_running_loop().run_in_executor(executor, np.copyto, target, source)
        self._memory = memory


class Inflater:
    """Undoes gzip step by step; several members in a row are one body, as RFC 1952 says.

    :ivar on_piece: called by the thread that steps whenever it begins with another piece.
    """

    def __init__(self) -> None:
        self.on_piece: Callable[[], object] | None = None
        self._stream = _zlib.decompressobj(wbits=31)
        self._pieces: deque[memoryview] = deque()
        self._data = memoryview(b"")
        self._position = 0
        self._fed = self._taken = 0
        self._tail = b""
        self._filled = False
        self._begun = False

    @property
    def complete(self) -> bool:
        """Whether the last member has ended."""
        return bool(self._stream.eof)

    @property
    def waiting(self) -> int:
        """How many compressed bytes were not used yet; about, while another thread uses some."""
        return self._fed - self._taken + len(self._tail)

    def feed(self, piece: memoryview) -> None:
        """Give more input, also while another thread is in :meth:`step`, which then goes on."""
        self._fed += len(piece)
        self._pieces.append(piece)

    def step(self, room: int, output: bytearray | Output) -> bool:
        """Append up to *room* bytes to *output*; return False once the input is used up."""
        end = len(output) + room
        while len(output) < end:
            piece = self._tail or self._slice()
            if self._stream.eof:
                if not piece:
                    break
                self._stream = _zlib.decompressobj(wbits=31)
                self._begun = False
            elif not piece and not self._filled:
                break
            if piece and not self._begun:
                # Some decompressors wait for more before they look.
                if not MAGIC.startswith(bytes(piece[:2])):
                    raise StatusError(
                        Code.INVALID_ARGUMENT, "the body is not valid gzip: it begins differently"
                    )
                self._begun = True
            wanted = min(PIECE, end - len(output))
            try:
                made = self._stream.decompress(piece, wanted)
            except _zlib.error as error:
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"the body is not valid gzip: {error}"
                ) from None
            output += made
            # A full output may leave some more inside the stream, even without input.
            self._filled = len(made) == wanted
            self._tail = (
                self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            )
        else:
            return True
        return False

    def _slice(self) -> bytes | memoryview:
        """Return the next input; only so much, because the decompressor copies what it leaves."""
        if self._position == len(self._data):
            self._data = memoryview(b"")  # its memory may be used again
            if not self._pieces:
                self._position = 0
                return b""
            on_piece = self.on_piece  # which the other thread may take away
            if on_piece is not None:
                on_piece()
            self._data = self._pieces.popleft()
            self._position = 0
        piece = self._data[self._position : self._position + SLICE]
        self._position += len(piece)
        self._taken += len(piece)
        return piece
