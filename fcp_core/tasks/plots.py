"""A bar chart of a table of results."""

from __future__ import annotations

import math

from fcp_core.errors import UsageError
from fcp_core.lab.charts import ranking
from fcp_core.tasks.tables import Table

#: How many bars are drawn at most; below them is said how many more there are.
MAX_BARS = 30


def bar_chart(table: Table, title: str, column: str | None = None) -> str:
    """Return an SVG document with a bar for each row, the largest first.

    :param column: the numbers to draw; None: the first ones, or, in a table without text, the last
        ones, since those before may be keys.
    :raises UsageError: if there is no such column, or no numbers at all.
    """
    numbers = [item for item in table.columns if not item.is_text]
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
    rows = [
        (" / ".join(str(item.values[row]) for item in labels) or str(row), value)
        for row, value in enumerate(drawn.values)
        if math.isfinite(value)
    ]
    if labels:
        rows.sort(key=lambda pair: (-pair[1], pair[0]))
    return ranking(f"{title}: {drawn.name}", rows, MAX_BARS)
