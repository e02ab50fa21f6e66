"""The structure that the checkpoints of one task have in common: how many of a kind are read.

The contributions to a task hold the same tensors in the same places; only the numbers differ. What
opening a checkpoint looks at is therefore, byte for byte, what it was in the one before: everything
but the values and the checksums. Comparing those bytes decides what parsing them would.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fcp_core.protocol.checkpoint.base import Checkpoint, Span

if TYPE_CHECKING:
    from fcp_core.protocol.checkpoint.kernels import Kernels

#: The most bytes of structure that are worth remembering.
_MOST_BYTES = 1 << 22

_CHECKSUM_BYTES = 4


class Layout:
    """What the checkpoints share that differ from a known one in values and checksums only.

    :func:`fcp_core.protocol.checkpoint.kernels.open_alike` opens them by it.

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
        structure = list(_gaps(sorted(free), len(data)))
        if sum(end - start for start, end in structure) > _MOST_BYTES:
            raise ValueError("too much structure")
        #: Says whether some data of this size differ in no other way.
        self.is_same = kernels.matcher(
            np.array(structure, np.int64).reshape(-1, 2),
            b"".join(data[start:end] for start, end in structure),
        )
        floats = sorted(self._floats())
        #: The index of each tensor of floats in the ``peaks`` of checkpoints of this layout.
        self.peaks = {name: index for index, (_, _, _, name) in enumerate(floats)}
        #: Says whether the checksums of such data are right, and how large their floats are.
        self.verify = kernels.verifier(
            np.array(sorted(self.blocks), np.int64).reshape(-1, 2),
            np.array([run[:3] for run in floats], np.int64).reshape(-1, 3),
        )

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
