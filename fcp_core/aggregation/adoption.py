"""Making totals of a large contribution where it lies, instead of adding it to zeros elsewhere.

So the first contribution of a fold, of a delta above all, is not in memory twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcp_core.protocol.checkpoint.layout import Spans

#: Smaller totals are not worth it: their memory, and that of the contribution, is used again.
ADOPTED = 16 << 20
#: The totals lie at a multiple of this many bytes, as a processor likes it.
_ALIGNMENT = 64
#: Elements that are moved at once: they stay in the processor's cache.
_CHUNK = 1 << 16


def adoptable(data: memoryview, dtype: np.dtype[Any], rows: Spans, size: int) -> Spans | None:
    """Return the rows in the order of the contribution, for :func:`adopt`; None if it cannot be.

    They have to be all that there are totals for, in whatever distance and order, and to be most
    of the contribution, whose memory is kept as long as they are.

    :param data: the contribution.
    :param rows: what is added, as for an adder: int64[n, 4].
    :param size: how many totals there are.
    """
    nbytes = size * dtype.itemsize
    if data.readonly or nbytes < ADOPTED or len(data) > nbytes + nbytes // 4:
        return None
    ordered = rows[rows[:, 1].argsort()]
    sources, counts = ordered[:, 1], ordered[:, 2]
    apart = bool((sources[1:] >= sources[:-1] + counts[:-1] * dtype.itemsize).all())
    return ordered if apart and counts.sum() == size and _begin(data, ordered) >= 0 else None


def adopt(
    data: memoryview, dtype: np.dtype[Any], rows: Spans, weights: NDArray[np.float64]
) -> tuple[NDArray[Any], dict[int, int]]:
    """Make what adding a contribution to zeros makes, in the contribution's own memory.

    :param data: the contribution; it is none any more.
    :param rows: what :func:`adoptable` returned for it.
    :param weights: the factors that the rows name, as for an adder.
    :returns: the totals in the order of the rows, and where each row begins in them, by where it
        began in those before.
    """
    begin, zero = _begin(data, rows), dtype.type(0)
    total = np.frombuffer(data, dtype, int(rows[:, 2].sum()), begin)
    starts, start = {}, 0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for first, source, count, weight in rows.tolist():
            starts[first] = start
            values = np.frombuffer(data, dtype, count, source)
            for at in range(0, count, _CHUNK):
                # Towards the beginning, so that nothing is overwritten that is still needed.
                part = values[at : at + _CHUNK]
                place = total[start + at : start + at + part.size]
                product = part if weight < 0 else part * dtype.type(weights[weight])
                # Not a copy: a negative zero becomes a positive one.
                np.add(product, zero, out=place)
            start += count
    return total, starts


def _begin(data: memoryview, rows: Spans) -> int:
    """Return the byte of the data where the totals begin; less than 0 if there is no such place."""
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    source = int(rows[0, 1])
    return source - (address + source) % _ALIGNMENT
