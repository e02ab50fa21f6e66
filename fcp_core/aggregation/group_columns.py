"""What a group-by keeps beside its keys: sums, and the least and the greatest values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Options
from fcp_core.aggregation.checks import bad, check_counts, check_length, check_numeric
from fcp_core.aggregation.key_index import Numbering
from fcp_core.aggregation.numbers import ALLOW_NON_FINITE, check_finite
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor
from fcp_core.protocol.status import Code, StatusError

SUM_URI = "GoogleSQL:sum"
MIN_URI = "GoogleSQL:min"
MAX_URI = "GoogleSQL:max"

#: The shape of every column.
COLUMN = (-1,)
INTEGERS = (DataType.INT32, DataType.INT64)
_WIDER = {DataType.INT32: DataType.INT64, DataType.FLOAT: DataType.DOUBLE}

#: Numbers rows; what it returns is computed once, and only if somebody asks.
Number = Callable[[], Numbering]


class Column(ABC):
    """What one nested intrinsic keeps for each group.

    :param nested: the intrinsic.
    :param options: those of the group-by.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit.
    """

    def __init__(self, nested: Intrinsic, options: Options) -> None:
        self.nested = nested
        self.non_finite = options.get(ALLOW_NON_FINITE) is True

    @property
    def nbytes(self) -> int:
        """How many bytes it takes beyond one number a group."""
        return 0

    @abstractmethod
    def check(self, values: Sequence[Tensor], number: Number) -> None:
        """Refuse what a device sent for it, without changing anything.

        :raises StatusError: INVALID_ARGUMENT, naming the column.
        """

    @abstractmethod
    def add(self, ordinals: NDArray[np.int64], values: Sequence[Tensor]) -> None:
        """Take a device's rows; there is room for all groups."""

    def check_merge(self, other: Self, groups: int, number: Number) -> None:
        """Refuse another one's groups, without changing anything.

        :raises StatusError: OUT_OF_RANGE, naming the column.
        """

    @abstractmethod
    def merge(self, ordinals: NDArray[np.int64], other: Self, groups: int) -> None:
        """Take another one's groups, which have these ordinals here."""

    @abstractmethod
    def grow(self, size: int) -> None:
        """Make room for *size* groups."""

    @abstractmethod
    def report(self, groups: int) -> Tensor:
        """Return the value of each group."""

    @abstractmethod
    def dump(self, groups: int) -> bytes:
        """Return the state of all groups."""

    @abstractmethod
    def load(self, data: bytes, groups: int) -> None:
        """Take a state into an empty one with room for its groups.

        :raises StatusError: INVALID_ARGUMENT if it is none.
        """

    @classmethod
    @abstractmethod
    def groups_in(cls, nested: Intrinsic, data: bytes) -> int:
        """Return how many groups a state has, by its length."""


