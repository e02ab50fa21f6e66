"""Opened checkpoints, and the structure that those of one task have in common.

The contributions to a task hold the same tensors in the same places; only the numbers differ. What
opening a checkpoint looks at is therefore, byte for byte, what it was in the one before: everything
but the values and the checksums. Comparing those bytes decides what parsing them would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcp_core.protocol.checkpoint.base import Entry, Span, Tensor
from fcp_core.protocol.status import Code, StatusError

Spans = NDArray[np.int64]

#: Says whether all checksums of some data are right, and the largest magnitude of each run of
#: floats (float64[m], NaN unless all are finite); None where that was not found on the way.
Verifier = Callable[[memoryview], tuple[bool, NDArray[np.float64] | None]]

#: The most bytes of structure that are worth remembering.
_MOST_BYTES = 1 << 22

_CHECKSUM_BYTES = 4


@dataclass(eq=False, repr=False)
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one checkpoint by name, decoded when they are asked for.

    Arrays are read-only. Those of numbers that the file stores as they are in memory are views on
    the bytes that were opened, so these must not change while an array is in use. Nothing is
    kept: each access decodes again.
    """

    #: ``tf_v1`` or ``federated_compute``.
    format: str
    #: The bytes that were opened.
    data: memoryview
    #: What is where.
    entries: Mapping[str, Entry]
    #: What is covered by a checksum, which takes the four bytes after each span.
    blocks: Sequence[Span]
    #: What other checkpoints of the same structure have in common with this one (see
    #: :class:`fcp_core.protocol.checkpoint.CheckpointReader`); None if that is not known.
    layout: Layout | None = None
    #: The largest magnitudes of its tensors of floats, float64[m], NaN unless all elements are
    #: finite, in the order of the layout's ``peaks``; None if nobody has looked yet.
    peaks: NDArray[np.float64] | None = None

    def names(self) -> tuple[str, ...]:
        """Return the names in the order of the file."""
        return tuple(self.entries)

    def spec(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Return dtype (``object`` for strings) and shape of a tensor without decoding it.

        :raises StatusError: NOT_FOUND if there is none of that name; INVALID_ARGUMENT if its dtype
            or shape cannot be represented.
        """
        return self._entry(name).spec()

    def get_tensor(self, name: str) -> Tensor:
        """Return a tensor.

        :raises StatusError: NOT_FOUND if there is none of that name; INVALID_ARGUMENT if its data
            do not fit its dtype and shape, or if it is stored in slices.
        """
        tensor = self._entry(name).tensor(self.data)
        tensor.flags.writeable = False
        return tensor

    def _entry(self, name: str) -> Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise StatusError(
                Code.NOT_FOUND,
                f"the checkpoint has no tensor {name!r}; it has {_listing(tuple(self.entries))}",
            ) from None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.entries:
            raise KeyError(name)
        return self.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<Checkpoint {self.format}: {_listing(tuple(self.entries))}>"


def _listing(names: Sequence[str]) -> str:
    """Return some of the names for a message."""
    if not names:
        return "none"
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


class Layout:
    """What the checkpoints share that differ from a known one in values and checksums only.

    :func:`fcp_core.protocol.checkpoint.kernels.open_alike` opens them by it.

    :param checkpoint: a checkpoint that was opened by parsing it.
    :param matcher: ``Kernels.matcher``: what compares bytes.
    :param verifier: ``Kernels.verifier``: what computes checksums.
    :raises ValueError: if its values cannot be separated from its structure, as where parts
        overlap, or if its structure takes too many bytes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        matcher: Callable[[Spans, bytes], Callable[[memoryview], bool]],
        verifier: Callable[[Spans, Spans], Verifier],
    ) -> None:
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
        self.is_same = matcher(
            np.array(structure, np.int64).reshape(-1, 2),
            b"".join(data[start:end] for start, end in structure),
        )
        floats = sorted(self._floats())
        #: The index of each tensor of floats in the ``peaks`` of checkpoints of this layout.
        self.peaks = {name: index for index, (_, _, _, name) in enumerate(floats)}
        #: Says whether the checksums of such data are right, and how large their floats are.
        self.verify = verifier(
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
