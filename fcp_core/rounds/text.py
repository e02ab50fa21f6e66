"""Text that others wrote, made fit for a log, a message and a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

#: Population and task names (the reference platform's rule).
NAME_PATTERN = re.compile(r"\w+(/\w+)*")

#: Population names are ASCII besides: a device has them in addresses, and sends no others.
POPULATION_PATTERN = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*")

#: Categories of characters that begin a line, colour a terminal, turn the direction of writing, are
#: not seen, or cannot be encoded.
_HARMFUL = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})


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
