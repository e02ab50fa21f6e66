"""Accumulating by addition: many accumulators whose state is a sum take a contribution in one go.

An accumulator that only adds says so with :meth:`Accumulator.additions`. The totals of all of them
then lie side by side, one array for each dtype, and the elements of a contribution are added where
they lie in its bytes, without a call, a view or a check for each tensor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcp_core.aggregation.aggregator import Accumulator, Addition, Total
from fcp_core.aggregation.spec import Tensor, TensorSpec
from fcp_core.protocol.checkpoint import Checkpoint, Layout
from fcp_core.protocol.kernels import Adder, Kernels
from fcp_core.protocol.status import Code, StatusError


@dataclass(frozen=True)
class _Term:
    """An addition with the specifications of what it takes."""

    total: Total
    value: TensorSpec
    weight: TensorSpec | None

    @property
    def order(self) -> tuple[str, str]:
        """Terms of one dtype and one weight lie together."""
        return self.value.dtype.numpy.str, self.weight.name if self.weight else ""


class Additions:
    """The totals of the accumulators that only add.

    :param members: the accumulators, with the specifications of their inputs.
    :param kernels: what adds.
    :raises StatusError: INTERNAL if an accumulator names additions that cannot be made.
    """

    def __init__(
        self, members: Iterable[tuple[Accumulator, Sequence[TensorSpec]]], kernels: Kernels
    ) -> None:
        self._kernels = kernels
        #: The accumulators whose contributions are added here.
        self.accumulators: list[Accumulator] = []
        self._terms: list[_Term] = []
        for accumulator, specs in members:
            additions = accumulator.additions()
            if additions is None:
                continue
            self.accumulators.append(accumulator)
            self._terms += (_term(accumulator, addition, specs) for addition in additions)
        totals = [id(term.total) for term in self._terms]
        if len(set(totals)) < len(totals):
            raise StatusError(Code.INTERNAL, "two additions of an accumulator share a total")
        self._terms.sort(key=lambda term: term.order)
        self._arrays: dict[np.dtype[Any], Tensor] = {}
        self._starts: list[int] = []
        self._pack()
        self._pending = 0

    def plan(self, layout: Layout) -> Plan | None:
        """Prepare to add checkpoints of one layout; None if they do not fit the accumulators."""
        entries = layout.entries
        for term in self._terms:
            for spec in (term.value, term.weight):
                if spec is not None and not _fits(spec, entries.get(spec.name)):
                    return None
        return Plan(self, layout)

    def count(self) -> None:
        """Note that one contribution was added."""
        self._pending += 1

    def settle(self) -> None:
        """Let the accumulators know how many contributions were added."""
        count, self._pending = self._pending, 0
        if count:
            for accumulator in self.accumulators:
                accumulator.added(count)

    def _pack(self) -> None:
        """Move the totals of each dtype into one array."""
        sizes: dict[np.dtype[Any], int] = {}
        for term in self._terms:
            dtype = term.value.dtype.numpy
            self._starts.append(sizes.get(dtype, 0))
            sizes[dtype] = sizes.get(dtype, 0) + term.total.array.size
        for dtype in sizes:
            mine = [
                (term.total, start)
                for term, start in zip(self._terms, self._starts, strict=True)
                if term.value.dtype.numpy == dtype
            ]
            if len(mine) == 1:
                self._arrays[dtype] = mine[0][0].array.reshape(-1)
                continue
            packed = np.empty(sizes[dtype], dtype)
            for total, start in mine:
                place = packed[start : start + total.array.size].reshape(total.array.shape)
                place[...] = total.array
                total.array = place
            self._arrays[dtype] = packed


class Plan:
    """How checkpoints of one layout are added; made by :meth:`Additions.plan`."""

    def __init__(self, additions: Additions, layout: Layout) -> None:
        self._additions = additions
        weights: dict[tuple[str, np.dtype[Any]], int] = {}
        rows: dict[np.dtype[Any], list[tuple[int, int, int, int]]] = {}
        decoded: dict[tuple[str, np.dtype[Any]], list[tuple[int, int, int, int]]] = {}
        for term, start in zip(additions._terms, additions._starts, strict=True):
            dtype = term.value.dtype.numpy
            weight = -1
            if term.weight is not None:
                weight = weights.setdefault((term.weight.name, dtype), len(weights))
            span = layout.elements.get(term.value.name)
            size = term.total.array.size
            if not size:
                # Nothing to add, but what is stored has to be right.
                decoded.setdefault((term.value.name, dtype), [])
            elif span is not None:
                rows.setdefault(dtype, []).append((start, span[0], size, weight))
            else:
                decoded.setdefault((term.value.name, dtype), []).append((start, 0, size, weight))
        self._weights = list(weights)
        self._adders = [self._adder(dtype, table) for dtype, table in rows.items()]
        # What is not stored as it is in memory is decoded first.
        self._decoded = [(name, self._adder(dtype, t)) for (name, dtype), t in decoded.items()]

    def prepare(self, checkpoint: Checkpoint) -> Callable[[], None] | None:
        """Read what has to be decoded and return what adds the checkpoint, which cannot fail.

        None if a weight is not above zero.

        :raises StatusError: INVALID_ARGUMENT if a tensor is corrupt.
        """
        tensors: dict[str, Tensor] = {}
        weights = np.ones(len(self._weights))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for index, (name, dtype) in enumerate(self._weights):
                if name not in tensors:
                    tensors[name] = checkpoint[name].reshape(())
                number = tensors[name][()]
                if not number > 0:
                    return None
                weights[index] = dtype.type(number)
        others = []
        for name, adder in self._decoded:
            tensor = tensors[name] if name in tensors else checkpoint[name]
            others.append((adder, tensor.reshape(-1).view(np.uint8)))
        return functools.partial(self._add, checkpoint.data, weights, others)

    def _add(
        self,
        data: memoryview,
        weights: NDArray[np.float64],
        others: Sequence[tuple[Adder, NDArray[np.uint8]]],
    ) -> None:
        for adder in self._adders:
            adder(data, weights)
        for adder, decoded in others:
            adder(decoded, weights)
        self._additions.count()

    def _adder(self, dtype: np.dtype[Any], rows: Sequence[tuple[int, int, int, int]]) -> Adder:
        table = np.array(rows, np.int64).reshape(-1, 4)
        return self._additions._kernels.adder(self._additions._arrays[dtype], table)


def _term(accumulator: Accumulator, addition: Addition, specs: Sequence[TensorSpec]) -> _Term:
    value = specs[addition.value]
    weight = None if addition.weight is None else specs[addition.weight]
    array, dtype = addition.total.array, value.dtype.numpy
    if (
        not value.is_fully_defined
        or array.dtype != dtype
        or dtype.kind not in "fiu"
        or array.size != math.prod(value.shape)
        or not array.flags.c_contiguous
        or (weight is not None and (weight.shape not in ((), (1,)) or dtype.kind != "f"))
    ):
        raise StatusError(
            Code.INTERNAL,
            f"{type(accumulator).__name__} names an addition that cannot be made: {value} to "
            f"{array.dtype}{list(array.shape)}",
        )
    return _Term(addition.total, value, weight)


def _fits(spec: TensorSpec, entry: Any) -> bool:
    if entry is None:
        return False
    try:
        dtype, shape = entry.spec()
    except StatusError:
        return False
    return spec.fits(dtype, shape)
