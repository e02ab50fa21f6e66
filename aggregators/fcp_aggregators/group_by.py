"""``fedsql_group_by`` with ``GoogleSQL:sum``: a sum for each distinct key, as SQL's GROUP BY.

The state is upstream's ``GroupByAggregatorState``. Unlike upstream's, no sum wraps around or
becomes infinite: the contribution that would do that is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from fcp_aggregators.checks import (
    bad,
    check_counts,
    check_length,
    check_numeric,
    integer_parameter,
    parse_state,
    same_configuration,
)
from fcp_aggregators.key_index import KeyIndex
from fcp_core.aggregation.aggregator import NO_OPTIONS, Accumulator, AggregatorFactory, Options
from fcp_core.aggregation.configuration import flat_inputs
from fcp_core.aggregation.numbers import ALLOW_NON_FINITE, check_finite
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor
from fcp_core.aggregation.tensors import tensor_from_proto, tensor_to_proto
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code, StatusError

GROUP_BY_URI = "fedsql_group_by"
SUM_URI = "GoogleSQL:sum"
MIN_CONTRIBUTORS = "min_contributors_to_group"

_COLUMN = (-1,)
_WIDER = {DataType.INT32: DataType.INT64, DataType.FLOAT: DataType.DOUBLE}


class GroupByAccumulator(Accumulator):
    """Sums of value columns by the keys in key columns; groups in order of first appearance.

    Without keys all rows are one group, which exists once there has been a row. With
    ``min_contributors_to_group`` only groups of at least that many rows are reported, in random
    order.

    :param intrinsic: its inputs and outputs are the keys; it nests the sums.
    :param options: ``allow_non_finite``; it is about the sums, keys may be anything.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit.
    """

    def __init__(self, intrinsic: Intrinsic, options: Options = NO_OPTIONS) -> None:
        _check(intrinsic)
        self._intrinsic = intrinsic
        self._options = options
        self._non_finite = options.get(ALLOW_NON_FINITE) is True
        self._specs = tuple(flat_inputs(intrinsic))
        self._minimum = 0
        if intrinsic.parameters:
            value = intrinsic.parameters[0].value
            self._minimum = integer_parameter(intrinsic, value, MIN_CONTRIBUTORS, 1)
        self._num_inputs = 0
        self._groups = 0
        self._index = (
            KeyIndex([spec.dtype for spec in intrinsic.inputs]) if intrinsic.inputs else None
        )
        # Longer than the number of groups, so that they rarely have to grow.
        self._sums: list[Tensor] = [
            np.zeros(16, nested.outputs[0].dtype.numpy) for nested in intrinsic.nested
        ]
        self._contributors: NDArray[np.int64] = np.zeros(16, np.int64)

    @classmethod
    def load(cls, intrinsic: Intrinsic, data: bytes, options: Options = NO_OPTIONS) -> Self:
        """Rebuild an accumulator from :meth:`dump`."""
        state = parse_state(intrinsic, state_pb2.GroupByAggregatorState, data)
        self = cls(intrinsic, options)
        check_length(intrinsic, "keys", len(state.keys), len(intrinsic.inputs))
        check_length(intrinsic, "sums", len(state.nested_aggregators), len(intrinsic.nested))
        try:
            keys = [tensor_from_proto(key) for key in state.keys]
        except StatusError as error:
            raise bad(intrinsic, f"key of the state: {error.message}") from error
        for spec, key in zip(intrinsic.inputs, keys, strict=True):
            if not spec.matches(key):
                raise bad(intrinsic, f"key {spec} is {key.dtype}{list(key.shape)} in the state")
        sums = []
        for nested, total in zip(intrinsic.nested, state.nested_aggregators, strict=True):
            dtype = nested.outputs[0].dtype.numpy
            if len(total.vector_data) % dtype.itemsize:
                raise bad(intrinsic, f"a sum of the state is not a vector of {dtype}")
            sums.append(np.frombuffer(total.vector_data, dtype))
        groups = (keys + sums)[0].size
        for column in keys + sums:
            check_length(intrinsic, "groups", column.size, groups)
        if self._minimum:
            check_length(intrinsic, "counters", len(state.counter_of_contributors), groups)
        if self._index is None and groups > 1:
            raise bad(intrinsic, f"the state has {groups} groups without keys")
        if self._index is not None and len(np.unique(self._index.add(keys))) != groups:
            raise bad(intrinsic, "the state has a key twice")
        self._grow(groups)
        for mine, column in zip(self._sums, sums, strict=True):
            mine[:groups] = column
        if self._minimum:
            counters = [min(count, self._minimum) for count in state.counter_of_contributors]
            self._contributors[:groups] = counters
        self._num_inputs = state.num_inputs
        return self

    @property
    def num_inputs(self) -> int:
        """How many contributions it holds."""
        return self._num_inputs

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse columns that are not all of one length, and what would ruin a sum."""
        shape = inputs[0].shape
        for spec, tensor in zip(self._specs, inputs, strict=True):
            if tensor.ndim > 1 or tensor.shape != shape:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"{spec} has shape {tensor.shape} and {self._specs[0].name!r} has {shape}; "
                    "the columns of one contribution must be of one length",
                )
        keys = len(self._intrinsic.inputs)
        columns = [np.reshape(tensor, -1) for tensor in inputs]
        for spec, column in zip(self._specs[keys:], columns[keys:], strict=True):
            if not self._non_finite:
                check_finite(spec.name, column)
        self._check_room(columns[:keys], columns[keys:], Code.INVALID_ARGUMENT)

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Add each row to the sums of its group."""
        columns = [np.reshape(tensor, -1) for tensor in inputs]
        keys = len(self._intrinsic.inputs)
        ordinals = self._ordinals(columns[:keys], columns[0].size)
        with np.errstate(over="ignore", invalid="ignore"):
            for total, column in zip(self._sums, columns[keys:], strict=True):
                np.add.at(total, ordinals, column.astype(total.dtype, copy=False))
        if self._minimum:
            np.add.at(self._contributors, ordinals, 1)
            np.minimum(self._contributors, self._minimum, out=self._contributors)
        self._num_inputs += 1

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration, or one that is too large together."""
        if type(other) is not type(self) or not same_configuration(
            other._intrinsic, self._intrinsic
        ):
            raise bad(self._intrinsic, "only states of one configuration can be merged")
        keys = other._index.columns() if other._index is not None else []
        sums = [total[: other._groups] for total in other._sums]
        self._check_room(keys, sums, Code.OUT_OF_RANGE)

    def merge(self, other: Self) -> None:
        """Group the other's groups again."""
        self.validate_merge(other)
        groups = other._groups
        keys = other._index.columns() if other._index is not None else []
        ordinals = self._ordinals(keys, groups)
        with np.errstate(over="ignore", invalid="ignore"):
            for total, column in zip(self._sums, other._sums, strict=True):
                total[ordinals] += column[:groups]
        if self._minimum:
            self._contributors[ordinals] += other._contributors[:groups]
            np.minimum(self._contributors, self._minimum, out=self._contributors)
        self._num_inputs += other._num_inputs

    def report(self) -> list[Tensor]:
        """Return the key columns and the sums."""
        keys = self._index.columns() if self._index is not None else []
        result = keys + [total[: self._groups] for total in self._sums]
        if self._minimum:
            rows = np.flatnonzero(self._contributors[: self._groups] >= self._minimum)
            # The order of appearance would tell who came first.
            np.random.default_rng(secrets.randbits(128)).shuffle(rows)
            result = [column[rows] for column in result]
        return result

    def dump(self) -> bytes:
        """Return the state as a ``GroupByAggregatorState``."""
        keys = self._index.columns() if self._index is not None else []
        counters = self._contributors[: self._groups].tolist() if self._minimum else []
        return state_pb2.GroupByAggregatorState(
            num_inputs=self._num_inputs,
            keys=[tensor_to_proto(key) for key in keys],
            nested_aggregators=[
                state_pb2.OneDimGroupingAggregatorState(
                    num_inputs=self._num_inputs, vector_data=total[: self._groups].tobytes()
                )
                for total in self._sums
            ],
            counter_of_contributors=counters,
        ).SerializeToString()

    def _check_room(self, keys: Sequence[Tensor], values: Sequence[Tensor], code: Code) -> None:
        """Refuse rows with which a sum would leave its dtype."""
        trial: tuple[NDArray[np.int64], int] | None = None
        for nested, total, column in zip(self._intrinsic.nested, self._sums, values, strict=True):
            integer = total.dtype.kind in "iu"
            if not column.size or (not integer and self._non_finite):
                continue
            greatest = _magnitude(total[: self._groups]) + column.size * _magnitude(column)
            limit = np.iinfo(total.dtype).max if integer else np.finfo(total.dtype).max.item()
            # Half: far more than the rounding of the sums of floats can bring about.
            if greatest <= limit // 2:
                continue
            if trial is None:
                # The keys are numbered in a copy, since a refused contribution leaves no trace.
                copy = type(self).load(self._intrinsic, self.dump(), self._options)
                trial = copy._ordinals(keys, column.size), copy._groups
            ordinals, groups = trial
            spec = nested.inputs[0]
            if integer:
                exact = [*map(int, total[: self._groups]), *([0] * (groups - self._groups))]
                for ordinal, value in zip(ordinals.tolist(), column.tolist(), strict=True):
                    exact[ordinal] += value
                low, high = np.iinfo(total.dtype).min, np.iinfo(total.dtype).max
                fits = all(low <= number <= high for number in exact)
            else:
                sums = _longer(total[: self._groups], groups)
                with np.errstate(over="ignore", invalid="ignore"):
                    np.add.at(sums, ordinals, column.astype(total.dtype, copy=False))
                fits = bool(np.isfinite(sums).all())
            if not fits:
                raise StatusError(
                    code,
                    f"column {spec.name!r} brings the sum of a group out of the range of "
                    f"{total.dtype}",
                )

    def _ordinals(self, keys: Sequence[Tensor], rows: int) -> NDArray[np.int64]:
        if self._index is None:
            self._grow(max(self._groups, min(rows, 1)))
            return np.zeros(rows, np.int64)
        ordinals = self._index.add(keys)
        self._grow(len(self._index))
        return ordinals

    def _grow(self, groups: int) -> None:
        self._groups = groups
        if groups > len(self._contributors):
            size = max(groups, 2 * len(self._contributors))
            self._sums = [_longer(total, size) for total in self._sums]
            self._contributors = _longer(self._contributors, size)


