"""A bar chart of a table, as a small SVG file."""

from __future__ import annotations

import math
from html import escape
from itertools import islice
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.tasks.tables import Table

#: How many bars are drawn at most; the rest is said to be there.
MAX_BARS = 30

_WIDTH = 720
_LABELS = 220
_BAR, _GAP = 18, 6
_TOP = 48
_NUMBERS = 90
#: Longer labels are cut.
_LABEL_LENGTH = 30


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
    return _draw(rows, f"{title}: {drawn.name}")


def _draw(rows: list[tuple[str, Any]], title: str) -> str:
    shown = list(islice(rows, MAX_BARS))
    largest = max((abs(value) for _, value in shown), default=0) or 1
    scale = (_WIDTH - _LABELS - _NUMBERS) / largest
    more = len(rows) - len(shown)
    height = _TOP + len(shown) * (_BAR + _GAP) + (28 if more else 12)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="16" y="26" font-size="15">{_text(title)}</text>',
    ]
    for index, (label, value) in enumerate(shown):
        y = _TOP + index * (_BAR + _GAP)
        width = abs(value) * scale
        middle = y + _BAR - 5
        if len(label) > _LABEL_LENGTH:
            label = f"{label[: _LABEL_LENGTH - 1]}…"
        colour = "#3b6ea5" if value >= 0 else "#b5493b"
        lines += [
            f'<text x="{_LABELS - 8}" y="{middle}" text-anchor="end">{_text(label)}</text>',
            f'<rect x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<text x="{_LABELS + width + 6:.1f}" y="{middle}">{value:,.10g}</text>',
        ]
    if more:
        lines.append(f'<text x="{_LABELS}" y="{height - 10}" fill="#666">and {more} more</text>')
    return "\n".join([*lines, "</svg>", ""])


def _text(text: str) -> str:
    # Characters that XML has no way to write, not even escaped.
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
