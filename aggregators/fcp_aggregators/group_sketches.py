"""Sketches for each group of a group-by: approximate quantiles, and counts of distinct values.

Both keep a number in each of few cells of a group: how many values are in a bucket, or the largest
rank of a register. Cells are kept only where there is something in them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Options
from fcp_core.aggregation.checks import bad, check_length
from fcp_core.aggregation.group_columns import (
    COLUMN,
    Column,
    Number,
    check_inputs,
    longer,
    rows_with_values,
)
from fcp_core.aggregation.key_index import KeyIndex
from fcp_core.aggregation.numbers import check_finite
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor
from fcp_core.protocol import sketches
from fcp_core.protocol.status import Code, StatusError

QUANTILE_URI = "fcp:approx_quantile"
DISTINCT_URI = "fcp:approx_count_distinct"

#: A cell's number within its group has as many bits, its sign included.
_BITS = 16
_ZERO = 1 << (_BITS - 1)
#: What a cell takes: its key, its number, and their place in the index.
_CELL_BYTES = 128
_ROW = np.dtype("<i8")


class CellColumn(Column):
    """A number in each cell of a group."""

    #: How a cell's number and another one become one.
    combine: ClassVar[Any]

    def __init__(self, nested: Intrinsic, options: Options) -> None:
        super().__init__(nested, options)
        self._index = KeyIndex([DataType.UINT64])
        self._numbers: NDArray[np.int64] = np.zeros(16, np.int64)

    @property
    def nbytes(self) -> int:
        """What the cells take."""
        return len(self._index) * _CELL_BYTES

    def grow(self, size: int) -> None:
        """Need no room: cells are made one by one."""

    def merge(self, ordinals: NDArray[np.int64], other: Self, groups: int) -> None:
        """Take the other's cells."""
        owners, cells, numbers = other.cells()
        self._put(ordinals[owners], cells, numbers)

    def dump(self, groups: int) -> bytes:
        """Return the number of groups, then for each cell its group, its number and what is in it.

        In the order of the groups and cells, so that equal sketches look equal.
        """
        owners, cells, numbers = self.cells()
        order = np.lexsort((cells, owners))
        rows: Tensor = np.stack([owners[order], cells[order], numbers[order]], axis=1)
        return np.array([groups], _ROW).tobytes() + rows.astype(_ROW).tobytes()

    def load(self, data: bytes, groups: int) -> None:
        """Take cells."""
        check_length(self.nested, "groups", self.groups_in(self.nested, data), groups)
        owners, cells, numbers = np.frombuffer(data, _ROW)[1:].reshape(-1, 3).T
        good = (owners >= 0) & (owners < groups) & (np.abs(cells) < _ZERO) & (numbers > 0)
        if not good.all():
            raise bad(self.nested, "a cell of the state is out of range")
        self._put(owners, cells, numbers)
        if len(self._index) != owners.size:
            raise bad(self.nested, "the state has a cell twice")

    @classmethod
    def groups_in(cls, nested: Intrinsic, data: bytes) -> int:
        """Return what the state says."""
        if len(data) % (3 * _ROW.itemsize) != _ROW.itemsize:
            raise bad(nested, f"the state's {len(data)} bytes are no cells")
        return int(np.frombuffer(data[: _ROW.itemsize], _ROW)[0])

    def cells(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the group of each cell, its number in it, and what is in it."""
        keys = self._index.columns()[0]
        owners = (keys >> np.uint64(_BITS)).astype(np.int64)
        cells = (keys & np.uint64((1 << _BITS) - 1)).astype(np.int64) - _ZERO
        return owners, cells, self._numbers[: keys.size]

    def _put(
        self, owners: NDArray[np.int64], cells: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> None:
        keys = (owners << _BITS | (cells + _ZERO)).astype(np.uint64)
        places = self._index.add([keys])
        if len(self._index) > self._numbers.size:
            self._numbers = longer(self._numbers, max(len(self._index), 2 * self._numbers.size))
        self.combine.at(self._numbers, places, numbers)

    @abstractmethod
    def report(self, groups: int) -> Tensor:
        """Return the estimates."""


class QuantileColumn(CellColumn):
    """An approximate quantile: how many values are in each bucket of nearly equal numbers.

    A second input says how many rows a row stands for; 0 for none (NULL).
    """

    combine = np.add

    def __init__(self, nested: Intrinsic, options: Options) -> None:
        super().__init__(nested, options)
        check_inputs(nested, parameters=True)
        if nested.outputs[0].dtype is not DataType.DOUBLE:
            raise bad(nested, f"its output {nested.outputs[0]} must be of dtype double")
        given: dict[str, float] = {}
        for parameter in nested.parameters:
            if parameter.name not in ("quantile", "relative_error") or parameter.name in given:
                raise bad(
                    nested, f"parameter {parameter.name!r}; it takes quantile, relative_error"
                )
            if parameter.value.dtype.kind != "f" or parameter.value.size != 1:
                raise bad(nested, f"{parameter.name} must be one floating-point number")
            given[parameter.name] = float(parameter.value.reshape(())[()])
        self._quantile = given.get("quantile", float("nan"))
        if not 0 <= self._quantile <= 1:
            raise bad(nested, f"quantile must be given, from 0 to 1, not {self._quantile}")
        self._error = given.get("relative_error", sketches.RELATIVE_ERROR)
        try:
            sketches.check_relative_error(self._error)
        except ValueError as error:
            raise bad(nested, str(error)) from None
        self._total = 0

    def check(self, values: Sequence[Tensor], number: Number) -> None:
        """Refuse NaN and infinities where there is a value, and counts that are none."""
        check_finite(self.nested.inputs[0].name, values[0][rows_with_values(values)])
        if len(values) == 1 or not values[1].size:
            return
        name = self.nested.inputs[1].name
        if values[1].min() < 0:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"column {name!r} has {values[1].min()}; counts are 0 or more",
            )
        self._check_total(int(values[1].astype(object).sum()), name, Code.INVALID_ARGUMENT)

    def add(self, ordinals: NDArray[np.int64], values: Sequence[Tensor]) -> None:
        """Count each row in its bucket."""
        rows = rows_with_values(values)
        counts = np.ones(ordinals.size, np.int64) if len(values) == 1 else values[1]
        counts = counts[rows].astype(np.int64)
        self._total += int(counts.sum())
        self._put(ordinals[rows], sketches.buckets(values[0][rows], self._error), counts)

    def check_merge(self, other: Self, groups: int, number: Number) -> None:
        """Refuse counts that are too large together."""
        name = self.nested.inputs[-1].name
        self._check_total(other._total, name, Code.OUT_OF_RANGE)

    def merge(self, ordinals: NDArray[np.int64], other: Self, groups: int) -> None:
        """Add the other's counts."""
        super().merge(ordinals, other, groups)
        self._total += other._total

    def load(self, data: bytes, groups: int) -> None:
        """Take buckets."""
        super().load(data, groups)
        self._total = int(self.cells()[2].astype(object).sum())
        self._check_total(0, self.nested.inputs[-1].name, Code.INVALID_ARGUMENT)

    def report(self, groups: int) -> Tensor:
        """Return the value of the bucket in which the quantile is; NaN for a group of nothing."""
        owners, cells, counts = self.cells()
        order = np.lexsort((cells, owners))
        owners, cells, counts = owners[order], cells[order], counts[order]
        sums = np.concatenate(([0], np.cumsum(counts)))
        starts = np.searchsorted(owners, np.arange(groups))
        ends = np.searchsorted(owners, np.arange(groups), side="right")
        sizes = sums[ends] - sums[starts]
        ranks = np.maximum(np.ceil(self._quantile * sizes).astype(np.int64), 1)
        places = np.searchsorted(sums[1:], sums[starts] + ranks)
        result = np.full(groups, np.nan)
        found = sizes > 0
        result[found] = sketches.bucket_values(cells[places[found]], self._error)
        return result

    def _check_total(self, more: int, name: str, code: Code) -> None:
        if self._total + more > np.iinfo(np.int64).max:
            raise StatusError(code, f"column {name!r} brings its counts out of the range of int64")


class DistinctColumn(CellColumn):
    """An approximate count of distinct values, of the codes that devices make of them."""

    combine = np.maximum

    def __init__(self, nested: Intrinsic, options: Options) -> None:
        super().__init__(nested, options)
        specs = (*nested.inputs, *nested.outputs)
        if (
            [spec.dtype for spec in specs] != [DataType.INT64] * 2
            or any(spec.shape != COLUMN for spec in specs)
            or len(nested.inputs) != 1
            or nested.parameters
            or nested.nested
        ):
            raise bad(nested, "it takes one column of int64 and gives one, without parameters")

    def check(self, values: Sequence[Tensor], number: Number) -> None:
        """Refuse what is no code."""
        codes = values[0]
        ranks = sketches.split_codes(codes)[1]
        good = (codes == 0) | (
            (codes > 0) & (codes < sketches.MAX_CODE) & (ranks > 0) & (ranks <= sketches.MAX_RANK)
        )
        if not good.all():
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"column {self.nested.inputs[0].name!r} has {codes[int(np.argmin(good))]}, which "
                "is no code of a distinct value",
            )

    def add(self, ordinals: NDArray[np.int64], values: Sequence[Tensor]) -> None:
        """Take each code's register."""
        rows = np.flatnonzero(values[0])
        registers, ranks = sketches.split_codes(values[0][rows])
        self._put(ordinals[rows], registers, ranks)

    def load(self, data: bytes, groups: int) -> None:
        """Take registers."""
        super().load(data, groups)
        _, cells, ranks = self.cells()
        if ((cells < 0) | (cells >= sketches.REGISTERS) | (ranks > sketches.MAX_RANK)).any():
            raise bad(self.nested, "a register of the state is out of range")

    def report(self, groups: int) -> Tensor:
        """Return the estimates, rounded."""
        owners, _, ranks = self.cells()
        width = sketches.MAX_RANK + 1
        counts = np.bincount(owners * width + ranks, minlength=groups * width)
        estimates = sketches.estimate_distinct(counts.reshape(groups, width))
        return np.rint(estimates).astype(np.int64)
