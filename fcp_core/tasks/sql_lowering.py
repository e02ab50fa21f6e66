"""Divides an SQL query: what each device computes, what the server aggregates, what is shown."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import data_type_pb2
from fcp_core.protocol.sql import SUMMED_GROUPS
from fcp_core.protocol.summed_groups import Layout
from fcp_core.tasks.sql_masks import LARGEST, Masks
from fcp_core.tasks.sql_measures import DEVICES, Measure
from fcp_core.tasks.sql_parsing import ALL_ROWS, Parsed, parse
from fcp_core.tasks.sql_part import COLUMN, Part, literal
from fcp_core.tasks.sql_question import Question

_DP_SUM = "GoogleSQL:$differential_privacy_sum"

#: The most groups, or rows in a group, that a device may contribute to.
_MOST = 1_000_000


@dataclass(frozen=True)
class Lowered:
    """A query, divided.

    :param parts: the one that all groups are in first.
    """

    parsed: Parsed
    parts: Sequence[Part]
    intrinsics: Sequence[Intrinsic]


def lower(query: Question) -> Lowered:
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
            _put_masks(query, part, minimum or 1)
    return Lowered(parsed, made, [part.group_by(query, minimum, len(made)) for part in made])


def _check_noise(query: Question) -> None:
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
        literals = [literal(value) for value in values]
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


def _add(query: Question, part: Part, place: int, measure: Measure) -> None:
    """Add a measure of which a device has one value in each group."""
    dtype = DataType.INT64 if measure.is_integer else DataType.DOUBLE
    inputs = [part.column(measure.label, measure.sql, dtype)]
    if measure.valid:
        inputs.append(part.column(measure.valid, measure.valid, DataType.INT64))
    output = TensorSpec(f"{part.label}{measure.label}", dtype, COLUMN)
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


def _add_quantile(_query: Question, part: Part, place: int, measure: Measure) -> None:
    """Have the server read a quantile from the buckets of a group."""
    part.nest(
        place,
        "fcp:approx_quantile",
        [
            TensorSpec(f"{part.label}value", DataType.DOUBLE, COLUMN),
            TensorSpec(f"{part.label}rows", DataType.INT64, COLUMN),
        ],
        TensorSpec(measure.label, DataType.DOUBLE, COLUMN),
        [("quantile", measure.quantile), ("relative_error", measure.relative_error)],
    )


def _add_buckets(query: Question, part: Part, place: int, measure: Measure) -> None:
    """Have the server count in the buckets of a group, with noise; a quantile is read from that."""
    part.quantiles[place] = measure.quantile
    if part.buckets is not None:
        return
    part.buckets = measure.relative_error
    part.keys.append(TensorSpec(f"{part.label}value", DataType.DOUBLE, COLUMN))
    rows = TensorSpec(f"{part.label}rows", DataType.INT64, COLUMN)
    part.most[rows.name] = float(query.rows_bound)
    bounds = _bounds(float(query.rows_bound), float(query.rows_bound * query.max_groups))
    part.nest(-1, _DP_SUM, [rows], rows, bounds)


def _add_distinct(
    query: Question, parsed: Parsed, parts: dict[str, Part], place: int, measure: Measure
) -> None:
    """Add a count of distinct values: devices send codes of theirs."""
    label = f"{measure.sql} codes: "
    part = parts[label] = _begin(parsed, label)
    code = part.column("code", f"fcp_distinct_code({measure.sql})", DataType.INT64)
    inner = f"SELECT {', '.join(part.selected)} {parsed.from_sql}{_grouped(len(part.keys) + 1)}"
    part.sql = f"{parsed.with_sql}SELECT * FROM ({inner}) WHERE c{len(part.keys)} <> 0"
    output = TensorSpec(measure.label, DataType.INT64, COLUMN)
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


def _put_masks(query: Question, part: Part, minimum: int) -> None:
    """Have devices answer a part of a query with a table that is summed under masks.

    :raises UsageError: if that cannot be, with what to write instead.
    """
    if query.epsilon is not None:
        raise UsageError(
            "an epsilon does not go together with masks: the server would have to see the groups "
            "that it adds noise to. Ask with one of them."
        )
    if query.minimum_rows:
        raise UsageError("minimum_rows: under masks nobody sees how many rows a device has.")
    names = {intrinsic.outputs[0].name: intrinsic for intrinsic in part.nested}
    devices = [name for name in names if name == f"{part.label}{DEVICES.label}"]
    numbers: list[str] = []
    scales: dict[str, float] = {}
    for name, intrinsic in names.items():
        if name in devices:
            continue
        (given,), most = intrinsic.inputs, part.most[name]
        column = f"MIN(MAX({part.columns[given.name][0]}, {-most:.17g}), {most:.17g})"
        scales[name] = 0 if given.dtype is DataType.INT64 else LARGEST / max(most, 1e-300)
        if most >= LARGEST:
            raise UsageError(
                f"{name}: a device may add {most:g} to it, and a sum under masks has room for "
                f"less than {LARGEST}; CLAMP it to less, or lower max_rows."
            )
        scaled = f"ROUND({column} * {scales[name]:.17g})" if scales[name] else column
        numbers.append(f"CAST({scaled} AS INTEGER)")
    salt = hashlib.sha256(part.sql.encode()).hexdigest()[:16]
    several = any(spec.name != f"{part.label}{ALL_ROWS.label}" for spec in part.keys)
    layout = _layout(query, several, len(numbers), salt)
    literals = [
        f"quote({part.columns[spec.name][0]})"
        if spec.dtype is DataType.DOUBLE
        else part.columns[spec.name][0]
        for spec in part.keys
    ]
    key = " || ',' || ".join(literals) or "''"
    values = "".join(f", {number} AS v{place}" for place, number in enumerate(numbers))
    arguments = "".join(f", v{place}" for place in range(len(numbers)))
    # The row without a key is there if no other one is.
    part.sql = (
        f"SELECT {SUMMED_GROUPS}({layout.capacity}, {layout.key_bytes}, '{salt}', k{arguments}) "
        f"AS c0 FROM (SELECT {key} AS k{values} FROM ({part.sql}) "
        f"UNION ALL SELECT NULL{', 0' * len(numbers)})"
    )
    name = f"{part.label}groups"
    part.columns = {name: ("c0", data_type_pb2.INT64)}
    part.masks = Masks(name, layout, tuple(part.keys), scales, devices, minimum)


def _layout(query: Question, several: bool, numbers: int, salt: str) -> Layout:
    if not several:
        return Layout(1, 1, numbers, salt)
    try:
        return Layout(query.capacity, query.key_bytes, numbers, salt)
    except ValueError as error:
        raise UsageError(
            f"the table under masks is too large: {error}. Lower capacity or key_bytes."
        ) from None
