"""Joining large pieces of bytes without stopping the other threads of the process."""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Iterable

from fcp_core.protocol.blocks import block_of, give_back, rest

#: From this size on, ``b"".join`` would keep all others waiting for too long.
LARGE = 8 << 20
#: Bytes that are copied before others may have their turn.
_STEP = 1 << 20


def join(pieces: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """Return what ``b"".join`` returns."""
    found = list(pieces)
    size = sum(map(len, found))
    if size < LARGE:
        return b"".join(found)
    whole = Whole(size)
    for piece in found:
        whole.add(piece)
    return whole.get()


class Whole:
    """Bytes of a known size, put together piece by piece; in memory once, and not a byte more.

    :param size: how many bytes there will be.
    """

    def __init__(self, size: int) -> None:
        # Nobody else has these bytes, so they are written to as they lie.
        self._bytes = io.BytesIO(bytes(size))

    def add(self, piece: bytes | bytearray | memoryview) -> None:
        """Put another piece behind those that are there.

        What lies in a file need not be in memory any more, once it is in here.
        """
        view = memoryview(piece)
        for start in range(0, len(view), _STEP):
            part = view[start : start + _STEP]
            self._bytes.write(part)
            rest(part)

    def get(self) -> bytes:
        """Return the bytes: those that came, if they were fewer or more than was said."""
        self._bytes.truncate()
        return self._bytes.getvalue()  # which is no copy


def move(view: memoryview) -> bytes:
    """Return the bytes of a view that nobody reads afterwards: large ones are in memory once."""
    block = block_of(view)
    if block is None or len(view) < LARGE:
        return bytes(view)
    whole = Whole(len(view))
    for start in range(0, len(view), _STEP):
        piece = view[start : start + _STEP]
        whole.add(piece)
        give_back(block, piece)
    return whole.get()


def read_in_place(readinto: Callable[[memoryview], int], size: int, step: int) -> bytes:
    """Read bytes to where they stay; memory is taken as they come.

    :param readinto: fills a buffer as far as it goes, and returns how far.
    :param step: the most bytes that are read at once.
    :returns: the bytes that there were.
    """
    whole, at, more = io.BytesIO(bytes(size)), 0, 1
    try:
        with whole.getbuffer() as view:
            while more and at < size:
                with view[at : at + step] as piece:
                    more = readinto(piece)
                at += more
    except BaseException as error:
        _let_go(error)
        raise
    whole.truncate(at)
    return whole.getvalue()  # which is no copy


def _let_go(error: BaseException | None) -> None:
    """Take from an error's frames what they hold of a buffer.

    Who keeps the error keeps it, and a buffer that is collected before what reads it complains.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
