"""What a plain page is made of: sections with a table, each with its words if there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fcp_dashboard import formats

#: Text; text and where it leads; or markup of ours, as bytes.
Cell: TypeAlias = "str | tuple[str, str] | bytes"


@dataclass(frozen=True)
class Section:
    """A part of a page.

    :param columns: their labels, and a class of the style sheet each: ``n`` for numbers.
    :param empty: what is said in place of a table without rows.
    :param chart: an SVG document of ours.
    """

    heading: str = ""
    caption: str = ""
    columns: Sequence[tuple[str, str]] = ()
    rows: Sequence[Sequence[Cell]] = ()
    empty: str = ""
    text: str = ""
    chart: str = ""


@dataclass(frozen=True)
class Plain:
    """A page of sections.

    :param crumbs: lines below the title, with where they lead or ``""``.
    :param fields: of a form that chooses: name, label, options with their texts, the chosen one.
    :param downloads: label, address and file name.
    """

    title: str
    sections: Sequence[Section]
    lead: str = ""
    cards: Sequence[tuple[str, str, str]] = ()
    crumbs: Sequence[tuple[str, str]] = ()
    fields: Sequence[tuple[str, str, Sequence[tuple[str, str]], str]] = ()
    downloads: Sequence[tuple[str, str, str]] = field(default_factory=tuple)

    def values(self) -> dict[str, Any]:
        """Return what its template shows."""
        return dict(vars(self))


def cut(caption: str, total: int, most: int) -> str:
    """Return a table's caption, with how many of its rows are shown if that is not all of them."""
    if total <= most:
        return caption
    return f"{caption} The first {most} of {formats.number(total)} are shown."
