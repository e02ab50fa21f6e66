"""What a device sends instead of a value where an approximate answer is enough.

A *code* stands for a distinct value in a count of distinct values: a register of HyperLogLog and
its rank, 18 bits of a hash, so that the value does not travel. A *bucket* stands for a number in a
quantile: all numbers of one bucket differ by little from its value.

Sources: Flajolet et al., "HyperLogLog" (2007); Ertl, "New cardinality estimation algorithms for
HyperLogLog sketches" (2017), for the estimate; Masson et al., "DDSketch" (2019), for the buckets.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: How many registers a count of distinct values has: its standard error is 1.04 / sqrt(4096).
REGISTERS = 1 << 12
#: The largest code, and the largest rank in one.
MAX_CODE = REGISTERS << 6
MAX_RANK = 64 - 12 + 1

#: How far a bucket's value is from the numbers in it, relative to them, unless it is chosen.
RELATIVE_ERROR = 0.01
#: Smaller numbers are in the bucket of 0, larger ones in the last bucket.
_SMALLEST, _LARGEST = 1e-9, 1e21
_ALPHA = 1 / (2 * math.log(2))

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def distinct_codes(values: Iterable[Any]) -> Integers:
    """Return the code of each value: None, int, float, str or bytes.

    Numbers that are equal have one code, text and bytes never; None and NaN have the code 0, which
    counts as nothing.

    :raises TypeError: for a value of another type.
    """
    return np.array([_code(value) for value in values], np.int64)


def _code(value: Any) -> int:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value != value:
        return 0
    if isinstance(value, int):
        data = b"i%d" % value
    elif isinstance(value, float):
        data = b"f" + value.hex().encode()
    elif isinstance(value, str):
        data = b"t" + value.encode(errors="surrogatepass")
    elif isinstance(value, bytes):
        data = b"b" + value
    else:
        raise TypeError(f"a {type(value).__name__} cannot be counted among distinct values")
    number = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    register, rest = number & (REGISTERS - 1), number >> 12
    rank = MAX_RANK - rest.bit_length()
    return (register << 6) + rank


def split_codes(codes: Integers) -> tuple[Integers, Integers]:
    """Return the registers and the ranks of codes that are above 0."""
    return codes >> 6, codes & 63


def estimate_distinct(rank_counts: NDArray[np.int64]) -> Floats:
    """Estimate how many distinct values there are.

    :param rank_counts: shape ``(groups, MAX_RANK + 1)``: in each group, how many of the registers
        above 0 have each rank; what is missing of :data:`REGISTERS` is 0.
    :returns: shape ``(groups,)``.
    """
    counts = rank_counts.astype(np.float64)
    zeros = REGISTERS - counts[:, 1:].sum(axis=1)
    total = REGISTERS * _tau(1 - counts[:, MAX_RANK] / REGISTERS)
    for rank in range(MAX_RANK - 1, 0, -1):
        total = (total + counts[:, rank]) / 2
    total += REGISTERS * _sigma(zeros / REGISTERS)
    with np.errstate(divide="ignore"):
        return np.asarray(_ALPHA * REGISTERS * REGISTERS / total, np.float64)


def _sigma(share: Floats) -> Floats:
    """Return Ertl's correction for registers that are 0; infinite if all are."""
    total, power, factor = share.copy(), share.copy(), 1.0
    # The terms fall faster than a geometric series once the power is well below 1.
    for _ in range(64):
        power = power * power
        total = total + power * factor
        factor *= 2
    return np.where(share >= 1, np.inf, total)


def _tau(share: Floats) -> Floats:
    """Return Ertl's correction for registers that are full; 0 if none is, or all are."""
    total, root, factor = 1 - share, share.copy(), 1.0
    for _ in range(64):
        root = np.sqrt(root)
        factor /= 2
        total = total - (1 - root) ** 2 * factor
    return np.where((share <= 0) | (share >= 1), 0.0, total / 3)


def check_relative_error(relative_error: float) -> None:
    """Check a relative error.

    :raises ValueError: if there are too many buckets with it, or hardly any.
    """
    if not 0.002 <= relative_error <= 0.5:
        raise ValueError(f"a relative error must be from 0.002 to 0.5, not {relative_error}")


def buckets(values: Any, relative_error: float = RELATIVE_ERROR) -> Integers:
    """Return the bucket of each number: below 0 for negative ones, 0 for 0.

    :param values: any shape; NaN must not be among them.
    :raises ValueError: as :func:`check_relative_error` does.
    """
    check_relative_error(relative_error)
    numbers = np.asarray(values, np.float64)
    sizes = np.clip(np.abs(numbers), _SMALLEST, _LARGEST)
    index = np.ceil(np.log(sizes / _SMALLEST) / _step(relative_error)).astype(np.int64)
    return np.asarray(np.where(np.abs(numbers) < _SMALLEST, 0, np.sign(numbers) * (index + 1)), int)


def bucket_values(numbers: Any, relative_error: float = RELATIVE_ERROR) -> Floats:
    """Return the value of each bucket, which is near all numbers in it.

    :raises ValueError: as :func:`check_relative_error` does.
    """
    check_relative_error(relative_error)
    index = np.asarray(numbers, np.int64)
    upper = _SMALLEST * np.exp((np.abs(index) - 1) * _step(relative_error))
    return np.asarray(np.sign(index) * upper * (1 - relative_error), np.float64)


def quantile_of_buckets(
    numbers: Any, counts: Any, quantile: float, relative_error: float = RELATIVE_ERROR
) -> float:
    """Return a quantile of what is in buckets: the smallest value that so many do not exceed.

    :param counts: how often each bucket comes; noisy ones may be negative, and count as 0.
    :param quantile: from 0 to 1.
    :returns: NaN if nothing is in them.
    """
    order = np.argsort(np.asarray(numbers))
    sizes = np.maximum(np.asarray(counts, np.float64)[order], 0)
    sums = np.cumsum(sizes)
    if not sums.size or not sums[-1] > 0:
        return math.nan
    # The share of a bucket without anything in it is none.
    place = int(np.searchsorted(sums, max(quantile * sums[-1], np.nextafter(0, 1))))
    return float(bucket_values(np.asarray(numbers)[order][place], relative_error))


def _step(relative_error: float) -> float:
    return math.log((1 + relative_error) / (1 - relative_error))