class SumColumn(Column):
    """A sum, in the output's dtype."""

    def __init__(self, nested: Intrinsic, options: Options) -> None:
        super().__init__(nested, options)
        check_counts(nested, inputs=1, outputs=1)
        (spec,), (output,) = nested.inputs, nested.outputs
        check_numeric(nested, spec)
        if output.dtype not in (spec.dtype, _WIDER.get(spec.dtype)):
            raise bad(nested, f"{spec} cannot be summed into {output}: the dtypes do not fit")
        check_columns(nested)
        self._name = spec.name
        dtype = output.dtype.numpy
        self._integer = dtype.kind in "iu"
        self._sums: Tensor = np.zeros(16, dtype)
        # Half: far more than the rounding of the sums of floats can bring about.
        greatest = np.iinfo(dtype).max if self._integer else np.finfo(dtype).max.item()
        self._limit = greatest // 2
        #: No sum is larger in magnitude: an int for integers.
        self._bound: float = 0

    def check(self, values: Sequence[Tensor], number: Number) -> None:
        """Refuse NaN, infinities, and what would bring a sum out of its dtype."""
        if not self.non_finite:
            check_finite(self._name, values[0])
        self._check_room(values[0], number, Code.INVALID_ARGUMENT)

    def add(self, ordinals: NDArray[np.int64], values: Sequence[Tensor]) -> None:
        """Add each row to its group."""
        with np.errstate(over="ignore", invalid="ignore"):
            np.add.at(self._sums, ordinals, values[0].astype(self._sums.dtype, copy=False))
        self._bound += values[0].size * magnitude(values[0])

    def check_merge(self, other: Self, groups: int, number: Number) -> None:
        """Refuse sums that are too large together."""
        self._check_room(other._sums[:groups], number, Code.OUT_OF_RANGE)

    def merge(self, ordinals: NDArray[np.int64], other: Self, groups: int) -> None:
        """Add the other's sums."""
        with np.errstate(over="ignore", invalid="ignore"):
            self._sums[ordinals] += other._sums[:groups]
        self._bound += other._bound

    def grow(self, size: int) -> None:
        """Make room."""
        self._sums = longer(self._sums, size)

    def report(self, groups: int) -> Tensor:
        """Return the sums."""
        return self._sums[:groups]

    def dump(self, groups: int) -> bytes:
        """Return the sums as they are in memory."""
        return self._sums[:groups].tobytes()

    def load(self, data: bytes, groups: int) -> None:
        """Take sums."""
        sums = np.frombuffer(data, self._sums.dtype)
        check_length(self.nested, "groups", sums.size, groups)
        self._sums[:groups] = sums
        self._bound = magnitude(sums)

    @classmethod
    def groups_in(cls, nested: Intrinsic, data: bytes) -> int:
        """Return how many numbers there are."""
        dtype = nested.outputs[0].dtype.numpy
        if len(data) % dtype.itemsize:
            raise bad(nested, f"a sum of the state is not a vector of {dtype}")
        return len(data) // dtype.itemsize

    def _check_room(self, values: Tensor, number: Number, code: Code) -> None:
        """Refuse rows with which a sum would leave its dtype."""
        if not values.size or (self.non_finite and not self._integer):
            return
        added = values.size * magnitude(values)
        if self._bound + added <= self._limit:
            return
        self._bound = magnitude(self._sums)
        if self._bound + added <= self._limit:
            return
        touched, places = np.unique(number().ordinals, return_inverse=True)
        old = np.zeros(touched.size, self._sums.dtype)
        known = touched < self._sums.size
        old[known] = self._sums[touched[known]]
        fits = _integers_fit if self._integer else _floats_fit
        if not fits(old, places, values):
            raise StatusError(
                code,
                f"column {self._name!r} brings the sum of a group out of the range of "
                f"{self._sums.dtype}",
            )


