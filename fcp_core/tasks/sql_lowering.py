"""Divides an SQL query: what each device computes, what the server aggregates, what is shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fcp_core.aggregation.configuration import DP_DISTINCT_URI, DP_GROUP_BY_URI, GROUP_BY_URI
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, Tensor, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import data_type_pb2
from fcp_core.tasks.sql_masks import Masks, put_masks
from fcp_core.tasks.sql_measures import DEVICES, Measure
from fcp_core.tasks.sql_parsing import Parsed, parse

if TYPE_CHECKING:
    from fcp_core.tasks.sql_query import SqlQuery

_COLUMN = (-1,)
_DP_SUM = "GoogleSQL:$differential_privacy_sum"
_TYPES = {
    DataType.INT64: data_type_pb2.INT64,
    DataType.DOUBLE: data_type_pb2.DOUBLE,
    DataType.STRING: data_type_pb2.STRING,
}


#: The most groups, or rows in a group, that a device may contribute to.
_MOST = 1_000_000


@dataclass
class Part:
    """A query of devices, and the group-by of what they answer.

    :ivar label: what the names of its tensors begin with, so that they are those of no other part.
    :ivar selected: what devices select, each ``AS`` a name.
    :ivar columns: for each tensor of a contribution, the column of the answer and its type.
    :ivar keys: the tensors of the keys, in the order of the query's keys.
    :ivar measures: the tensors of the measures in the result, each with its place among all; -1 is
        none that is asked for.
    """

    label: str = ""
    sql: str = ""
    selected: list[str] = field(default_factory=list)
    columns: dict[str, tuple[str, int]] = field(default_factory=dict)
    keys: list[TensorSpec] = field(default_factory=list)
    nested: list[Intrinsic] = field(default_factory=list)
    measures: dict[str, int] = field(default_factory=dict)
    #: Under noise or masks: the relative error of the buckets that the last key is, and the
    #: quantiles that are read from them, each with its place among the measures.
    buckets: float | None = None
    quantiles: dict[int, float] = field(default_factory=dict)
    #: Under noise: whether it counts distinct values, by their codes.
    codes: bool = False
    #: Under masks: what a device contributes to each measure at most, and how the sums are read.
    most: dict[str, float] = field(default_factory=dict)
    masks: Masks | None = None

    def column(self, name: str, sql: str, dtype: DataType) -> TensorSpec:
        """Have devices select something, under a name."""
        tensor = f"{self.label}{name}"
        if tensor not in self.columns:
            place = f"c{len(self.selected)}"
            self.selected.append(f"{sql} AS {place}")
            self.columns[tensor] = (place, _TYPES[dtype])
        return TensorSpec(tensor, dtype, _COLUMN)

    def nest(
        self,
        place: int,
        uri: str,
        inputs: Sequence[TensorSpec],
        output: TensorSpec,
        parameters: Sequence[tuple[str, float]] = (),
    ) -> None:
        """Have the server aggregate columns."""
        given = [Parameter(name, np.array(value)) for name, value in parameters]
        self.nested.append(Intrinsic(uri, tuple(inputs), (output,), tuple(given)))
        self.measures[output.name] = place

    def group_by(self, query: SqlQuery, minimum: int | None, parts: int) -> Intrinsic:
        """Return the group-by.

        :param parts: how many share the budget.
        """
        if self.masks is not None:
            return self.masks.intrinsic
        parameters: list[Parameter] = []
        keys = tuple(self.keys)
        if self.codes and query.epsilon is not None:
            return self._distinct(query, minimum, parts)
        if query.epsilon is not None:
            groups = query.max_groups * (1 if self.buckets is None else query.rows_bound)
            parameters = [
                Parameter("epsilon", np.array(query.epsilon / parts)),
                Parameter("delta", np.array(query.delta / parts)),
                Parameter("max_groups_contributed", np.array(groups, np.int64)),
                *self._domain(query.domain),
            ]
        if minimum is not None and keys:
            value = np.array(minimum, np.int64)
            parameters.append(Parameter("min_contributors_to_group", value))
        if query.minimum_rows > 0 and query.epsilon is None:
            value = np.array(query.minimum_rows, np.int64)
            parameters.append(Parameter("minimum_rows", value))
        uri = GROUP_BY_URI if query.epsilon is None else DP_GROUP_BY_URI
        return Intrinsic(uri, keys, keys, tuple(parameters), tuple(self.nested))

    def _distinct(self, query: SqlQuery, minimum: int | None, parts: int) -> Intrinsic:
        """Return the count of distinct values under noise, of all or in each group."""
        (nested,) = self.nested
        parameters = {
            "epsilon": np.array((query.epsilon or 0.0) / parts),
            "max_values": np.array(query.rows_bound, np.int64),
        }
        if query.domain:
            raise UsageError("a domain does not go together with APPROX_DISTINCT; ask twice.")
        if self.keys:
            parameters["delta"] = np.array(query.delta / parts)
            parameters["max_groups_contributed"] = np.array(query.max_groups, np.int64)
        if self.keys and minimum is not None:
            parameters["min_contributors_to_group"] = np.array(minimum, np.int64)
        return Intrinsic(
            DP_DISTINCT_URI,
            (*self.keys, *nested.inputs),
            (*self.keys, *nested.outputs),
            tuple(Parameter(name, value) for name, value in parameters.items()),
        )

    def _domain(self, domain: Mapping[str, Sequence[object]]) -> list[Parameter]:
        """Return the values that the keys have, if they are given."""
        if not domain:
            return []
        names = [spec.name.removeprefix(self.label) for spec in self.keys]
        if self.buckets is not None:
            raise UsageError("a domain does not go together with APPROX_QUANTILE; ask twice.")
        if set(names) != set(domain):
            raise UsageError(
                f"the domain names {', '.join(domain)}; it must name all that the query groups by: "
                f"{', '.join(names) or 'nothing'}."
            )
        values = [_strings(map(_literal, domain[name])) for name in names]
        return [
            Parameter("key_names", _strings(names)),
            *(Parameter(name, each) for name, each in zip(names, values, strict=True)),
        ]


@dataclass(frozen=True)
class Lowered:
    """A query, divided.

    :param parts: the one that all groups are in first.
    """

    parsed: Parsed
    parts: Sequence[Part]
    intrinsics: Sequence[Intrinsic]


def lower(query: SqlQuery) -> Lowered:
    """Divide a query.

    :raises UsageError: if it cannot be, naming the clause.
    """
    parsed = parse(query)
    _check_noise(query)
    main = _begin(parsed, "")
    parts = {"": main}
    for place, measure in enumerate(parsed.measures):
        if measure.kind == "quantile":
            part = _bucketed(parsed, parts, measure)
            plain = query.epsilon is None and not query.masked
            (_add_quantile if plain else _add_buckets)(query, part, place, measure)
        elif measure.kind == "distinct":
            _add_distinct(query, parsed, parts, place, measure)
        else:
            _add(query, main, place, measure)
    if query.epsilon is not None and not main.nested and len(parts) > 1:
        del parts[""]  # it would take a share of the budget for nothing
    elif not main.columns or (query.epsilon is not None and not main.nested):
        # There is nothing but sketches, and no groups; or noise needs a number that it is added to.
        _add(query, main, -1, DEVICES)
    grouped = _grouped(len(main.keys))
    main.sql = f"{parsed.with_sql}SELECT {', '.join(main.selected)} {parsed.from_sql}{grouped}"
    minimum = max(query.min_devices or 0, parsed.min_devices or 0) or None
    if query.domain and query.epsilon is None:
        raise UsageError(
            "a domain is for queries with an epsilon; others have the groups there are."
        )
    made = list(parts.values())
    if query.masked:
        for part in made:
            put_masks(query, part, minimum or 1)
    return Lowered(parsed, made, [part.group_by(query, minimum, len(made)) for part in made])


def _check_noise(query: SqlQuery) -> None:
    """Refuse bounds and a budget that are none.

    :raises UsageError: naming the option.
    """
    wrong = {
        "min_devices must be at least 1": query.min_devices is not None and query.min_devices < 1,
        "epsilon must be above 0, and finite": query.epsilon is not None
        and not 0 < query.epsilon < math.inf,
        "delta must be from 0 to below 1": not 0 <= query.delta < 1,
        f"max_groups must be from 1 to {_MOST:,}": not 1 <= query.max_groups <= _MOST,
        f"max_rows must be from 1 to {_MOST:,}": query.max_rows is not None
        and not 1 <= query.max_rows <= _MOST,
    }
    if found := [words for words, is_wrong in wrong.items() if is_wrong]:
        raise UsageError(f"{'; '.join(found)}.")
    for name, values in query.domain.items():
        literals = [_literal(value) for value in values]
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            raise UsageError(f"the domain of {name} has a number that is not finite.")
        if not literals or len(set(literals)) < len(literals):
            raise UsageError(f"the domain of {name} must have values, each of them once.")


def _begin(parsed: Parsed, label: str) -> Part:
    part = Part(label)
    part.keys = [part.column(key.label, key.sql, DataType.STRING) for key in parsed.keys]
    return part


def _grouped(columns: int) -> str:
    places = ", ".join(str(place) for place in range(1, columns + 1))
    return f" GROUP BY {places}" if places else ""


def _add(query: SqlQuery, part: Part, place: int, measure: Measure) -> None:
    """Add a measure of which a device has one value in each group."""
    dtype = DataType.INT64 if measure.is_integer else DataType.DOUBLE
    inputs = [part.column(measure.label, measure.sql, dtype)]
    if measure.valid:
        inputs.append(part.column(measure.valid, measure.valid, DataType.INT64))
    output = TensorSpec(f"{part.label}{measure.label}", dtype, _COLUMN)
    part.most[output.name] = measure.row_bound * query.rows_bound or 1.0
    if query.epsilon is None:
        part.nest(place, f"GoogleSQL:{measure.kind}", inputs, output)
        return
    part.nest(place, _DP_SUM, inputs, output, _bounds(part.most[output.name]))


def _bounds(largest: float, l1: float = 0.0) -> list[tuple[str, float]]:
    """Return what a device may add to a group, and to all groups; 0: whatever follows from that."""
    return [("", largest), ("", l1), ("", 0.0)]


def _bucketed(parsed: Parsed, parts: dict[str, Part], measure: Measure) -> Part:
    """Return the part in which devices round values to buckets, and count in them."""
    label = f"{measure.sql} within {measure.relative_error:g}: "
    if label not in parts:
        part = parts[label] = _begin(parsed, label)
        value = rounded_sql(f"({measure.sql})", measure.relative_error)
        part.column("value", value, DataType.DOUBLE)
        part.column("rows", "COUNT(*)", DataType.INT64)
        inner = f"SELECT {', '.join(part.selected)} {parsed.from_sql}{_grouped(len(part.keys) + 1)}"
        last = f"c{len(part.keys)}"
        part.sql = f"{parsed.with_sql}SELECT * FROM ({inner}) WHERE {last} IS NOT NULL"
    return parts[label]


def _add_quantile(_query: SqlQuery, part: Part, place: int, measure: Measure) -> None:
    """Have the server read a quantile from the buckets of a group."""
    part.nest(
        place,
        "fcp:approx_quantile",
        [
            TensorSpec(f"{part.label}value", DataType.DOUBLE, _COLUMN),
            TensorSpec(f"{part.label}rows", DataType.INT64, _COLUMN),
        ],
        TensorSpec(measure.label, DataType.DOUBLE, _COLUMN),
        [("quantile", measure.quantile), ("relative_error", measure.relative_error)],
    )


def _add_buckets(query: SqlQuery, part: Part, place: int, measure: Measure) -> None:
    """Have the server count in the buckets of a group, with noise; a quantile is read from that."""
    part.quantiles[place] = measure.quantile
    if part.buckets is not None:
        return
    part.buckets = measure.relative_error
    part.keys.append(TensorSpec(f"{part.label}value", DataType.DOUBLE, _COLUMN))
    rows = TensorSpec(f"{part.label}rows", DataType.INT64, _COLUMN)
    part.most[rows.name] = float(query.rows_bound)
    bounds = _bounds(float(query.rows_bound), float(query.rows_bound * query.max_groups))
    part.nest(-1, _DP_SUM, [rows], rows, bounds)


def _literal(value: object) -> str:
    """Return a value as an SQL literal, as devices do."""
    if value is None:
        return "NULL"
    if isinstance(value, str):
        if "\0" in value:
            return f"CAST(X'{value.encode().hex().upper()}' AS TEXT)"
        return "'" + value.replace("'", "''") + "'"
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _strings(texts: Iterable[str]) -> Tensor:
    items = [text.encode() for text in texts]
    tensor = np.empty(len(items), object)
    tensor[:] = items
    return tensor


def _add_distinct(
    query: SqlQuery, parsed: Parsed, parts: dict[str, Part], place: int, measure: Measure
) -> None:
    """Add a count of distinct values: devices send codes of theirs."""
    label = f"{measure.sql} codes: "
    part = parts[label] = _begin(parsed, label)
    code = part.column("code", f"fcp_distinct_code({measure.sql})", DataType.INT64)
    inner = f"SELECT {', '.join(part.selected)} {parsed.from_sql}{_grouped(len(part.keys) + 1)}"
    part.sql = f"{parsed.with_sql}SELECT * FROM ({inner}) WHERE c{len(part.keys)} <> 0"
    output = TensorSpec(measure.label, DataType.INT64, _COLUMN)
    part.codes = query.epsilon is not None
    part.nest(place, "fcp:approx_count_distinct", [code], output)


def rounded_sql(x: str, relative_error: float) -> str:
    """Return an SQL expression that rounds a number to one that stands for its bucket.

    The buckets are those of ``fcp_core.protocol.sketches``, so that nothing is rounded twice.

    :param x: an SQL expression.
    :param relative_error: how far off the number may be, as a share of it.
    """
    step = math.log((1 + relative_error) / (1 - relative_error))
    size = f"MIN(MAX(ABS({x}), 1e-9), 1e21)"
    value = f"{1e-9 * (1 - relative_error)!r} * EXP({step!r} * CEIL(LN({size} * 1e9) / {step!r}))"
    return (
        f"CASE WHEN ABS({x}) < 1e-9 THEN 0.0 WHEN {x} > 0 THEN {value} WHEN {x} < 0 THEN -{value} "
        "END"
    )
