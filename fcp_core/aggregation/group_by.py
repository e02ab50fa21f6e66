"""What is in each distinct key, as SQL's GROUP BY: the accumulator of group-bys.

The state is upstream's ``GroupByAggregatorState``. Unlike upstream's, no sum wraps around or
becomes infinite: the contribution that would do that is refused.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from fcp_core.aggregation.aggregator import NO_OPTIONS, Accumulator, Options
from fcp_core.aggregation.checks import (
    bad,
    check_length,
    check_mergeable,
    in_order,
    integer_parameter,
    parse_state,
)
from fcp_core.aggregation.configuration import flat_inputs
from fcp_core.aggregation.group_columns import (
    SUM_URI,
    Column,
    SumColumn,
    check_keys,
    longer,
)
from fcp_core.aggregation.key_index import KeyIndex, Numbering
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.aggregation.tensors import tensor_from_proto, tensor_to_proto
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code, StatusError

MIN_CONTRIBUTORS = "min_contributors_to_group"
#: A parameter of ours: a device with fewer rows is refused.
MINIMUM_ROWS = "minimum_rows"

#: The options that bound a group-by.
MAX_GROUPS = "max_groups"
MAX_BYTES = "max_bytes"
DEFAULT_MAX_GROUPS = 1_000_000
DEFAULT_MAX_BYTES = 1 << 30

#: What a group takes beside its strings, for each column: an element, and its place in the index.
_GROUP_BYTES = 64


class GroupByAccumulator(Accumulator):
    """Value columns by the keys in key columns; groups in order of first appearance.

    Without keys all rows are one group, which exists once there has been a row. With
    ``min_contributors_to_group`` only groups of at least that many devices are reported, in random
    order. With ``minimum_rows`` a contribution of fewer rows is refused: the published client does
    not keep to a query's ``min_output_row_count`` unless a flag of its embedder is on.

    :param intrinsic: its inputs and outputs are the keys; it nests what :attr:`columns` names.
    :param options: ``allow_non_finite``, which is about values, keys may be anything;
        ``max_groups`` and ``max_bytes``.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit.
    """

    #: What may be nested, by its URI.
    columns: ClassVar[Mapping[str, type[Column]]] = {SUM_URI: SumColumn}

    num_inputs = 0

    def __init__(self, intrinsic: Intrinsic, options: Options = NO_OPTIONS) -> None:
        _check(intrinsic, self.columns)
        self._intrinsic = intrinsic
        #: How many groups there may be; 0: as many as come.
        self.max_groups = int(options.get(MAX_GROUPS, DEFAULT_MAX_GROUPS))
        self._max_bytes = int(options.get(MAX_BYTES, DEFAULT_MAX_BYTES))
        self._specs = tuple(flat_inputs(intrinsic))
        given = {
            parameter.name: integer_parameter(intrinsic, parameter.value, parameter.name, 1)
            for parameter in intrinsic.parameters
        }
        self._minimum = given.get(MIN_CONTRIBUTORS, 0)
        self._minimum_rows = given.get(MINIMUM_ROWS, 0)
        self._groups = 0
        self._index = (
            KeyIndex([spec.dtype for spec in intrinsic.inputs]) if intrinsic.inputs else None
        )
        self._columns = [self.columns[nested.uri](nested, options) for nested in intrinsic.nested]
        # Longer than the number of groups, so that it rarely has to grow.
        self._contributors: NDArray[np.int64] = np.zeros(16, np.int64)
        #: Whether it came from bytes: one of this process is bounded by what it accumulated.
        self._loaded = False

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes = b"") -> Self:
        """Rebuild an accumulator from :meth:`dump`."""
        options, data = in_order(options, data)
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
        parts = [total.vector_data for total in state.nested_aggregators]
        lengths = [key.size for key in keys]
        for column, part in zip(self._columns, parts, strict=True):
            lengths.append(column.groups_in(column.nested, part))
        groups = lengths[0]
        for length in lengths:
            check_length(intrinsic, "groups", length, groups)
        if self._minimum:
            check_length(intrinsic, "counters", len(state.counter_of_contributors), groups)
        if self._index is None and groups not in (0, 1):
            raise bad(intrinsic, f"the state has {groups} groups without keys")
        if self._index is not None and len(np.unique(self._index.add(keys))) != groups:
            raise bad(intrinsic, "the state has a key twice")
        self._grow(groups)
        for column, part in zip(self._columns, parts, strict=True):
            column.load(part, groups)
        if self._minimum:
            counters = [min(count, self._minimum) for count in state.counter_of_contributors]
            self._contributors[:groups] = counters
        self.num_inputs = state.num_inputs
        self._loaded = True
        return self

    @property
    def contributors(self) -> NDArray[np.int64]:
        """Of how many devices each group is, up to the minimum; 0 without a minimum."""
        return self._contributors[: self._groups]

    def groups(self) -> list[Tensor]:
        """Return the key columns and the value columns of all groups, in order of appearance."""
        keys = self._index.columns() if self._index is not None else []
        return keys + [column.report(self._groups) for column in self._columns]

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse columns that are not all of one length, and what would ruin a value."""
        shape = inputs[0].shape
        for spec, tensor in zip(self._specs, inputs, strict=True):
            if tensor.ndim > 1 or tensor.shape != shape:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"{spec} has shape {tensor.shape} and {self._specs[0].name!r} has {shape}; "
                    "the columns of one contribution must be of one length",
                )
        keys, values = self._split(inputs)
        rows = inputs[0].size
        if rows < self._minimum_rows:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the contribution has {rows} rows; at least {self._minimum_rows} are asked for",
            )
        number = self._numberer(keys, rows)
        for column, own in zip(self._columns, values, strict=True):
            column.check(own, number)
        strings = sum(sum(map(len, key)) for key in keys if key.dtype == object)
        self._check_size(rows, strings, number)

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Add each row to its group."""
        keys, values = self._split(inputs)
        ordinals = self._ordinals(keys, inputs[0].size)
        for column, own in zip(self._columns, values, strict=True):
            column.add(ordinals, own)
        if self._minimum:
            # A device counts once, however many rows of a group it sends.
            self._count(np.unique(ordinals), 1)
        self.num_inputs += 1

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration, or one that is too large together."""
        check_mergeable(self, other)
        keys = other._index.columns() if other._index is not None else []
        number = self._numberer(keys, other._groups)
        for mine, theirs in zip(self._columns, other._columns, strict=True):
            mine.check_merge(theirs, other._groups, number)
        if other._loaded and self._groups:
            strings = other._index.string_bytes if other._index is not None else 0
            self._check_size(other._groups, strings + other._cell_bytes, number)

    def merge(self, other: Self) -> None:
        """Group the other's groups again."""
        self.validate_merge(other)
        groups = other._groups
        keys = other._index.columns() if other._index is not None else []
        ordinals = self._ordinals(keys, groups)
        for mine, theirs in zip(self._columns, other._columns, strict=True):
            mine.merge(ordinals, theirs, groups)
        if self._minimum:
            self._count(ordinals, other._contributors[:groups])
        self.num_inputs += other.num_inputs

    def report(self) -> list[Tensor]:
        """Return the key columns and the value columns."""
        result = self.groups()
        if self._minimum:
            rows = np.flatnonzero(self.contributors >= self._minimum)
            # The order of appearance would tell who came first.
            np.random.default_rng(secrets.randbits(128)).shuffle(rows)
            result = [column[rows] for column in result]
        return result

    def dump(self) -> bytes:
        """Return the state as a ``GroupByAggregatorState``."""
        keys = self._index.columns() if self._index is not None else []
        counters = self.contributors.tolist() if self._minimum else []
        return state_pb2.GroupByAggregatorState(
            num_inputs=self.num_inputs,
            keys=[tensor_to_proto(key) for key in keys],
            nested_aggregators=[
                state_pb2.OneDimGroupingAggregatorState(
                    num_inputs=self.num_inputs, vector_data=column.dump(self._groups)
                )
                for column in self._columns
            ],
            counter_of_contributors=counters,
        ).SerializeToString()

    @property
    def _cell_bytes(self) -> int:
        return sum(column.nbytes for column in self._columns)

    def _split(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return the key columns, and those of each value column."""
        flat = iter([np.reshape(tensor, -1) for tensor in inputs])
        keys = [next(flat) for _ in self._intrinsic.inputs]
        return keys, [[next(flat) for _ in nested.inputs] for nested in self._intrinsic.nested]

    def _numberer(self, keys: Sequence[Tensor], rows: int) -> Callable[[], Numbering]:
        """Return what numbers rows once, when somebody asks, without changing anything."""

        @functools.cache
        def number() -> Numbering:
            if self._index is not None:
                return self._index.find(keys)
            return Numbering(np.zeros(rows, np.int64), max(self._groups, min(rows, 1)))

        return number

    def _check_size(self, rows: int, more_bytes: int, number: Callable[[], Numbering]) -> None:
        """Refuse rows with which there would be too many groups, or which take too much memory.

        :param more_bytes: what the rows take at most beside their numbers.
        """
        if not self.max_groups and not self._max_bytes:
            return
        each = _GROUP_BYTES * (len(self._specs) + 1)
        held = self._cell_bytes + (self._index.string_bytes if self._index is not None else 0)
        groups = self._groups + rows
        room = self._max_bytes or (groups * each + held + more_bytes)
        most = self.max_groups or groups
        if groups <= most and groups * each + held + more_bytes <= room:
            return
        numbered = number()
        groups = numbered.groups
        if self._index is not None:
            more_bytes = min(more_bytes, numbered.string_bytes)
        if groups > most:
            problem = f"there would be {groups} groups; {MAX_GROUPS} is {self.max_groups}"
        elif (size := groups * each + held + more_bytes) > room:
            problem = f"its groups would take {size} bytes; {MAX_BYTES} is {self._max_bytes}"
        else:
            return
        raise StatusError(Code.RESOURCE_EXHAUSTED, f"{self._intrinsic.uri}: {problem}")

    def _count(self, ordinals: NDArray[np.int64], devices: NDArray[np.int64] | int) -> None:
        """Add contributors to groups, each of which is named once."""
        counts = self._contributors[ordinals] + devices
        self._contributors[ordinals] = np.minimum(counts, self._minimum)

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
            self._contributors = longer(self._contributors, size)
            for column in self._columns:
                column.grow(size)


def _check(intrinsic: Intrinsic, columns: Mapping[str, type[Column]]) -> None:
    check_keys(intrinsic)
    names = [parameter.name for parameter in intrinsic.parameters]
    known = (MIN_CONTRIBUTORS, MINIMUM_ROWS)
    if len(set(names)) < len(names) or not set(names) <= set(known):
        raise bad(intrinsic, f"its parameters are {names}; only {' and '.join(known)} are expected")
    for nested in intrinsic.nested:
        if nested.uri not in columns:
            uris = ", ".join(map(repr, columns))
            raise bad(intrinsic, f"it nests {nested.uri!r}; only {uris} can be nested")