class ExtremumColumn(Column):
    """The least or the greatest value; 0 or NaN for a group without any.

    A second input says of each row whether it has a value: 0 if it has none (NULL).
    """

    def __init__(self, nested: Intrinsic, options: Options) -> None:
        super().__init__(nested, options)
        check_inputs(nested)
        spec, output = nested.inputs[0], nested.outputs[0]
        if output.dtype is not spec.dtype:
            raise bad(nested, f"{spec} and {output} must be of one dtype")
        self._ufunc = np.fmin if nested.uri == MIN_URI else np.fmax
        dtype = spec.dtype.numpy
        self._values: Tensor = np.zeros(16, dtype)
        self._present: NDArray[np.bool_] = np.zeros(16, bool)

    def check(self, values: Sequence[Tensor], number: Number) -> None:
        """Refuse NaN and infinities where there is a value."""
        if not self.non_finite:
            check_finite(self.nested.inputs[0].name, values[0][rows_with_values(values)])

    def add(self, ordinals: NDArray[np.int64], values: Sequence[Tensor]) -> None:
        """Compare each row with its group."""
        rows = rows_with_values(values)
        self._take(ordinals[rows], values[0][rows])

    def merge(self, ordinals: NDArray[np.int64], other: Self, groups: int) -> None:
        """Compare with the other's values."""
        rows = np.flatnonzero(other._present[:groups])
        self._take(ordinals[rows], other._values[rows])

    def grow(self, size: int) -> None:
        """Make room."""
        self._values, self._present = longer(self._values, size), longer(self._present, size)

    def report(self, groups: int) -> Tensor:
        """Return the values."""
        missing = np.nan if self._values.dtype.kind == "f" else 0
        return np.where(
            self._present[:groups], self._values[:groups], self._values.dtype.type(missing)
        )

    def dump(self, groups: int) -> bytes:
        """Return the values, then a bit for each group."""
        bits = np.packbits(self._present[:groups])
        return self._values[:groups].tobytes() + bits.tobytes()

    def load(self, data: bytes, groups: int) -> None:
        """Take values."""
        check_length(self.nested, "groups", self.groups_in(self.nested, data), groups)
        size = groups * self._values.dtype.itemsize
        self._values[:groups] = np.frombuffer(data[:size], self._values.dtype)
        bits = np.frombuffer(data[size:], np.uint8)
        self._present[:groups] = np.unpackbits(bits)[:groups].astype(bool)

    @classmethod
    def groups_in(cls, nested: Intrinsic, data: bytes) -> int:
        """Return how many values there are, with their bits."""
        size = nested.outputs[0].dtype.numpy.itemsize
        groups = len(data) * 8 // (8 * size + 1)
        if len(data) != groups * size + -(-groups // 8):
            raise bad(nested, f"the state's {len(data)} bytes are no vector of values")
        return groups

    def _take(self, ordinals: NDArray[np.int64], values: Tensor) -> None:
        # A group's first value is what its others are compared with.
        new = ~self._present[ordinals]
        self._values[ordinals[new]] = values[new]
        self._present[ordinals] = True
        self._ufunc.at(self._values, ordinals, values)


def check_keys(intrinsic: Intrinsic) -> None:
    """Refuse keys of a grouping that have no output like them, and one with nothing to group.

    :param intrinsic: the grouping: its inputs and outputs are the keys.
    :raises StatusError: INVALID_ARGUMENT.
    """
    if len(intrinsic.inputs) != len(intrinsic.outputs):
        raise bad(
            intrinsic, f"{len(intrinsic.inputs)} key inputs and {len(intrinsic.outputs)} outputs"
        )
    for spec, output in zip(intrinsic.inputs, intrinsic.outputs, strict=True):
        if (spec.dtype, spec.shape) != (output.dtype, output.shape) or spec.shape != COLUMN:
            raise bad(intrinsic, f"key {spec} and its output {output} must be equal vectors [?]")
    if not intrinsic.inputs and not intrinsic.nested:
        raise bad(intrinsic, "it has neither keys nor nested intrinsics")


def check_columns(nested: Intrinsic) -> None:
    """Refuse inputs and outputs that are no columns.

    :raises StatusError: INVALID_ARGUMENT.
    """
    specs = (*nested.inputs, *nested.outputs)
    if any(spec.shape != COLUMN for spec in specs):
        raise bad(nested, f"{' and '.join(map(str, specs))} must be vectors [?]")


def check_inputs(nested: Intrinsic, parameters: bool = False) -> None:
    """Refuse what is not a column of numbers, optionally with one of integers, and one output.

    :param parameters: whether it may have parameters.
    :raises StatusError: INVALID_ARGUMENT.
    """
    if len(nested.inputs) not in (1, 2) or len(nested.outputs) != 1 or nested.nested:
        raise bad(nested, "it takes a column, optionally a second one, and gives one column")
    if nested.parameters and not parameters:
        raise bad(nested, f"{len(nested.parameters)} parameters, where 0 are expected")
    check_numeric(nested, nested.inputs[0])
    if len(nested.inputs) == 2 and nested.inputs[1].dtype not in INTEGERS:
        raise bad(nested, f"the second input {nested.inputs[1]} must be of int32 or int64")
    check_columns(nested)


def rows_with_values(values: Sequence[Tensor]) -> Any:
    """Return the rows that have a value: all, or those whose second input is not 0."""
    return slice(None) if len(values) == 1 else np.flatnonzero(values[1])


def magnitude(numbers: Tensor) -> float:
    """Return the largest magnitude: an int of integers, 0 of nothing."""
    if not numbers.size:
        return 0
    low, high = numbers.min().item(), numbers.max().item()
    return max(abs(low), abs(high))  # type: ignore[no-any-return]


def longer(vector: Tensor, size: int) -> Tensor:
    """Return the vector with zeros after it."""
    result = np.zeros(size, vector.dtype)
    result[: len(vector)] = vector
    return result


def _floats_fit(old: Tensor, places: NDArray[np.int64], values: Tensor) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        np.add.at(old, places, values.astype(old.dtype, copy=False))
    return bool(np.isfinite(old).all())


def _integers_fit(old: Tensor, places: NDArray[np.int64], values: Tensor) -> bool:
    """Whether sums of integers fit, computed exactly: in halves of 32 bits."""
    values = values if values.dtype.itemsize == 8 else values.astype(np.int64)
    lows, highs = np.zeros(old.size, np.int64), np.zeros(old.size, np.int64)
    np.add.at(lows, places, (values & values.dtype.type(0xFFFFFFFF)).astype(np.int64))
    np.add.at(highs, places, (values >> values.dtype.type(32)).astype(np.int64))
    limits = np.iinfo(old.dtype)
    return all(
        limits.min <= before + (high << 32) + low <= limits.max
        for before, high, low in zip(old.tolist(), highs.tolist(), lows.tolist(), strict=True)
    )
