"""A question in SQL to the devices of a population, as whoever asks it writes it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

#: The collection that is asked unless a query names another one.
COLLECTION_URI = "app:/tables"


class Question(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A question in SQL: what each device computes, what is aggregated, what is shown.

    :param sql: one SELECT, in SQLite's dialect; ``docs/queries.md`` says what it may have.
    :param collection: the URI of the collection that has the tables.
    :param types: which columns hold integers: ``integer`` by the column's name. Sums of others are
        floats.
    :param min_devices: only groups of at least so many devices are in the result.
    :param minimum_rows: a device with fewer rows to give does not contribute.
    :param epsilon: what the result may cost a device; the server adds noise for it. None: it adds
        none.
    :param delta: the same.
    :param max_groups: to how many groups a device contributes at most, if there is an epsilon.
    :param max_rows: of how many rows in a group a device contributes what they add, then and if it
        is masked; None: 10, or 10,000 if it is masked.
    :param masked: ask for sums under masks, of which an aggregation protocol lets the server see
        those over many devices only.
    :param capacity: how many groups all devices together may have, then.
    :param key_bytes: how long the keys of a group may be as text, then.
    :param domain: for each key, by its text, the values that it has: all of their combinations are
        in the result, and no others; only with an epsilon.
    """

    sql: str
    collection: str = COLLECTION_URI
    types: Mapping[str, str] = {}
    min_devices: int | None = None
    minimum_rows: int = 0
    epsilon: Annotated[float, Meta(gt=0)] | None = None
    delta: Annotated[float, Meta(ge=0, lt=1)] = 1e-8
    max_groups: Annotated[int, Meta(ge=1)] = 10
    max_rows: Annotated[int, Meta(ge=1)] | None = None
    domain: Mapping[str, Sequence[str | int | float | None]] = {}
    masked: bool = False
    capacity: Annotated[int, Meta(ge=1)] = 1000
    key_bytes: Annotated[int, Meta(ge=8)] = 48

    @property
    def rows_bound(self) -> int:
        """Of how many rows in a group a device contributes what they add, if that is bounded."""
        return self.max_rows or (10_000 if self.masked else 10)

    def to_text(self) -> str:
        """Return the query as JSON."""
        return msgspec.json.encode(self).decode()
