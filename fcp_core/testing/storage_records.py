"""The records that the storage kit writes, and how property tests draw them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from hypothesis import strategies as st

from fcp_core.storage.contract import Record


@dataclass(frozen=True)
class Item(Record):
    """What the kit stores."""

    KIND: ClassVar[str] = "kit_item"
    KEY: ClassVar[str] = "name"
    INDEXES: ClassVar[tuple[str, ...]] = ("group", "size")

    name: str
    group: str = ""
    size: int = 0
    data: bytes = b""
    tags: tuple[str, ...] = ()
    weight: float = 0.0
    note: str | None = None


@dataclass(frozen=True)
class OtherItem(Item):
    """A record of another kind, whose keys are those of :class:`Item`."""

    KIND: ClassVar[str] = "kit_other_item"


@dataclass(frozen=True)
class LaterItem(Record):
    """The kind of :class:`Item` as a later release has it: one field and one index more."""

    KIND: ClassVar[str] = Item.KIND
    KEY: ClassVar[str] = "name"
    INDEXES: ClassVar[tuple[str, ...]] = ("group", "colour")

    name: str
    group: str = ""
    size: int = 0
    colour: str = "red"


class Expected(Exception):  # noqa: N818
    """What the kit's transactions raise on purpose."""


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
GROUPS = ("", "g", "G", "g\0", "ü")
SIZES = (0, 1, -1, 2**53 + 1, 2**53)

#: Keys that differ in ways that a store may get wrong: case, order, zero bytes, normal forms, and
#: at their ends only.
LONG = "k" * 1000
keys = st.sampled_from(
    ["a", "A", "B", "", "a\0", "é", "e\u0301", "\U0001f600", "\uffff", "10", "9"]
    + [LONG, f"{LONG}1", f"{LONG}2"]
)
groups = st.sampled_from(GROUPS)
sizes = st.sampled_from(SIZES)
items = st.builds(
    Item,
    name=keys | TEXT,
    group=groups,
    size=sizes,
    data=st.binary(max_size=20),
    tags=st.lists(TEXT, max_size=3).map(tuple),
    weight=st.floats(allow_nan=False),
    note=st.none() | TEXT,
)


def record_of(kind: type[Record], number: int) -> Any:
    """Return a record with a value of its own in each field but the key."""
    values: dict[str, Any] = {
        "str": f"text {number}",
        "str | None": f"more text {number}",
        "bytes": bytes([number, 255]),
        "int": number,
        "float": number + 0.5,
        "float | None": number + 0.25,
        "bool": bool(number),
        "tuple[str, ...]": ("a", str(number)),
        "dict[str, int]": {"a": number},
    }
    return kind(
        **{
            field.name: "the key" if field.name == kind.KEY else values[str(field.type)]
            for field in fields(kind)
        }
    )
