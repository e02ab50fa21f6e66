"""Large data that is sent again and again, kept in a file that nobody else sees."""

from __future__ import annotations

import gzip
import os
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

#: What is smaller than this stays in memory.
SPOOLED = 32 << 20
#: Bytes that are written at once.
PIECE = 4 << 20
#: Bytes that are decompressed at once: what is left of them is copied each time.
SLICE = 64 << 10


class Spooled:
    """Bytes in a file without a name: the system drops it with this object, or with the process.

    :param pieces: the bytes.
    :param folder: where it lies; None: where temporary files do.
    :raises OSError: if it cannot be written there.
    """

    def __init__(self, pieces: Iterable[bytes | memoryview], folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 it is kept open
        self._size = 0
        # Not by the collector, which would warn.
        weakref.finalize(self, self._file.close).atexit = False
        for piece in pieces:
            self._size += len(piece)
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


def spooled(data: bytes | Spooled, folder: Path | None) -> bytes | Spooled:
    """Return data in a file if it is large, and can be written to one."""
    if isinstance(data, Spooled) or len(data) < SPOOLED:
        return data
    return _in_file(_pieces(data), folder) or data


def packed(data: bytes, level: int, folder: Path | None) -> bytes | Spooled:
    """Compress with gzip; what is large then goes to a file, if one can be written."""
    found = _in_file(_pack(data, level), folder) if len(data) >= SPOOLED else None
    return gzip.compress(data, level, mtime=0) if found is None else found


def unpacked(data: bytes | Spooled, size: int, folder: Path | None) -> bytes | Spooled:
    """Undo gzip of one member; what is large then goes to a file, if one can be written.

    :param size: about how much it becomes.
    """
    found = _in_file(_unpack(data), folder) if size >= SPOOLED else None
    return gzip.decompress(bytes(data)) if found is None else found


def _pieces(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[start : start + PIECE] for start in range(0, len(view), PIECE))


def _pack(data: bytes, level: int) -> Iterator[bytes]:
    stream = zlib.compressobj(level, wbits=31)
    yield from map(stream.compress, _pieces(data))
    yield stream.flush()


def _unpack(packed: bytes | Spooled) -> Iterator[bytes]:
    stream = zlib.decompressobj(wbits=31)
    for start in range(0, len(packed), SLICE):
        stop = start + SLICE
        piece = packed.read(start, stop) if isinstance(packed, Spooled) else packed[start:stop]
        while True:
            made = stream.decompress(piece, PIECE)
            yield made
            piece = stream.unconsumed_tail
            if not piece and len(made) < PIECE:  # a full one may have left some in the stream
                break


def _in_file(pieces: Iterable[bytes | memoryview], folder: Path | None) -> Spooled | None:
    try:
        return Spooled(pieces, folder)
    except OSError:
        # A full disk, or a host where nothing can be written: then memory has to do.
        return None
