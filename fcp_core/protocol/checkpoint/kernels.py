"""What is done with the bytes of each contribution: recognising, checking and adding them.

:class:`CheckpointReader` opens one that is like those before it by two loops, which compare and
check; two others measure and add. NumPy runs them; if the distribution ``fcp-server-fast`` is
installed, compiled code does, with the same results to the last bit. Each method of
:class:`Kernels` prepares a loop once and returns a function that runs it many times; the functions
are thread-safe except that one array may be added to by one at a time.
"""

from __future__ import annotations

import functools
import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol, TypeVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from fcp_core.protocol.checkpoint.layout import Checkpoint, Layout, Spans, Verifier
from fcp_core.protocol.checkpoint.reader import open_checkpoint

T = TypeVar("T")

Bytes = memoryview | NDArray[np.uint8]

#: Bytes copied or multiplied at once: they stay in the processor's cache.
_CHUNK_BYTES = 1 << 18

#: Fewer bytes are collected with their neighbours' before they are added: a call costs more.
_SHORT_BYTES = 1 << 15

_CRC_MASK = 0xA282EAD8

#: How many sizes of checkpoints a reader remembers.
_SIZES = 16
#: The layout of so large a checkpoint is learnt from the first one: it is little beside the rest.
_LARGE = 16 << 20


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
        """Prepare to measure: the least and the greatest of each run."""
        runs = rows[rows[:, 2] > 0].tolist()
        size, step = dtype.itemsize, _CHUNK_BYTES // dtype.itemsize

        def measure(data: Bytes, weights: NDArray[np.float64]) -> float:
            raw = np.frombuffer(data, np.uint8)
            peak: float = 0.0 if dtype.kind == "f" else 0
            with np.errstate(invalid="ignore"):
                for _, source, count, weight in runs:
                    values = raw[source : source + count * size].view(dtype)
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

        return measure


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


class CheckpointReader:
    """Opens checkpoints as :func:`open_checkpoint` does, faster where they are alike. Thread-safe.

    It remembers the structure of the last checkpoints. One of the same structure is not parsed
    again: its bytes are compared, its checksums computed, and its ``layout`` is that of the others.

    :param verify: check the checksums that a TF V1 checkpoint has; the structure is always checked.
    :param kernels: what compares bytes and computes checksums; None: the fastest installed.
    """

    def __init__(self, *, verify: bool = True, kernels: Kernels | None = None) -> None:
        self._verify = verify
        #: What compares bytes and computes checksums.
        self.kernels = kernels or default_kernels()
        self._lock = threading.Lock()
        # The last layout of each size of file. A size is worth a layout once it comes again: with
        # strings or packed integers in it, nearly every file has another one.
        self._layouts: OrderedDict[int, Layout] = OrderedDict()
        self._sizes: OrderedDict[int, None] = OrderedDict()

    def open(self, data: bytes | bytearray | memoryview) -> Checkpoint:
        """Open a checkpoint without copying it.

        :param data: the whole file; it must not change while the checkpoint or its arrays are in
            use.
        :raises StatusError: INVALID_ARGUMENT if *data* is empty, of neither format, truncated or
            corrupt.
        """
        view = memoryview(data).toreadonly().cast("B")
        size = len(view)
        layout = self._layouts.get(size)
        if layout is not None:
            checkpoint = open_alike(view, layout, verify=self._verify)
            if checkpoint is not None:
                return checkpoint
        checkpoint = open_checkpoint(view, verify=self._verify)
        with self._lock:
            again = size in self._sizes or size >= _LARGE
            _remember(self._sizes, size, None)
        if again:
            try:
                checkpoint.layout = Layout(checkpoint, self.kernels.matcher, self.kernels.verifier)
            except ValueError:
                return checkpoint
            with self._lock:
                _remember(self._layouts, size, checkpoint.layout)
        return checkpoint


def open_alike(data: memoryview, layout: Layout, *, verify: bool) -> Checkpoint | None:
    """Return a checkpoint that is like those of a layout, or None if it has to be parsed.

    What this accepts, parsing accepts, with the same result. What this does not accept may still
    be a checkpoint.

    :param data: as many bytes as the layout is of.
    :param verify: check the checksums.
    """
    if not layout.is_same(data):
        return None
    peaks = None
    if verify and layout.blocks:
        intact, peaks = layout.verify(data)
        if not intact:
            return None
    return Checkpoint(layout.format, data, layout.entries, layout.blocks, layout, peaks)


def _remember(memory: OrderedDict[int, T], size: int, value: T) -> None:
    memory[size] = value
    memory.move_to_end(size)
    if len(memory) > _SIZES:
        memory.popitem(last=False)
