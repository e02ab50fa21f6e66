"""The types of options: parse text from a file or the environment into values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd])\s*)+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")

_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


def _to_str(raw: object, base: Path) -> str:
    if not isinstance(raw, str):
        raise ValueError("a string")
    return raw


def _to_int(raw: object, base: Path) -> int:
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        raise ValueError("a whole number")
    try:
        return int(raw)
    except ValueError:
        raise ValueError("a whole number") from None


def _to_float(raw: object, base: Path) -> float:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise ValueError("a number")
    try:
        value = float(raw)
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return value


def _to_bool(raw: object, base: Path) -> bool:
    if isinstance(raw, bool):
        return raw
    word = raw.strip().lower() if isinstance(raw, str) else None
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("true or false")


def _to_duration(raw: object, base: Path) -> float:
    wanted = "a duration such as 500ms, 30s, 5m, 1h30m or a number of seconds"
    if isinstance(raw, str) and _DURATION.fullmatch(raw.strip()):
        return sum(
            float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(raw)
        )
    try:
        seconds = _to_float(raw, base)
    except ValueError:
        raise ValueError(wanted) from None
    if seconds < 0:
        raise ValueError(wanted)
    return seconds


def _to_bytes(raw: object, base: Path) -> int:
    wanted = "a size such as 64MiB, 1GB or a number of bytes"
    if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
        return raw
    match = _BYTES.fullmatch(raw.strip()) if isinstance(raw, str) else None
    if match is None or match[2].lower() not in _BYTE_UNITS:
        raise ValueError(wanted)
    size = float(match[1]) * _BYTE_UNITS[match[2].lower()]
    if not size.is_integer():
        raise ValueError(wanted)
    return int(size)


def _to_list(raw: object, base: Path) -> tuple[str, ...]:
    if isinstance(raw, str):
        return tuple(item.strip() for item in re.split(r"[,\n]", raw) if item.strip())
    if isinstance(raw, Sequence) and all(isinstance(item, str) for item in raw):
        return tuple(raw)
    raise ValueError("a list of strings, divided by commas or lines")


def _to_path(raw: object, base: Path) -> Path:
    if not isinstance(raw, str | Path) or not str(raw):
        raise ValueError("a path")
    return base / Path(raw).expanduser()


#: What ``OptionRegistry.add`` takes as *type*; "choice" is a string out of a list.
CONVERTERS: dict[str, Callable[[object, Path], Any]] = {
    "str": _to_str,
    "int": _to_int,
    "float": _to_float,
    "bool": _to_bool,
    "duration": _to_duration,
    "bytes": _to_bytes,
    "list": _to_list,
    "path": _to_path,
    "choice": _to_str,
}


def convert(kind: str, raw: object, base: Path) -> Any:
    """Turn a raw value into one of type *kind*.

    :param kind: a key of :data:`CONVERTERS`.
    :param raw: text, or a value that a TOML file or a program gave.
    :param base: the folder that a relative path is relative to.
    :returns: str, int, float, bool, seconds (float), bytes (int), a tuple of str, or a Path.
    :raises ValueError: saying what was expected, such as ``"a whole number"``.
    """
    return CONVERTERS[kind](raw, base)


def format_bytes(size: int) -> str:
    """Return a size in the largest binary unit that it is a multiple of: ``64MiB``."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"
