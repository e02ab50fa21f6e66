"""Functions of queries that SQLite does not have, as expressions that it has."""

from __future__ import annotations

import math

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, UnsupportedError

from fcp_core.errors import UsageError


def sqlite(node: exp.Expression) -> str:
    """Return the SQL that SQLite computes an expression with, or a clause of a query.

    :raises UsageError: for arguments that cannot be, and for what SQLite does not have.
    """
    try:
        found = node.copy().transform(_in_sqlite)
        return str(found.sql("sqlite", unsupported_level=ErrorLevel.RAISE))
    except UnsupportedError as error:
        raise UsageError(f"SQLite does not have that: {error}.") from None


def _in_sqlite(node: exp.Expression) -> exp.Expression:
    """Return a part of an expression as SQLite can compute it."""
    if isinstance(node, exp.WidthBucket):
        return _width_bucket(node)
    if isinstance(node, exp.Anonymous) and node.name.upper() == "LOG_BUCKET":
        return _log_bucket(node)
    if (limits := clamp_limits(node)) is not None:
        return _parsed(f"MIN(MAX({sqlite(node.expressions[0])}, {limits[0]!r}), {limits[1]!r})")
    return node


def clamp_limits(node: exp.Expression) -> tuple[float, float] | None:
    """Return the limits of ``CLAMP(x, least, most)``; None for anything else.

    :raises UsageError: if it has no such limits.
    """
    if not isinstance(node, exp.Anonymous) or node.name.upper() != "CLAMP":
        return None
    limits = [_number(limit) for limit in node.expressions[1:]]
    if len(limits) != 2 or limits[0] is None or limits[1] is None or not limits[0] <= limits[1]:
        raise UsageError(
            f"{node.sql('sqlite')}: CLAMP takes a value and two limits in their order, as numbers."
        )
    least, most = (
        int(limit) if limit.is_integer() else limit for limit in limits if limit is not None
    )
    return least, most


def _width_bucket(node: exp.WidthBucket) -> exp.Expression:
    """Return which of equally wide buckets a value is in; 0 is below all, one more above all."""
    names = ("min_value", "max_value", "num_buckets")
    least, most, count = (_number(node.args.get(name)) for name in names)
    if least is None or most is None or count is None or not least < most or count < 1 or count % 1:
        raise UsageError(
            f"{node.sql('sqlite')}: WIDTH_BUCKET takes a value, two bounds in their order, and how "
            "many buckets there are between them, as numbers."
        )
    x = f"({sqlite(node.this)})"
    width = (most - least) / count
    return _parsed(
        f"CASE WHEN {x} < {least!r} THEN 0 WHEN {x} >= {most!r} THEN {int(count) + 1} "
        f"WHEN {x} IS NOT NULL THEN CAST(({x} - {least!r}) / {width!r} AS INTEGER) + 1 END"
    )


def _log_bucket(node: exp.Anonymous) -> exp.Expression:
    """Return the bound that is nearer to 0 of the bucket of a value; it grows by powers of a base.

    Numbers whose size is below a millionth of a millionth are in the bucket of 0.
    """
    arguments = node.expressions
    base = _number(arguments[1]) if len(arguments) == 2 else None
    if base is None or not base > 1:
        raise UsageError(
            f"{node.sql('sqlite')}: LOG_BUCKET takes a value and a base above 1, as a number."
        )
    x = f"({sqlite(arguments[0])})"
    width = math.log(base)
    # So that powers of the base are in the bucket that begins with them.
    place = f"FLOOR(LN(ABS({x})) / {width!r} + 1e-9)"
    size = f"POWER({base!r}, {place})"
    return _parsed(
        f"CASE WHEN ABS({x}) < 1e-12 THEN 0 WHEN {x} > 0 THEN {size} WHEN {x} < 0 THEN -{size} END"
    )


def _number(node: exp.Expression | None) -> float | None:
    """Return a number that is written out."""
    if isinstance(node, exp.Neg):
        number = _number(node.this)
        return None if number is None else -number
    if isinstance(node, exp.Literal) and not node.is_string:
        return float(node.name)
    return None


def _parsed(text: str) -> exp.Expression:
    return exp.paren(sqlglot.parse_one(text, read="sqlite"), copy=False)
