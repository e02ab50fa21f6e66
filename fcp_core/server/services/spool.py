"""Large data that is sent again and again, kept in a file that nobody else sees."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

#: What is smaller than this stays in memory.
SPOOLED = 32 << 20
#: Bytes that are written at once.
_PIECE = 4 << 20


class Spooled:
    """Bytes in a file without a name: the system drops it with this object, or with the process.

    :param folder: where it lies; None: where temporary files do.
    :raises OSError: if it cannot be written there.
    """

    def __init__(self, data: bytes, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 it is kept open
        self._size = len(data)
        # Not by the collector, which would warn.
        weakref.finalize(self, self._file.close).atexit = False
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            while piece:
                piece = piece[self._file.write(piece) :]

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self.read(0, self._size)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from *start* until before *stop*."""
        parts = []
        while start < stop and (part := os.pread(self._file.fileno(), stop - start, start)):
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def spooled(data: bytes, folder: Path | None) -> bytes | Spooled:
    """Return data in a file if it is large, and can be written to one."""
    if len(data) < SPOOLED:
        return data
    try:
        return Spooled(data, folder)
    except OSError:
        # A full disk, or a host where nothing can be written: then memory has to do.
        return data
