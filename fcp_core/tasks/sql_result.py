"""Makes the table that an SQL query asks for, of the result of its task."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.protocol import sketches
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.tasks.sql_lowering import Lowered
from fcp_core.tasks.sql_parsing import ALL_ROWS, Parsed
from fcp_core.tasks.sql_part import Part
from fcp_core.tasks.tables import ERROR, Column, Table

_Row = tuple[Any, ...]

_QUOTED = re.compile(r"'(?:[^']|'')*'", re.DOTALL)
_CAST = re.compile(r"CAST\(X'((?:[0-9A-Fa-f]{2})*)' AS TEXT\)")
_BYTES = re.compile(r"X'(?:[0-9A-Fa-f]{2})*'")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]{1,4})?|inf)", re.IGNORECASE)


def read_result(lowered: Lowered, checkpoint: bytes, noise: Mapping[str, float]) -> Table:
    """Return the table.

    :param noise: the standard deviation of the noise in a tensor, by its name.
    :raises StatusError: INVALID_ARGUMENT if the result is not that of the query.
    """
    tensors = {name: tensor.tolist() for name, tensor in open_checkpoint(checkpoint).items()}
    try:
        found = [_groups(part, tensors) for part in lowered.parts]
    except (KeyError, ValueError) as error:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"the result is not that of the query: {error}"
        ) from error
    # By what devices sent: two literals of one number may both be there, from different devices.
    groups = {key: dict(measures) for key, measures in found[0].items()}
    for more in found[1:]:
        for key, measures in more.items():
            groups.setdefault(key, {}).update(measures)
    if not lowered.parsed.keys:
        groups.setdefault((), {})  # without keys there is always a row
    count = len(lowered.parsed.measures)
    rows = [
        (*map(_literal, key), *(measures.get(place) for place in range(count)))
        for key, measures in groups.items()
    ]
    deviations = {
        place: noise[name]
        for part in lowered.parts
        for name, place in part.measures.items()
        if place >= 0 and noise.get(name, 0.0) > 0
    }
    try:
        return _table(lowered.parsed, rows, deviations)
    except sqlite3.Error as error:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"what the query shows cannot be computed: {error}"
        ) from error


def check_shown(parsed: Parsed) -> None:
    """Try what is shown of the groups with two of them, before anybody is asked.

    :raises UsageError: if SQLite cannot compute it, whatever the groups are.
    """
    count = len(parsed.keys) + len(parsed.measures)
    try:
        _table(parsed, [(None,) * count, (1,) * count], {})
    except sqlite3.Error as error:
        raise UsageError(f"what the query shows cannot be computed: {error}.") from None


def _groups(part: Part, tensors: Mapping[str, list[Any]]) -> dict[_Row, dict[int, Any]]:
    """Return the measures of each group, by their places."""
    if part.masks is not None:
        tensors = part.masks.columns(tensors[part.masks.name])
    if part.buckets is not None:
        return _quantiles(part, part.buckets, tensors)
    columns = [tensors[name] for name in part.measures]
    if (everything := f"{part.label}{ALL_ROWS.label}") not in tensors and columns:
        # Version 0.2.0 did not group by it.
        tensors = {**tensors, everything: [ALL_ROWS.sql.strip("'").encode()] * len(columns[0])}
    keys = [tensors[spec.name] for spec in part.keys]
    count = len((keys + columns)[0])
    rows = zip(*keys, strict=True) if keys else [()] * count
    found = zip(*columns, strict=True) if columns else [()] * count
    places = part.measures.values()
    return {
        row: dict(zip(places, measures, strict=True))
        for row, measures in zip(rows, found, strict=True)
    }


def _literal(text: bytes) -> Any:
    """Return the value that an SQL literal stands for; what is none stands for itself.

    A key may be any bytes, if a device wants: one of them must not cost all others the result.
    """
    literal = text.decode("utf-8", "backslashreplace")
    if literal == "NULL":
        return None
    if _QUOTED.fullmatch(literal):
        return literal[1:-1].replace("''", "'")
    if (cast := _CAST.fullmatch(literal)) is not None:
        return bytes.fromhex(cast[1]).decode("utf-8", "backslashreplace")
    if _BYTES.fullmatch(literal):
        return bytes.fromhex(literal[2:-1])
    if _INTEGER.fullmatch(literal) and -(2**63) <= (whole := int(literal)) < 2**63:
        return whole
    if _NUMBER.fullmatch(literal):
        return float(literal)
    return literal


def _quantiles(
    part: Part, relative_error: float, tensors: Mapping[str, list[Any]]
) -> dict[_Row, dict[int, Any]]:
    """Return the quantiles of each group, read from how much is in its buckets."""
    *specs, last = part.keys
    keys = [tensors[spec.name] for spec in specs]
    values = tensors[last.name]
    groups: dict[_Row, list[tuple[float, float]]] = {}
    rows = zip(*keys, strict=True) if keys else [()] * len(values)
    (counts,) = (tensors[name] for name in part.measures)
    for row, value, count in zip(rows, values, counts, strict=True):
        groups.setdefault(row, []).append((value, count))
    return {
        row: {
            place: sketches.quantile_of_buckets(
                sketches.buckets([value for value, _ in found], relative_error),
                [count for _, count in found],
                quantile,
                relative_error,
            )
            for place, quantile in part.quantiles.items()
        }
        for row, found in groups.items()
    }


class _Groups:
    """The groups of a result in a database, where what is shown of them is computed."""

    def __init__(self, parsed: Parsed, database: sqlite3.Connection, rows: Sequence[_Row]) -> None:
        self._database = database
        keys = [f"k{place}" for place in range(len(parsed.keys))]
        columns = [*keys, *(f"m{place}" for place in range(len(parsed.measures)))]
        database.create_function("sqrt", 1, _root, deterministic=True)
        database.execute(f"CREATE TABLE r ({', '.join(columns)})")
        marks = ", ".join("?" * len(columns))
        database.executemany(f"INSERT INTO r VALUES ({marks})", rows)

    def select(self, sql: str) -> dict[int, _Row]:
        """Return what is shown of groups, by their numbers, in its order."""
        return {number: row for number, *row in self._database.execute(sql)}

    def moved(self, measure: int, distance: float, sql: str) -> dict[int, _Row]:
        """Return the same if a measure were larger."""
        self._database.execute(f"UPDATE r SET m{measure} = m{measure} + ?", (distance,))
        found = self.select(sql)
        self._database.execute(f"UPDATE r SET m{measure} = m{measure} - ?", (distance,))
        return found


def _table(parsed: Parsed, rows: Sequence[_Row], deviations: Mapping[int, float]) -> Table:
    with closing(sqlite3.connect(":memory:")) as database:
        groups = _Groups(parsed, database, rows)
        shown = groups.select(parsed.shown_sql)
        still = groups.select(parsed.all_sql) if deviations else {}
        moved = [groups.moved(m, by, parsed.all_sql) for m, by in deviations.items()]
    columns = []
    for place, name in enumerate(parsed.names):
        columns.append(_column(name, [row[place] for row in shown.values()]))
        # What is shown moves with each of its measures; their noises are drawn independently.
        steps = [
            [_step(still[number][place], there[number][place]) for there in moved]
            for number in shown
        ]
        if any(step for row in steps for step in row):
            off = [None if None in row else math.hypot(*row) for row in steps]  # type: ignore[arg-type]
            columns.append(Column(f"{name}{ERROR}", "float64", off))
    return Table(tuple(columns))


def _step(here: Any, there: Any) -> float | None:
    """Return how far a number has moved; 0 for what is no number, None for what came or went."""
    if isinstance(here, (int, float)) and isinstance(there, (int, float)):
        return float(there) - float(here)
    return 0.0 if here == there else None


def _root(x: float | None) -> float | None:
    return math.sqrt(x) if x is not None and x >= 0 else None


def _column(name: str, values: list[Any]) -> Column:
    given = {type(value) for value in values if value is not None}
    if given <= {int}:
        return Column(name, "int64", values)
    if given <= {int, float}:
        return Column(name, "float64", [v if v is None else float(v) for v in values])
    return Column(
        name, "string", [v if v is None or isinstance(v, str) else _text(v) for v in values]
    )


def _text(value: Any) -> str:
    return f"X'{value.hex()}'" if isinstance(value, bytes) else str(value)
