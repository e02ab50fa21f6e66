"""Text that others wrote, made fit for a log, a message and a terminal."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable
from typing import Any

#: Population and task names (the reference platform's rule).
NAME_PATTERN = re.compile(r"\w+(/\w+)*")

#: Population names are ASCII besides: a device has them in addresses, and sends no others.
POPULATION_PATTERN = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*")

#: Categories of characters that begin a line, colour a terminal, turn the direction of writing, are
#: not seen, or cannot be encoded.
_HARMFUL = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})

#: How many characters a message in a log has, and an exception.
LONGEST, _LONGEST_EXCEPTION = 4000, 40_000


def escaped(text: str, escape: Callable[[str], str] | None = None) -> str:
    """Return a text on one line, with escapes for the characters that would not be seen as such.

    :param escape: returns what stands for such a character; by default Python's escape.
    """
    if text.isascii() and text.isprintable():
        return text
    escape = escape or _escape
    return "".join(
        escape(char) if unicodedata.category(char) in _HARMFUL else char for char in text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def clean(text: str, length: int = 1000) -> str:
    """Return :func:`escaped` text of at most *length* characters.

    :param length: in characters; where it is cut stands an ellipsis.
    """
    # What is cut off in the end need not be escaped.
    found = escaped(text[: length + 1])
    return found if len(found) <= length else found[: length - 1] + "…"


class TextFormatter(logging.Formatter):
    """Writes a record as one line, and lines that are indented for an exception."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (its name in logging)
        """Return the line."""
        record.message = clean(record.message, LONGEST)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the lines of an exception."""
        lines = shortened(super().formatException(ei)).split("\n")
        return "\n".join(f"  {escaped(line)}" for line in lines)


def shortened(text: str) -> str:
    """Return the beginning and the end of what is too long."""
    half = _LONGEST_EXCEPTION // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n...\n{text[-half:]}"
