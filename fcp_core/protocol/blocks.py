"""Blocks of memory of the operating system, of which parts can be given back.

What is large is handed on in views on such a block. Who is done with a part says so here, so that
memory holds the part that is worked on and not the whole.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
import weakref
from pathlib import Path

import numpy as np


class FileBlock(mmap.mmap):
    """A block that lies in a file: the system has in memory what is in use, and room for."""

    folder: Path

    def beside(self, size: int) -> memoryview:
        """Return a block of zeros in another file of its folder.

        :param size: in bytes.
        :raises OSError: if there is no room for it.
        """
        return BlockFile(size, self.folder).block(size)


class BlockFile:
    """A file without a name, which is written from its beginning and becomes a block then.

    :param size: how many bytes may be written.
    :param folder: where it lies.
    :ivar size: how many bytes may be written, as room is kept free for them.
    :raises OSError: if there is no room for it, or the system has no such files.
    """

    def __init__(self, size: int, folder: Path) -> None:
        if not hasattr(os, "posix_fallocate"):
            raise OSError("room in a file cannot be kept free here")
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 it is kept open
        self._folder = folder
        self.size = self._written = 0
        try:
            self.grow(size)
        except BaseException:
            self._file.close()
            raise

    def grow(self, more: int) -> None:
        """Keep room free for more bytes.

        :raises OSError: if there is none.
        """
        # Later there would be no error, but a signal that ends the process.
        os.posix_fallocate(self._file.fileno(), self.size, more)
        self.size += more

    def write(self, piece: memoryview) -> None:
        """Write what comes next."""
        while piece:
            count = self._file.write(piece)
            self._written += count
            piece = piece[count:]

    def block(self, size: int | None = None) -> memoryview:
        """Return what was written; the file goes when nobody looks at it any more.

        :param size: how many bytes instead, some of them zeros that nobody wrote.
        """
        try:
            descriptor = os.dup(self._file.fileno())
        finally:
            self._file.close()
        try:
            block = FileBlock(descriptor, self._written if size is None else size)
        except BaseException:
            os.close(descriptor)
            raise
        block.folder = self._folder
        array = np.frombuffer(block, np.uint8)
        weakref.finalize(array, _drop, descriptor).atexit = False
        return array.data  # every view on it holds the array, and nothing else does

    def close(self) -> None:
        """Drop what was written, unless it is a block. May be repeated."""
        if not self._file.closed:
            with contextlib.suppress(OSError):  # there is no descriptor left
                _drop(os.dup(self._file.fileno()))
            self._file.close()


def _drop(descriptor: int) -> None:
    """Drop a file in another thread: that takes long, and so does a block whose file is there."""
    threading.Thread(target=_truncate, args=(descriptor,), daemon=True).start()


def _truncate(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def rest(view: memoryview) -> None:
    """Note that a part is not read soon: if it lies in a file, it need not be in memory."""
    block = block_of(view)
    if isinstance(block, FileBlock):
        give_back(block, view)


def block_of(view: memoryview) -> mmap.mmap | None:
    """Return the block that a view is on, or None."""
    owner: object = view
    while isinstance(owner, memoryview | np.ndarray):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    return owner if isinstance(owner, mmap.mmap) else None


def give_back(block: mmap.mmap, view: memoryview) -> None:
    """Give back the memory of the pages that a view covers.

    They hold zeros afterwards, unless they lie in a file.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = _address(view) - _address(block)
    start = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (begin + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < stop:
        block.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _address(buffer: memoryview | mmap.mmap) -> int:
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address
