"""Accumulating by addition: many accumulators whose state is a sum take a contribution in one go.

An accumulator that only adds says so with :meth:`Accumulator.additions`. The totals of all of them
then lie side by side, one array for each dtype, and the elements of a contribution are added where
they lie in its bytes, without a call, a view or a check for each tensor. How is worked out here,
once for each structure of contributions; ``aggregation.checkpoint_aggregator`` does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcp_core.aggregation.aggregator import Accumulator, Addition, Total
from fcp_core.aggregation.spec import DataType, Tensor, TensorSpec
from fcp_core.protocol.blocks import rest
from fcp_core.protocol.checkpoint import Layout
from fcp_core.protocol.checkpoint.kernels import Adder, Kernels, Peak
from fcp_core.protocol.status import Code, StatusError

#: Elements that are merged at once.
_MERGED = 1 << 20

#: Which array totals are in: its dtype, and whether that may hold what is not finite.
Place = tuple[np.dtype[Any], bool]


@dataclass(frozen=True)
class _Term:
    """An addition with the specifications of what it takes."""

    total: Total
    value: TensorSpec
    weight: TensorSpec | None
    place: Place

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
        #: Whether nothing was added so far.
        self.empty = empty
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
        self._arrays: dict[Place, Tensor] = {}
        self._starts: list[int] = []
        self._pack()
        #: For the arrays that must stay finite and in range: whether they will.
        self.rooms: dict[Place, Room] = {}
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
        weights: dict[tuple[str, np.dtype[Any]], int] = {}
        rows: dict[Place, list[tuple[int, int, int, int]]] = {}
        names: dict[Place, list[str]] = {}
        decoded: dict[tuple[str, Place], list[tuple[int, int, int, int]]] = {}
        for term, start in zip(self._terms, self._starts, strict=True):
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
        steps = [
            self._step(place, table, [layout.peaks.get(name, -1) for name in names[place]])
            for place, table in rows.items()
        ]
        apart = [(name, at[0], self._step(at, table)) for (name, at), table in decoded.items()]
        return Plan(list(weights), steps, apart)

    def _step(
        self,
        place: Place,
        rows: Sequence[tuple[int, int, int, int]],
        peaks: Sequence[int] = (),
    ) -> Step:
        table = np.array(rows, np.int64).reshape(-1, 4)
        peak = None if place[1] else self._kernels.peak(place[0], table)
        known = np.array(peaks, np.int64) if peaks and min(peaks) >= 0 else None
        return Step(place, table, self._kernels.adder(self._arrays[place], table), peak, known)

    def changed(self) -> None:
        """Note that the accumulators themselves changed the totals."""
        self.empty = False
        for room in self.rooms.values():
            room.forget()

    def takes(self, other: Additions) -> bool:
        """Whether :meth:`merge` can add what *other* holds: it is sure to stay in range."""
        return self._shape() == other._shape() and all(
            room.after(other.rooms[place].peak) is not None for place, room in self.rooms.items()
        )

    def merge(self, other: Additions) -> None:
        """Add the totals of *other*, of which :meth:`takes` was true, and its counts."""
        self.empty = False
        pairs = [(array, other._arrays[place]) for place, array in self._arrays.items()]
        if self._starts != other._starts:
            # They were adopted from contributions that lie otherwise.
            terms = zip(self._terms, other._terms, strict=True)
            pairs = [(m.total.array.reshape(-1), o.total.array.reshape(-1)) for m, o in terms]
        # Where infinities are allowed, one is no reason to warn.
        with np.errstate(over="ignore", invalid="ignore"):
            for mine, theirs in pairs:
                _add(mine, theirs)
        for place, room in self.rooms.items():
            room.bound = (room.bound + other.rooms[place].peak) * room.slack
        for one, another in zip(self.accumulators, other.accumulators, strict=True):
            one.added(another.num_inputs)

    def _shape(self) -> tuple[object, ...]:
        """Return what two have in common whose arrays can be added."""
        terms = [(term.value, term.weight, term.place) for term in self._terms]
        return terms, [type(item) for item in self.accumulators]

    def settle(self) -> None:
        """Let the accumulators know how many contributions were added."""
        count, self.pending = self.pending, 0
        if count:
            for accumulator in self.accumulators:
                accumulator.added(count)

    def size(self, place: Place) -> int:
        """Return how many totals a place has."""
        return self._arrays[place].size

    def adopt(self, place: Place, array: Tensor, starts: Mapping[int, int]) -> None:
        """Take other memory for the totals of a place; all plans are of no use then.

        :param starts: where they begin in it, by where they began before.
        """
        self._arrays[place] = array
        for index, term in enumerate(self._terms):
            old = term.total.array
            if term.place == place and old.size:
                start = self._starts[index] = starts[self._starts[index]]
                term.total.array = array[start : start + old.size].reshape(old.shape)
        self._measure()

    def _measure(self) -> None:
        self.rooms = {place: Room(array) for place, array in self._arrays.items() if not place[1]}

    def _pack(self) -> None:
        """Move the totals of each place into one array."""
        sizes: dict[Place, int] = {}
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
            packed = np.zeros(size, at[0])
            for total, start in mine:
                place = packed[start : start + total.array.size].reshape(total.array.shape)
                if not self.empty:  # or it would be in memory, beside what may be adopted
                    place[...] = total.array
                total.array = place
            self._arrays[at] = packed


def _add(total: Tensor, more: Tensor) -> None:
    """Add one array to another: if they lie in files, memory need not hold both."""
    for start in range(0, total.size, _MERGED):
        mine, theirs = total[start : start + _MERGED], more[start : start + _MERGED]
        np.add(mine, theirs, out=mine)
        rest(theirs.data)


class Room:
    """Says of sums that they stay in the range of their dtype, by a bound on their magnitudes.

    :param totals: the sums, one array; it is read again whenever the bound does not tell.
    :ivar bound: no magnitude is larger: infinite if that is not known, NaN if one is not finite.
    :ivar limit: the largest magnitude of the dtype.
    :ivar slack: by how much an addition may round up, as a factor: half a unit in the last place.
    """

    def __init__(self, totals: Tensor) -> None:
        self._totals = totals
        self.limit: float
        self.slack: float = 1
        if totals.dtype.kind == "f":
            self.limit = np.finfo(totals.dtype).max.item()
            self.slack += 2 * np.finfo(totals.dtype).eps.item()
        else:
            self.limit = int(np.iinfo(totals.dtype).max)
        self.bound: float = math.inf

    def after(self, peak: float) -> float | None:
        """Return the bound once numbers up to *peak* in magnitude are added; None: no room.

        None also if that is open.

        :param peak: NaN if they are not finite.
        """
        if not peak <= self.limit:
            return None
        bound = (self.bound + peak) * self.slack
        if not bound <= self.limit:
            self.bound = self._largest()
            bound = (self.bound + peak) * self.slack
        return bound if bound <= self.limit else None

    @property
    def peak(self) -> float:
        """A bound on the magnitudes of the sums; NaN if they are not finite."""
        if self.bound == math.inf:
            self.bound = self._largest()
        return self.bound

    def forget(self) -> None:
        """Note that the sums were changed in some other way."""
        self.bound = math.inf

    def _largest(self) -> float:
        if not self._totals.size:
            return 0
        low, high = self._totals.min().item(), self._totals.max().item()
        # Comparisons with NaN are false, so that a sum that is none has no room for anything.
        return max(abs(low), abs(high)) if low == low else math.nan


@dataclass(frozen=True)
class Step:
    """What adds to one array; and what measures that first, unless anything may be added."""

    place: Place
    #: As for an adder.
    rows: NDArray[np.int64]
    add: Adder
    peak: Peak | None
    #: Where the peaks of what is added are in those of a checkpoint; None if they are not there.
    peaks: NDArray[np.int64] | None


@dataclass(frozen=True)
class Plan:
    """How checkpoints of one layout are added; made by :meth:`Additions.plan`.

    :param weights: the tensors that are factors, and the dtype of what they are factors of.
    :param steps: what adds elements where they lie in the checkpoint.
    :param decoded: what adds tensors that are not stored as they are in the total: the name and the
        dtype that they are decoded to.
    """

    weights: Sequence[tuple[str, np.dtype[Any]]]
    steps: Sequence[Step]
    decoded: Sequence[tuple[str, np.dtype[Any], Step]]


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
