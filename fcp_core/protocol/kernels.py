"""The loops over a contribution's bytes: comparing, checking and adding them.

NumPy runs them; if the distribution ``fcp-server-fast`` is installed, compiled code does, with the
same results to the last bit. Each method prepares a loop once and returns a function that runs it
many times; the functions are thread-safe except that one array may be added to by one at a time.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numpy.typing import NDArray

Spans = NDArray[np.int64]
Bytes = memoryview | NDArray[np.uint8]

#: Says whether all checksums of some data are right, and the largest magnitude of each run of
#: floats (float64[m], NaN unless all are finite); None where that was not found on the way.
Verifier = Callable[[memoryview], tuple[bool, NDArray[np.float64] | None]]

#: Bytes copied or multiplied at once: they stay in the processor's cache.
_CHUNK_BYTES = 1 << 18

#: Fewer bytes are collected with their neighbours' before they are added: a call costs more.
_SHORT_BYTES = 1 << 15

_CRC_MASK = 0xA282EAD8


class Adder(Protocol):
    """Adds the elements of a checkpoint to an array."""

    def __call__(self, data: Bytes, weights: NDArray[np.float64]) -> None:
        """Add.

        :param data: the checkpoint, or what a tensor of it was decoded to.
        :param weights: the factors that the rows name; each is exact in the dtype of the array.
        """


class Peak(Protocol):
    """Measures the elements of a checkpoint before they are added."""

    def __call__(self, data: Bytes, weights: NDArray[np.float64]) -> float:
        """Return the largest magnitude of the elements, times their weights where they have some.

        Of floats it is a float, and NaN unless all products are finite numbers; of integers it is
        an int, which may be one too large.

        :param data: as for an :class:`Adder`.
        :param weights: as for an :class:`Adder`.
        """


class Kernels(ABC):
    """One implementation of the loops."""

    #: For messages and tests.
    name: str

    @abstractmethod
    def matcher(self, spans: Spans, expected: bytes) -> Callable[[memoryview], bool]:
        """Prepare to compare.

        :param spans: start and end of each part, int64[n, 2], within the data.
        :param expected: the parts, one after another.
        :returns: whether some data have these parts.
        """

    @abstractmethod
    def verifier(self, blocks: Spans, floats: Spans) -> Verifier:
        """Prepare to check masked CRC-32C checksums, which lie in the four bytes after each block.

        :param blocks: start and end of each block in order, int64[n, 2], within the data.
        :param floats: start, end and bytes of an element of each run of floats in order,
            int64[m, 3], within the data.
        """

    @abstractmethod
    def adder(self, total: NDArray[Any], rows: Spans) -> Adder:
        """Prepare to add elements, and elements times weights, to *total*.

        Products are rounded before they are added, floats that overflow become infinite, integers
        wrap around.

        :param total: a one-dimensional array of 4 or 8 byte floats or integers, little endian.
        :param rows: int64[n, 4]: the index in *total* where to begin, the byte of the data where
            to begin, how many elements, and the index of the weight, or -1. Weights are for floats
            only. No two rows have an element of *total* in common.
        """

    @abstractmethod
    def peak(self, dtype: np.dtype[Any], rows: Spans) -> Peak:
        """Prepare to measure what an adder of the same rows would add.

        :param dtype: that of the elements.
        :param rows: as for :meth:`adder`.
        """


class NumpyKernels(Kernels):
    """The loops in NumPy."""

    name = "numpy"

    def matcher(self, spans: Spans, expected: bytes) -> Callable[[memoryview], bool]:
        """Prepare to compare."""
        parts = [slice(start, end) for start, end in spans.tolist()]
        return lambda data: b"".join([data[part] for part in parts]) == expected

    def verifier(self, blocks: Spans, floats: Spans) -> Verifier:
        """Prepare to check checksums, and nothing else: that takes a pass of its own here."""
        parts = [slice(start, end) for start, end in blocks.tolist()]
        stored = [slice(end, end + 4) for _, end in blocks.tolist()]

        def verify(data: memoryview) -> tuple[bool, None]:
            raw = np.frombuffer(data, np.uint8)
            found = np.array([google_crc32c.value(raw[part]) for part in parts], np.uint32)
            masked = (found >> np.uint32(15) | found << np.uint32(17)) + np.uint32(_CRC_MASK)
            right = masked.astype("<u4").tobytes() == b"".join([data[part] for part in stored])
            return right, None

        return verify

    def adder(self, total: NDArray[Any], rows: Spans) -> Adder:
        """Prepare to add."""
        return _NumpyAdder(total, rows)

    def peak(self, dtype: np.dtype[Any], rows: Spans) -> Peak:
        """Prepare to measure."""
        return _NumpyPeak(dtype, rows)


class _NumpyAdder:
    """Adds long runs where they lie, and short ones after collecting their neighbours."""

    def __init__(self, total: NDArray[Any], rows: Spans) -> None:
        self._dtype = total.dtype
        # Each part of the total, where its elements come from, and the index of their weight.
        self._runs: list[tuple[NDArray[Any], list[slice], int]] = []
        size = self._dtype.itemsize
        start = end = room = 0
        weighed = -1
        for first, source, count, weight in rows.tolist():
            # A product needs room, a sum of a long run none.
            step = _CHUNK_BYTES // size if weight >= 0 else max(count, 1)
            for at in range(0, count, step):
                length = min(step, count - at)
                begin = source + at * size
                piece = slice(begin, begin + length * size)
                if first + at == end and weight == weighed and length * size <= room:
                    self._runs[-1][1].append(piece)
                else:
                    start = first + at
                    room = _CHUNK_BYTES if length * size < _SHORT_BYTES else 0
                    self._runs.append((total[:0], [piece], weight))
                    weighed = weight
                room = room - length * size if length * size < _SHORT_BYTES else 0
                end = first + at + length
                self._runs[-1] = (total[start:end], self._runs[-1][1], weight)
        self._scratch = np.empty(_CHUNK_BYTES // size, self._dtype)

    def __call__(self, data: Bytes, weights: NDArray[np.float64]) -> None:
        raw = np.frombuffer(data, np.uint8)
        view = raw.data
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for part, pieces, weight in self._runs:
                if len(pieces) == 1:
                    packed = raw[pieces[0]]
                else:
                    packed = np.frombuffer(b"".join([view[piece] for piece in pieces]), np.uint8)
                values = packed.view(self._dtype)
                if weight >= 0:
                    # The other weights may be none of this dtype.
                    factor = self._dtype.type(weights[weight])
                    values = np.multiply(values, factor, out=self._scratch[: part.size])
                np.add(part, values, out=part)


class _NumpyPeak:
    """Takes the least and the greatest of each run; neighbours of one weight are one run."""

    def __init__(self, dtype: np.dtype[Any], rows: Spans) -> None:
        self._dtype = dtype
        self._rows = rows[rows[:, 2] > 0].tolist()

    def __call__(self, data: Bytes, weights: NDArray[np.float64]) -> float:
        raw = np.frombuffer(data, np.uint8)
        size = self._dtype.itemsize
        peak: float = 0.0 if self._dtype.kind == "f" else 0
        with np.errstate(invalid="ignore"):
            for _, source, count, weight in self._rows:
                values = raw[source : source + count * size].view(self._dtype)
                step = _CHUNK_BYTES // size
                for at in range(0, count, step):
                    part = values[at : at + step]
                    # Both are NaN if one element is.
                    found = max(abs(part.min().item()), abs(part.max().item()))
                    if weight >= 0:
                        found *= abs(weights[weight].item())
                    if not found < math.inf:
                        return math.nan
                    peak = max(peak, found)
        return peak


class CompiledKernels(Kernels):
    """The loops of the distribution ``fcp-server-fast``.

    :param module: its module ``fcp_fast``.
    """

    name = "compiled"

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def matcher(self, spans: Spans, expected: bytes) -> Callable[[memoryview], bool]:
        """Prepare to compare."""
        table = np.ascontiguousarray(spans, np.int64)
        same: Callable[..., bool] = self._module.same
        return lambda data: same(data, table, expected)

    def verifier(self, blocks: Spans, floats: Spans) -> Verifier:
        """Prepare to check checksums, and to look at the floats meanwhile."""
        if not self._module.HARDWARE_CRC:
            return NumpyKernels().verifier(blocks, floats)
        table = np.ascontiguousarray(blocks, np.int64)
        runs = np.ascontiguousarray(floats, np.int64)
        module_verify: Callable[..., bool] = self._module.verify

        def verify(data: memoryview) -> tuple[bool, NDArray[np.float64]]:
            peaks = np.empty(len(runs))
            return module_verify(data, table, runs, peaks), peaks

        return verify

    def adder(self, total: NDArray[Any], rows: Spans) -> Adder:
        """Prepare to add."""
        table = np.ascontiguousarray(rows, np.int64)
        kind = f"{total.dtype.kind}{total.dtype.itemsize}"
        add: Callable[..., None] = self._module.add

        def run(data: Bytes, weights: NDArray[np.float64]) -> None:
            add(total, kind, data, table, weights)

        return run

    def peak(self, dtype: np.dtype[Any], rows: Spans) -> Peak:
        """Prepare to measure."""
        table = np.ascontiguousarray(rows, np.int64)
        kind = f"{dtype.kind}{dtype.itemsize}"
        peak: Callable[..., float] = self._module.peak
        return lambda data, weights: peak(kind, data, table, weights)


@functools.cache
def compiled_kernels() -> Kernels | None:
    """Return the compiled loops, or None if they are not installed, or are of an older version."""
    try:
        import fcp_fast
    except ImportError:
        return None
    if not hasattr(fcp_fast, "verify"):
        return None
    return CompiledKernels(fcp_fast)


def default_kernels() -> Kernels:
    """Return the compiled loops if they are installed, otherwise those in NumPy."""
    return compiled_kernels() or NumpyKernels()