def _magnitude(numbers: Tensor) -> float:
    """Return the largest magnitude: an int of integers, 0 of nothing."""
    if not numbers.size:
        return 0
    low, high = numbers.min().item(), numbers.max().item()
    return max(abs(low), abs(high))  # type: ignore[no-any-return]


def _longer(vector: Tensor, size: int) -> Tensor:
    result = np.zeros(size, vector.dtype)
    result[: len(vector)] = vector
    return result


def _check(intrinsic: Intrinsic) -> None:
    if len(intrinsic.inputs) != len(intrinsic.outputs):
        raise bad(
            intrinsic, f"{len(intrinsic.inputs)} key inputs and {len(intrinsic.outputs)} outputs"
        )
    for spec, output in zip(intrinsic.inputs, intrinsic.outputs, strict=True):
        if (spec.dtype, spec.shape) != (output.dtype, output.shape) or spec.shape != _COLUMN:
            raise bad(intrinsic, f"key {spec} and its output {output} must be equal vectors [?]")
    if not intrinsic.inputs and not intrinsic.nested:
        raise bad(intrinsic, "it has neither keys nor nested intrinsics")
    names = [parameter.name for parameter in intrinsic.parameters]
    if names not in ([], [MIN_CONTRIBUTORS]):
        raise bad(intrinsic, f"its parameters are {names}; only {MIN_CONTRIBUTORS!r} is expected")
    for nested in intrinsic.nested:
        _check_sum(intrinsic, nested)


