"""Text that others wrote, made fit for a log, a message and a terminal."""

from __future__ import annotations

import unicodedata

#: Categories of characters that begin a line, colour a terminal, turn the direction of writing, are
#: not seen, or cannot be encoded.
_HARMFUL = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})


def escaped(text: str) -> str:
    """Return a text on one line, with escapes for the characters that would not be seen as such."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in _HARMFUL
        else char
        for char in text
    )


def clean(text: str, length: int = 1000) -> str:
    """Return :func:`escaped` text of at most *length* characters.

    :param length: in characters; where it is cut stands an ellipsis.
    """
    # What is cut off in the end need not be escaped.
    found = escaped(text[: length + 1])
    return found if len(found) <= length else found[: length - 1] + "…"
