"""Small drawings in tables: bars and courses, coloured by the style sheet; numbers stand beside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from urllib.parse import quote


def name(text: str) -> str:
    """Return a name as markup that breaks between its words, if it must be broken."""
    return re.sub(r"(?<=[/_])(?=[^/_])", "<wbr>", escape(text))


def bar(parts: Sequence[tuple[str, float]], whole: float) -> str:
    """Return a bar of parts.

    :param parts: a class of the style sheet and a value each, from the left.
    :param whole: what the whole width stands for.
    """
    at, rects = 0.0, []
    for name, value in parts:
        width = max(0.0, min(100.0 - at, 100 * value / whole)) if whole > 0 else 0.0
        if width > 0:
            rects.append(
                f'<rect class="{name}" x="{at:.2f}" y="0" width="{width:.2f}" height="8"/>'
            )
        at += width
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="rest" x="0" y="0" width="100" height="8"/>{"".join(rects)}</svg>'
    )


def course(values: Sequence[float], title: str, target: float | None = None) -> str:
    """Return a course of figures as columns, the latest on the right.

    :param title: what is shown, for those who do not see it.
    :param target: a line at this height.
    """
    top = max([*values, target or 0.0, 1e-9])
    columns = "".join(
        f'<rect class="column" x="{2 * place}" y="{24 - 24 * value / top:.1f}" width="1.6" '
        f'height="{24 * value / top:.1f}"/>'
        for place, value in enumerate(values)
        if value > 0
    )
    line = ""
    if target:
        y = 24 - 24 * target / top
        line = f'<line class="target" x1="0" y1="{y:.1f}" x2="{2 * len(values)}" y2="{y:.1f}"/>'
    return (
        f'<svg class="course" viewBox="0 0 {2 * len(values)} 24" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f'<rect class="rest" y="23.2" width="{2 * len(values)}" height="0.8"/>{columns}{line}</svg>'
    )


def quoted(text: str) -> str:
    """Return text as a part of an address."""
    return quote(text, safe="")
