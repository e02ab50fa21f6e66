"""Accumulating by addition: many accumulators whose state is a sum take a contribution in one go.

An accumulator that only adds says so with :meth:`Accumulator.additions`. The totals of all of them
then lie side by side, one array for each dtype, and the elements of a contribution are added where
they lie in its bytes, without a call, a view or a check for each tensor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcp_core.aggregation.adoption import adopt, can_adopt
from fcp_core.aggregation.aggregator import Accumulator, Addition, Total
from fcp_core.aggregation.spec import DataType, Tensor, TensorSpec
from fcp_core.protocol.checkpoint import Checkpoint, Layout
from fcp_core.protocol.checkpoint.kernels import Adder, Bytes, Kernels, Peak
from fcp_core.protocol.status import Code, StatusError

_Place = tuple[np.dtype[Any], bool]


@dataclass(frozen=True)
class _Term:
    """An addition with the specifications of what it takes."""

    total: Total
    value: TensorSpec
    weight: TensorSpec | None
    #: Which array the total is in: its dtype, and whether that may hold what is not finite.
    place: _Place

    @property
    def order(self) -> tuple[str, bool, str]:
        """Terms of one array and one weight lie together."""
        dtype, non_finite = self.place
        return dtype.str, non_finite, self.weight.name if self.weight else ""


class Additions:
    """The totals of the accumulators that only add.

    :param members: the accumulators, with the specifications of their inputs.
    :param kernels: what adds.
    :param empty: whether nothing was accumulated so far.
    :raises StatusError: INTERNAL if an accumulator names additions that cannot be made.
    """

    def __init__(
        self,
        members: Iterable[tuple[Accumulator, Sequence[TensorSpec]]],
        kernels: Kernels,
        *,
        empty: bool = False,
    ) -> None:
        self._kernels = kernels
        self._empty = empty
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
        self._arrays: dict[_Place, Tensor] = {}
        self._starts: list[int] = []
        self._pack()
        #: For the arrays that must stay finite and in range: whether they will.
        self._rooms: dict[_Place, Room] = {}
        self._measure()
        #: How many contributions were added and the accumulators do not know of.
        self.pending = 0

    def plan(self, layout: Layout) -> Plan | None:
        """Prepare to add checkpoints of one layout; None if they do not fit the accumulators."""
        entries = layout.entries
        for term in self._terms:
            for spec in (term.value, term.weight):
                if spec is not None and not _fits(spec, entries.get(spec.name)):
                    return None
        return Plan(self, layout)

    def changed(self) -> None:
        """Note that the accumulators themselves changed the totals."""
        self._empty = False
        for room in self._rooms.values():
            room.forget()

    def takes(self, other: Additions) -> bool:
        """Whether :meth:`merge` can add what *other* holds: it is sure to stay in range."""
        return self._shape() == other._shape() and all(
            room.has(other._rooms[place].peak) for place, room in self._rooms.items()
        )

    def merge(self, other: Additions) -> None:
        """Add the totals of *other*, of which :meth:`takes` was true, and its counts."""
        self._empty = False
        for place, array in self._arrays.items():
            # Where infinities are allowed, one is no reason to warn.
            with np.errstate(over="ignore", invalid="ignore"):
                np.add(array, other._arrays[place], out=array)
        for place, room in self._rooms.items():
            room.take(other._rooms[place].peak)
        for mine, theirs in zip(self.accumulators, other.accumulators, strict=True):
            mine.added(theirs.num_inputs)

    def _shape(self) -> tuple[object, ...]:
        """Return what two have in common whose arrays can be added."""
        terms = [(term.value, term.weight, term.place) for term in self._terms]
        return terms, self._starts, [type(item) for item in self.accumulators]

    def settle(self) -> None:
        """Let the accumulators know how many contributions were added."""
        count, self.pending = self.pending, 0
        if count:
            for accumulator in self.accumulators:
                accumulator.added(count)

    def _adopt(self, place: _Place, array: Tensor) -> None:
        """Take other memory for the totals of a place; all plans are of no use then."""
        self._arrays[place] = array
        for term, start in zip(self._terms, self._starts, strict=True):
            if term.place == place:
                old = term.total.array
                term.total.array = array[start : start + old.size].reshape(old.shape)
        self._measure()

    def _measure(self) -> None:
        self._rooms = {place: Room(array) for place, array in self._arrays.items() if not place[1]}

    def _pack(self) -> None:
        """Move the totals of each place into one array."""
        sizes: dict[_Place, int] = {}
        for term in self._terms:
            self._starts.append(sizes.get(term.place, 0))
            sizes[term.place] = sizes.get(term.place, 0) + term.total.array.size
        for at, size in sizes.items():
            mine = [
                (term.total, start)
                for term, start in zip(self._terms, self._starts, strict=True)
                if term.place == at
            ]
            if len(mine) == 1:
                self._arrays[at] = mine[0][0].array.reshape(-1)
                continue
            packed = np.empty(size, at[0])
            for total, start in mine:
                place = packed[start : start + total.array.size].reshape(total.array.shape)
                place[...] = total.array
                total.array = place
            self._arrays[at] = packed


class Room:
    """Says of sums that they stay in the range of their dtype, by a bound on their magnitudes.

    :param totals: the sums, one array; it is read again whenever the bound does not tell.
    """

    def __init__(self, totals: Tensor) -> None:
        self._totals = totals
        self._limit: float
        # Each addition may round up, by half a unit in the last place.
        self._slack: float = 1
        if totals.dtype.kind == "f":
            self._limit = np.finfo(totals.dtype).max.item()
            self._slack += 2 * np.finfo(totals.dtype).eps.item()
        else:
            self._limit = int(np.iinfo(totals.dtype).max)
        self._bound: float | None = None

    def has(self, peak: float) -> bool:
        """Whether numbers up to *peak* in magnitude can be added; False also if that is open.

        :param peak: NaN if they are not finite.
        """
        if not peak <= self._limit:
            return False
        if self._bound is None or not self._after(peak) <= self._limit:
            self._bound = self._largest()
        return self._after(peak) <= self._limit

    @property
    def peak(self) -> float:
        """A bound on the magnitudes of the sums; NaN if they are not finite."""
        if self._bound is None:
            self._bound = self._largest()
        return self._bound

    def take(self, peak: float) -> None:
        """Note that they were added."""
        self._bound = self._after(peak)

    def forget(self) -> None:
        """Note that the sums were changed in some other way."""
        self._bound = None

    def _after(self, peak: float) -> float:
        return ((self._bound or 0) + peak) * self._slack

    def _largest(self) -> float:
        if not self._totals.size:
            return 0
        low, high = self._totals.min().item(), self._totals.max().item()
        # Comparisons with NaN are false, so that a sum that is none has no room for anything.
        return max(abs(low), abs(high)) if low == low else math.nan


class Plan:
    """How checkpoints of one layout are added; made by :meth:`Additions.plan`."""

    def __init__(self, additions: Additions, layout: Layout) -> None:
        self._additions = additions
        weights: dict[tuple[str, np.dtype[Any]], int] = {}
        rows: dict[_Place, list[tuple[int, int, int, int]]] = {}
        names: dict[_Place, list[str]] = {}
        decoded: dict[tuple[str, _Place], list[tuple[int, int, int, int]]] = {}
        for term, start in zip(additions._terms, additions._starts, strict=True):
            dtype = term.place[0]
            weight = -1
            if term.weight is not None:
                weight = weights.setdefault((term.weight.name, dtype), len(weights))
            span = layout.elements.get(term.value.name)
            size = term.total.array.size
            if not size:
                # Nothing to add, but what is stored has to be right.
                decoded.setdefault((term.value.name, term.place), [])
            elif span is not None and term.value.dtype.numpy == dtype:
                rows.setdefault(term.place, []).append((start, span[0], size, weight))
                names.setdefault(term.place, []).append(term.value.name)
            else:
                row = (start, 0, size, weight)
                decoded.setdefault((term.value.name, term.place), []).append(row)
        self._weights = list(weights)
        self._steps = [
            self._step(place, table, [layout.peaks.get(name, -1) for name in names[place]])
            for place, table in rows.items()
        ]
        # What is not stored as it is in the total is decoded first.
        self._decoded = [
            (name, place[0], self._step(place, table)) for (name, place), table in decoded.items()
        ]

    def prepare(
        self, checkpoint: Checkpoint, own: memoryview | None = None
    ) -> Callable[[], bool] | None:
        """Read what has to be decoded and return what adds the checkpoint, which cannot fail.

        That returns whether it took the checkpoint's memory for the totals: the checkpoint and all
        plans are of no use then. None if the accumulators have to look at it: a weight is negative
        or not finite, or it is not sure that all totals stay in range.

        :param own: the bytes of the checkpoint, if they may be changed and kept.
        :raises StatusError: INVALID_ARGUMENT if a tensor is corrupt.
        """
        tensors: dict[str, Tensor] = {}
        weights = np.ones(len(self._weights))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for index, (name, dtype) in enumerate(self._weights):
                if name not in tensors:
                    tensors[name] = checkpoint[name].reshape(())
                number = tensors[name][()]
                if not 0 <= number < math.inf:
                    return None
                weights[index] = dtype.type(number)
        work: list[tuple[_Step, Bytes]] = [(step, checkpoint.data) for step in self._steps]
        for name, dtype, step in self._decoded:
            tensor = tensors[name] if name in tensors else checkpoint[name]
            elements = tensor.reshape(-1).astype(dtype, copy=False)
            work.append((step, elements.view(np.uint8)))
        peaks: dict[_Place, float] = {}
        for step, data in work:
            peak = _peak(step, checkpoint, data, weights)
            if peak is not None:
                before = peaks.get(step.place, peak)
                # A NaN stays one.
                peaks[step.place] = before if before > peak or before != before else peak
        rooms = self._additions._rooms
        if not all(rooms[place].has(peak) for place, peak in peaks.items()):
            return None
        return functools.partial(self._add, weights, work, peaks, own)

    def _add(
        self,
        weights: NDArray[np.float64],
        work: Sequence[tuple[_Step, Bytes]],
        peaks: Mapping[_Place, float],
        own: memoryview | None,
    ) -> bool:
        adopted = None
        if own is not None and self._additions._empty:
            able = [step for step in self._steps if can_adopt(own, step.place[0], step.rows)]
            adopted = able[0] if able else None
        self._additions._empty = False
        for step, data in work:
            if step is not adopted:
                step.add(data, weights)
        if own is not None and adopted is not None:
            # Last, for it may overwrite what the others add.
            total = adopt(own, adopted.place[0], adopted.rows, weights)
            self._additions._adopt(adopted.place, total)
        for place, peak in peaks.items():
            self._additions._rooms[place].take(peak)
        self._additions.pending += 1
        return adopted is not None

    def _step(
        self,
        place: _Place,
        rows: Sequence[tuple[int, int, int, int]],
        peaks: Sequence[int] = (),
    ) -> _Step:
        table = np.array(rows, np.int64).reshape(-1, 4)
        kernels, total = self._additions._kernels, self._additions._arrays[place]
        peak = None if place[1] else kernels.peak(place[0], table)
        known = np.array(peaks, np.int64) if peaks and min(peaks) >= 0 else None
        return _Step(place, table, kernels.adder(total, table), peak, known)


@dataclass(frozen=True)
class _Step:
    """What adds to one array; and what measures that first, unless anything may be added."""

    place: _Place
    #: As for an adder.
    rows: NDArray[np.int64]
    add: Adder
    peak: Peak | None
    #: Where the peaks of what is added are in those of a checkpoint; None if they are not there.
    peaks: NDArray[np.int64] | None


def _peak(
    step: _Step, checkpoint: Checkpoint, data: Bytes, weights: NDArray[np.float64]
) -> float | None:
    """Return the peak of what is added, as opening the checkpoint found it if it did."""
    if step.peak is None:
        return None
    if checkpoint.peaks is None or step.peaks is None:
        return step.peak(data, weights)
    # The last factor is what -1 names.
    factors = np.append(weights, 1.0)[step.rows[:, 3]]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return float((checkpoint.peaks[step.peaks] * factors).max())


def _term(accumulator: Accumulator, addition: Addition, specs: Sequence[TensorSpec]) -> _Term:
    value = specs[addition.value]
    weight = None if addition.weight is None else specs[addition.weight]
    array, dtype = addition.total.array, value.dtype.numpy
    widened = value.dtype is DataType.INT32 and array.dtype == DataType.INT64.numpy
    if (
        not value.is_fully_defined
        or (array.dtype != dtype and not widened)
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
    place = (array.dtype, addition.allow_non_finite and dtype.kind == "f")
    return _Term(addition.total, value, weight, place)


def _fits(spec: TensorSpec, entry: Any) -> bool:
    if entry is None:
        return False
    try:
        dtype, shape = entry.spec()
    except StatusError:
        return False
    return spec.fits(dtype, shape)
