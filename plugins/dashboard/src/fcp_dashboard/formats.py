"""How figures are written: aligned, with their units, and nothing more precise than it is."""

from __future__ import annotations

import math
from datetime import datetime, timezone

DASH = "\N{EN DASH}"
_THIN = "\N{NARROW NO-BREAK SPACE}"


def number(value: float) -> str:
    """Return a count with its thousands apart."""
    return f"{value:,.0f}".replace(",", _THIN)


def of(count: int, what: str) -> str:
    """Return a count with what is counted: ``1 row``, ``2 rows``."""
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def rate(value: float) -> str:
    """Return a rate with two significant figures, or whole."""
    if value == 0:
        return "0"
    return number(value) if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def share(part: float, whole: float) -> str:
    """Return a share in percent; of nothing there is none."""
    if not whole:
        return DASH
    percent = 100 * part / whole
    if 0 < percent < 1:
        return f"<1{_THIN}%"
    return f"{min(percent, 99) if part < whole else percent:.0f}{_THIN}%"


def size(value: float) -> str:
    """Return a number of bytes."""
    units = ["TB", "GB", "MB", "KB", "B"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop()
    return f"{value:.0f}{_THIN}B" if units[-1] == "B" else f"{value:.3g}{_THIN}{units[-1]}"


def seconds(value: float | None) -> str:
    """Return how long something took, or is."""
    if value is None or not math.isfinite(value):
        return DASH
    if value < 0.0009995:
        return f"{1e6 * value:.0f}{_THIN}µs"
    if value < 0.9995:
        return f"{1000 * value:.3g}{_THIN}ms"
    if value < 99.5:
        return f"{value:.3g}{_THIN}s"
    if value < 90 * 60:
        return f"{value / 60:.0f}{_THIN}min"
    if value < 36 * 3600:
        return f"{int(value // 3600)}{_THIN}h {int(value % 3600 // 60):02d}{_THIN}min"
    return f"{value / 86400:.1f}{_THIN}d"


def ago(value: float) -> str:
    """Return how long ago something was."""
    return "just now" if value < 1 else f"{seconds(float(round(value)))} ago"


def window(bounds: list[float]) -> str:
    """Return from when to when a device comes back."""
    if not bounds:
        return DASH
    return f"{seconds(bounds[0])} to {seconds(bounds[1])}"


def clock(at: float | None) -> str:
    """Return a time of day, or the date too if it is not of these hours; all in UTC."""
    return DASH if at is None else datetime.fromtimestamp(at, timezone.utc).strftime("%H:%M:%S")


def day(at: float | None) -> str:
    """Return a date and a time of day in UTC."""
    if at is None:
        return DASH
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def iso(at: float | None) -> str:
    """Return a time as machines read it."""
    return "" if at is None else datetime.fromtimestamp(at, timezone.utc).isoformat()


def figure(value: float) -> str:
    """Return a figure of a result or a metric."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def quantile(values: list[float], share_below: float) -> float | None:
    """Return what such a share of the values is below, None of none."""
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(share_below * len(values)))]
