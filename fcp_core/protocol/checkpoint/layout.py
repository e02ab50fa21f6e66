"""Reading many checkpoints of a kind, by the structure that those of one task have in common.

The contributions to a task hold the same tensors in the same places; only the numbers differ. What
opening a checkpoint looks at is therefore, byte for byte, what it was in the one before: everything
but the values and the checksums. Comparing those bytes decides what parsing them would.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from fcp_core.protocol.checkpoint.base import Checkpoint, Span
from fcp_core.protocol.checkpoint.reader import open_checkpoint
from fcp_core.protocol.kernels import Kernels, default_kernels

#: The most bytes of structure that are worth remembering.
_MOST_BYTES = 1 << 22

_CHECKSUM_BYTES = 4

T = TypeVar("T")

#: How many sizes of checkpoints a reader remembers.
_SIZES = 16
#: The layout of so large a checkpoint is learnt from the first one: it is little beside the rest.
_LARGE = 16 << 20


class Layout:
    """Recognises checkpoints that differ from a known one in values and checksums only.

    :param checkpoint: a checkpoint that was opened by parsing it.
    :param kernels: what compares bytes and computes checksums.
    :raises ValueError: if its values cannot be separated from its structure, as where parts
        overlap, or if its structure takes too many bytes.
    """

    def __init__(self, checkpoint: Checkpoint, kernels: Kernels) -> None:
        data = checkpoint.data
        self.format = checkpoint.format
        self.entries = checkpoint.entries
        self.blocks = tuple(checkpoint.blocks)
        #: Where the elements lie, by name, of tensors that are stored in one piece as in memory.
        self.elements: dict[str, Span] = {}
        free: list[Span] = [(end, end + _CHECKSUM_BYTES) for _, end in self.blocks]
        for name, entry in self.entries.items():
            elements = entry.elements(data)
            if elements is None:
                free += entry.values()
            else:
                self.elements[name] = elements
                free.append(elements)
        self._check_disjoint(free)
        self._size = len(data)
        structure = list(_gaps(sorted(free), len(data)))
        if sum(end - start for start, end in structure) > _MOST_BYTES:
            raise ValueError("too much structure")
        self._is_same = kernels.matcher(
            np.array(structure, np.int64).reshape(-1, 2),
            b"".join(data[start:end] for start, end in structure),
        )
        floats = sorted(self._floats())
        #: The index of each tensor of floats in the ``peaks`` of checkpoints of this layout.
        self.peaks = {name: index for index, (_, _, _, name) in enumerate(floats)}
        self._verify = kernels.verifier(
            np.array(sorted(self.blocks), np.int64).reshape(-1, 2),
            np.array([run[:3] for run in floats], np.int64).reshape(-1, 3),
        )

    def open(self, data: memoryview, *, verify: bool) -> Checkpoint | None:
        """Return *data* as a checkpoint, or None if it has to be parsed.

        What this accepts, parsing accepts, with the same result. What this does not accept may
        still be a checkpoint.

        :param verify: check the checksums.
        """
        if len(data) != self._size or not self._is_same(data):
            return None
        peaks = None
        if verify and self.blocks:
            intact, peaks = self._verify(data)
            if not intact:
                return None
        return Checkpoint(self.format, data, self.entries, self.blocks, self, peaks)

    def _floats(self) -> Iterator[tuple[int, int, int, str]]:
        """Yield start, end, bytes of an element and name of what floats lie as in memory."""
        for name, (start, end) in self.elements.items():
            dtype = self.entries[name].spec()[0]
            if dtype.kind == "f" and dtype.itemsize in (4, 8):
                yield start, end, dtype.itemsize, name

    def _check_disjoint(self, free: Sequence[Span]) -> None:
        """Make sure that no value and no checksum is part of the structure as well."""
        blocks = sorted((start, end + _CHECKSUM_BYTES) for start, end in self.blocks)
        for spans in (blocks, sorted(free)):
            for (_, end), (start, _) in itertools.pairwise(spans):
                if start < end:
                    raise ValueError("overlapping parts")


def _gaps(spans: Sequence[Span], size: int) -> Iterator[Span]:
    """Yield what lies between *spans*, which are in order, and around them."""
    at = 0
    for start, end in spans:
        if at < start:
            yield at, start
        at = max(at, end)
    if at < size:
        yield at, size


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
            checkpoint = layout.open(view, verify=self._verify)
            if checkpoint is not None:
                return checkpoint
        checkpoint = open_checkpoint(view, verify=self._verify)
        with self._lock:
            again = size in self._sizes or size >= _LARGE
            _remember(self._sizes, size, None)
        if again:
            try:
                checkpoint.layout = Layout(checkpoint, self.kernels)
            except ValueError:
                return checkpoint
            with self._lock:
                _remember(self._layouts, size, checkpoint.layout)
        return checkpoint


def _remember(memory: OrderedDict[int, T], size: int, value: T) -> None:
    memory[size] = value
    memory.move_to_end(size)
    if len(memory) > _SIZES:
        memory.popitem(last=False)
