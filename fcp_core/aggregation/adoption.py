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


def can_adopt(data: memoryview, dtype: np.dtype[Any], rows: Spans) -> bool:
    """Whether :func:`adopt` can do it.

    The elements have to lie in the order of the totals, in whatever distance, and to be most of
    the contribution, whose memory is kept as long as they are.

    :param data: the contribution.
    :param rows: what is added, as for an adder: int64[n, 4].
    """
    size = int(rows[:, 2].sum()) * dtype.itemsize
    if data.readonly or size < ADOPTED or len(data) > size + size // 4:
        return False
    begin = _begin(data, rows)
    if begin < 0:
        return False
    ends = np.cumsum(rows[:, 2])
    whole = bool((rows[1:, 0] == ends[:-1]).all()) and rows[0, 0] == 0
    sources = rows[:, 1]
    ordered = bool((sources[1:] >= sources[:-1] + rows[:-1, 2] * dtype.itemsize).all())
    return whole and ordered and bool((begin + rows[:, 0] * dtype.itemsize <= sources).all())


def adopt(
    data: memoryview, dtype: np.dtype[Any], rows: Spans, weights: NDArray[np.float64]
) -> NDArray[Any]:
    """Return what adding a contribution to zeros makes, in the contribution's own memory.

    :param data: the contribution, for which :func:`can_adopt` is true; it is none any more.
    :param rows: as for :func:`can_adopt`.
    :param weights: the factors that the rows name, as for an adder.
    """
    begin, zero = _begin(data, rows), dtype.type(0)
    total = np.frombuffer(data, dtype, int(rows[:, 2].sum()), begin)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for first, source, count, weight in rows.tolist():
            values = np.frombuffer(data, dtype, count, source)
            for at in range(0, count, _CHUNK):
                # Towards the beginning, so that nothing is overwritten that is still needed.
                part = values[at : at + _CHUNK]
                place = total[first + at : first + at + part.size]
                product = part if weight < 0 else part * dtype.type(weights[weight])
                # Not a copy: a negative zero becomes a positive one.
                np.add(product, zero, out=place)
    return total


def _begin(data: memoryview, rows: Spans) -> int:
    """Return the byte of the data where the totals begin; less than 0 if there is no such place."""
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    source = int(rows[0, 1])
    return source - (address + source) % _ALIGNMENT
