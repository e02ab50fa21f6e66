"""Charts as SVG, for all that draws here: lines and bars in panels, and a ranking."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

#: Colours that most people can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 34, 44
#: Of a ranking: the room of labels and numbers, the bars and what is between them.
_ROW_WIDTH, _ROW_TOP, _ROW_LABELS, _ROW_NUMBERS = 720, 48, 220, 90
_ROW_BAR, _ROW_GAP = 18, 6
#: Longer labels are cut.
_ROW_LABEL_LENGTH = 30


@dataclass(frozen=True)
class Band:
    """A coloured area behind lines, between two x and two y; None: the panel's edge."""

    colour: str
    x: tuple[float | None, float | None] = (None, None)
    y: tuple[float | None, float | None] = (None, None)
    label: str = ""


@dataclass(frozen=True)
class Lines:
    """A panel of lines: points (x, y) by the name of the series.

    :param bands: areas behind the lines.
    :param x_limit: where the panel ends on the right; None: with the last point.
    :param y_limit: where it ends at the top, what is above is drawn there; None: with the highest.
    :param logarithmic: whether equal ratios of x are equally far apart; x is above 0 then.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]]
    x_limit: float | None = None
    logarithmic: bool = False
    bands: Sequence[Band] = ()
    y_limit: float | None = None

    def draw(self) -> list[str]:
        """Return the panel's elements."""
        points = [point for _, line in self.series for point in line]
        xs = [x for x, _ in points] or [1.0]
        if self.x_limit is not None:
            xs.append(self.x_limit)
        if self.logarithmic:
            x_ticks = [10.0**power for power in _powers(min(xs), max(xs))]
            least, most = x_ticks[0], x_ticks[-1]
        else:
            x_ticks = _ticks(self.x_limit or max(xs))
            least, most = 0.0, self.x_limit or x_ticks[-1]

        def place(x: float) -> float:
            if self.logarithmic:
                share = math.log(x / least) / math.log(most / least)
            else:
                share = x / most
            return _LEFT + min(share, 1.0) * _INNER_WIDTH

        ys = [y for _, y in points] or [1.0]
        y_ticks = _ticks(self.y_limit or max(ys), min(ys))

        def height(y: float) -> float:
            return _y(min((y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 1.0))

        parts = [part for band in self.bands for part in _area(band, place, height)]
        parts += _frame(self.title, self.x_label, self.y_label, y_ticks)
        for tick in x_ticks:
            if tick <= most:
                parts.append(_text(place(tick), _HEIGHT - _BOTTOM + 16, _number(tick), "middle"))
        for number, (_, line) in enumerate(self.series):
            path = " ".join(f"{place(x):.1f},{height(y):.1f}" for x, y in line)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{_colour(number)}" '
                f'stroke-width="1.6"/>'
            )
        return parts


@dataclass(frozen=True)
class Bars:
    """A panel of groups of bars: for each group its name and a value for each series."""

    title: str
    y_label: str
    groups: Sequence[tuple[str, Sequence[float]]]

    def draw(self) -> list[str]:
        """Return the panel's elements."""
        y_ticks = _ticks(max((value for _, values in self.groups for value in values), default=1.0))
        parts = _frame(self.title, "", self.y_label, y_ticks)
        width = _INNER_WIDTH / max(1, len(self.groups))
        for place, (name, values) in enumerate(self.groups):
            left = _LEFT + place * width
            parts.append(_text(left + width / 2, _HEIGHT - _BOTTOM + 16, name, "middle"))
            bar = width * 0.8 / max(1, len(values))
            for number, value in enumerate(values):
                x, y = left + width * 0.1 + number * bar, _y(value / y_ticks[-1])
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar * 0.9:.1f}" '
                    f'height="{_HEIGHT - _BOTTOM - y:.1f}" fill="{_colour(number)}"/>'
                )
        return parts


_INNER_WIDTH = _WIDTH - _LEFT - _RIGHT
_INNER_HEIGHT = _HEIGHT - _TOP - _BOTTOM


