"""A bar chart of a table of results."""

from __future__ import annotations

import math

from fcp_core.errors import UsageError
from fcp_core.lab.charts import ranking
from fcp_core.tasks.tables import ERROR, Table

#: How many bars are drawn at most; below them is said how many more there are.
MAX_BARS = 30


def bar_chart(table: Table, title: str, column: str | None = None) -> str:
    """Return an SVG document with a bar for each row, the largest first.

    :param column: the numbers to draw; None: the first ones, or, in a table without text, the last
        ones, since those before may be keys.
    :raises UsageError: if there is no such column, or no numbers at all.
    """
    errors = {item.name: item for item in table.columns if item.name.endswith(ERROR)}
    numbers = [item for item in table.columns if not item.is_text and item.name not in errors]
    if column is not None:
        sums = [item for item in numbers if item.name == column]
    else:
        has_text = len(numbers) < len(table.columns)
        sums = numbers[:1] if has_text else numbers[-1:]
    if not sums:
        names = ", ".join(item.name for item in numbers) or "none"
        raise UsageError(f"there is no column of numbers {column!r} to draw; there is {names}.")
    (drawn,) = sums
    labels = [item for item in table.columns if item is not drawn and item.is_text]
    error = errors.get(f"{drawn.name}{ERROR}")
    rows = [
        (
            " / ".join(str(item.values[row]) for item in labels) or str(row),
            value,
            0.0 if error is None or error.values[row] is None else error.values[row],
        )
        for row, value in enumerate(drawn.values)
        if value is not None and math.isfinite(value)
    ]
    if labels:
        rows.sort(key=lambda row: (-row[1], row[0]))
    bars = [(label, value) for label, value, _ in rows]
    return ranking(f"{title}: {drawn.name}", bars, MAX_BARS, [off for _, _, off in rows])