def _check_sum(intrinsic: Intrinsic, nested: Intrinsic) -> None:
    if nested.uri != SUM_URI:
        raise bad(intrinsic, f"it nests {nested.uri!r}; only {SUM_URI!r} can be nested")
    check_counts(nested, inputs=1, outputs=1)
    (spec,), (output,) = nested.inputs, nested.outputs
    check_numeric(nested, spec)
    if output.dtype not in (spec.dtype, _WIDER.get(spec.dtype)):
        raise bad(nested, f"{spec} cannot be summed into {output}: the dtypes do not fit")
    if spec.shape != _COLUMN or output.shape != _COLUMN:
        raise bad(nested, f"{spec} and {output} must be vectors [?]")


def make_group_by(intrinsic: Intrinsic, options: Options) -> GroupByAccumulator:
    """Make an empty group-by."""
    return GroupByAccumulator(intrinsic, options)


def load_group_by(intrinsic: Intrinsic, options: Options, data: bytes) -> GroupByAccumulator:
    """Rebuild a group-by."""
    return GroupByAccumulator.load(intrinsic, data, options)


def make_sum(intrinsic: Intrinsic, options: Options) -> GroupByAccumulator:
    """Make the group-by without keys that a lone sum stands for."""
    return GroupByAccumulator(Intrinsic(GROUP_BY_URI, nested=(intrinsic,)), options)


def load_sum(intrinsic: Intrinsic, options: Options, data: bytes) -> GroupByAccumulator:
    """Rebuild the group-by without keys that a lone sum stands for."""
    return GroupByAccumulator.load(Intrinsic(GROUP_BY_URI, nested=(intrinsic,)), data, options)


FACTORIES = (
    AggregatorFactory(
        GROUP_BY_URI,
        frozenset({GROUP_BY_URI}),
        "sums by key, as SQL's GROUP BY",
        make_group_by,
        load_group_by,
    ),
    AggregatorFactory(
        SUM_URI,
        frozenset({SUM_URI}),
        "sum of a column, inside a group-by",
        make_sum,
        load_sum,
        nested_only=True,
    ),
)
