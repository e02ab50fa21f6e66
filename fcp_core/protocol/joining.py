"""Joining large pieces of bytes without stopping the other threads of the process."""

from __future__ import annotations

import io
from collections.abc import Iterable

#: From this size on, ``b"".join`` would keep all others waiting for too long.
LARGE = 8 << 20
#: Bytes that are copied before others may have their turn.
_STEP = 1 << 20


def join(pieces: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """Return what ``b"".join`` returns."""
    found = list(pieces)
    if sum(map(len, found)) < LARGE:
        return b"".join(found)
    whole = io.BytesIO()
    for piece in found:
        view = memoryview(piece)
        for start in range(0, len(view), _STEP):
            whole.write(view[start : start + _STEP])
    return whole.getvalue()  # which is no copy
