"""Makes the table that an SQL query asks for, of the result of its task."""

from __future__ import annotations

import ast
import math
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.tasks.sql_lowering import Lowered, Part
from fcp_core.tasks.tables import Column, Table

_Row = tuple[Any, ...]


def read_result(lowered: Lowered, checkpoint: bytes) -> Table:
    """Return the table.

    :raises StatusError: INVALID_ARGUMENT if the result is not that of the query.
    """
    tensors = {name: tensor.tolist() for name, tensor in open_checkpoint(checkpoint).items()}
    try:
        found = [_groups(part, tensors) for part in lowered.parts]
    except (KeyError, ValueError) as error:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"the result is not that of the query: {error}"
        ) from error
    groups = {key: dict(measures) for key, measures in found[0].items()}
    for more in found[1:]:
        for key, measures in more.items():
            groups.setdefault(key, {}).update(measures)
    count = len(lowered.parsed.measures)
    rows = [
        (*key, *(measures.get(place) for place in range(count))) for key, measures in groups.items()
    ]
    return _table(lowered.parsed.names, _shown(lowered, rows))


def _groups(part: Part, tensors: Mapping[str, list[Any]]) -> dict[_Row, dict[int, Any]]:
    """Return the measures of each group, by their places."""
    keys = [[_literal(value) for value in tensors[spec.name]] for spec in part.keys]
    columns = [tensors[name] for name in part.measures]
    count = len((keys + columns)[0])
    rows = zip(*keys, strict=True) if keys else [()] * count
    found = zip(*columns, strict=True) if columns else [()] * count
    places = part.measures.values()
    return {
        row: dict(zip(places, measures, strict=True))
        for row, measures in zip(rows, found, strict=True)
    }


def _literal(text: bytes) -> Any:
    """Return the value that an SQL literal stands for."""
    literal = text.decode("utf-8", "surrogateescape")
    if literal == "NULL":
        return None
    if literal.startswith("'"):
        return literal[1:-1].replace("''", "'")
    if literal.startswith("X'"):
        return bytes.fromhex(literal[2:-1])
    number = ast.literal_eval(literal)
    if not isinstance(number, (int, float)):
        raise ValueError(f"{literal!r} is no literal of SQL")
    return number


def _shown(lowered: Lowered, rows: Sequence[_Row]) -> list[_Row]:
    """Compute what is shown."""
    parsed = lowered.parsed
    columns = [f"k{place}" for place in range(len(parsed.keys))]
    columns += [f"m{place}" for place in range(len(parsed.measures))]
    with closing(sqlite3.connect(":memory:")) as database:
        database.create_function("sqrt", 1, _root, deterministic=True)
        database.execute(f"CREATE TABLE r ({', '.join(columns)})")
        marks = ", ".join("?" * len(columns))
        database.executemany(f"INSERT INTO r VALUES ({marks})", rows)
        try:
            return database.execute(parsed.shown_sql).fetchall()
        except sqlite3.Error as error:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"what the query shows cannot be computed: {error}"
            ) from error


def _root(x: float | None) -> float | None:
    return math.sqrt(x) if x is not None and x >= 0 else None


def _table(names: Sequence[str], rows: Sequence[_Row]) -> Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return Table(tuple(_column(n, list(v)) for n, v in zip(names, columns, strict=True)))


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