def page(title: str, legend: Sequence[str], panels: Sequence[Lines | Bars]) -> str:
    """Return an SVG document with the panels in two columns, if there are two."""
    width = min(2, len(panels)) * _WIDTH
    height = 60 + math.ceil(len(panels) / 2) * _HEIGHT
    parts = [
        *_document(width, height),
        _text(_LEFT, 24, title, "start", 'font-size="15" font-weight="bold"'),
    ]
    x = float(_LEFT)
    for number, name in enumerate(legend):
        parts.append(f'<rect x="{x}" y="38" width="12" height="12" fill="{_colour(number)}"/>')
        parts.append(_text(x + 17, 48, name, "start"))
        x += 40 + 6.5 * len(name)
    for number, panel in enumerate(panels):
        place = f"translate({number % 2 * _WIDTH},{60 + number // 2 * _HEIGHT})"
        parts += [f'<g transform="{place}">', *panel.draw(), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def ranking(
    title: str, rows: Sequence[tuple[str, float]], limit: int, errors: Sequence[float] = ()
) -> str:
    """Return an SVG document with a horizontal bar for each row, in the order given.

    :param rows: labels and values.
    :param errors: how far off each value may be; a line at the end of its bar shows it.
    :param limit: how many are drawn; below them it says how many more there are.
    """
    shown = rows[:limit]
    more = len(rows) - len(shown)
    bounds = [*errors, *[0.0] * len(shown)]
    reached = [abs(value) + off for (_, value), off in zip(shown, bounds)]  # noqa: B905
    scale = (_ROW_WIDTH - _ROW_LABELS - _ROW_NUMBERS) / (max(reached, default=0) or 1)
    height = _ROW_TOP + len(shown) * (_ROW_BAR + _ROW_GAP) + (28 if more else 12)
    parts = [*_document(_ROW_WIDTH, height), _text(16, 26, title, "start", 'font-size="15"')]
    for number, (label, value) in enumerate(shown):
        y, width = _ROW_TOP + number * (_ROW_BAR + _ROW_GAP), abs(value) * scale
        if len(label) > _ROW_LABEL_LENGTH:
            label = f"{label[: _ROW_LABEL_LENGTH - 1]}…"
        parts += [
            _text(_ROW_LABELS - 8, y + _ROW_BAR - 5, label, "end"),
            f'<rect x="{_ROW_LABELS}" y="{y}" width="{width:.1f}" height="{_ROW_BAR}" '
            f'fill="{_colour(0 if value >= 0 else 1)}"/>',
        ]
        end = width
        if number < len(errors) and errors[number] > 0:
            least, end = max(0.0, width - errors[number] * scale), width + errors[number] * scale
            parts.append(
                f'<path d="M{_ROW_LABELS + least:.1f} {y + _ROW_BAR / 2}H{_ROW_LABELS + end:.1f}" '
                f'stroke="#333" stroke-width="1.6"/>'
            )
        parts.append(_text(_ROW_LABELS + end + 6, y + _ROW_BAR - 5, f"{value:,.10g}", "start"))
    if more:
        parts.append(_text(_ROW_LABELS, height - 10, f"and {more} more", "start", 'fill="#666"'))
    return "\n".join([*parts, "</svg>", ""])


def _document(width: int, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]


def _area(
    band: Band, place_x: Callable[[float], float], place_y: Callable[[float], float]
) -> list[str]:
    left, right = (
        edge if x is None else place_x(x)
        for x, edge in zip(band.x, (_LEFT, _WIDTH - _RIGHT), strict=True)
    )
    bottom, top = (
        edge if y is None else place_y(y)
        for y, edge in zip(band.y, (_HEIGHT - _BOTTOM, _TOP), strict=True)
    )
    return [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
        f'height="{bottom - top:.1f}" fill="{band.colour}"/>',
        _text(left + 4, top + 12, band.label, "start"),
    ]


def _frame(title: str, x_label: str, y_label: str, y_ticks: Sequence[float]) -> list[str]:
    middle = _TOP + _INNER_HEIGHT / 2
    parts = [
        _text(_LEFT, _TOP - 12, title, "start", 'font-size="12" font-weight="bold"'),
        _text(_LEFT + _INNER_WIDTH / 2, _HEIGHT - 8, x_label, "middle"),
        _text(14, middle, y_label, "middle", f'transform="rotate(-90 14 {middle})"'),
    ]
    for tick in y_ticks:
        y = _y((tick - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]))
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, _number(tick), "end"))
    return parts


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * _INNER_HEIGHT


def _ticks(largest: float, least: float = 0.0) -> list[float]:
    """Return three to seven round numbers: 0, and *least* and *largest* or a little more."""
    least, largest = min(least, 0.0), max(largest, 0.0)
    if not largest > least:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10((largest - least) / 4))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if (largest - least) / (s * power) <= 5)
    below, above = (math.ceil(end / step - 1e-9) for end in (-least, largest))
    return [number * step for number in range(-below, above + 1)]


def _powers(least: float, most: float) -> range:
    """Return the powers of ten that two numbers lie between; there are at least two."""
    first = math.floor(math.log10(least) + 1e-9)
    return range(first, max(math.ceil(math.log10(most) - 1e-9), first + 1) + 1)


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.4g}"


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    # Some characters cannot be written in XML, not even escaped.
    text = escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{text}</text>'
