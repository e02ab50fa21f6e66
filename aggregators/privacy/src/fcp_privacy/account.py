"""An account of the ledger: the events that were booked, as few as say the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from fcp_privacy.events import (
    Composed,
    Event,
    Relation,
    Series,
    Spent,
    from_cost,
    spent,
    to_cost,
)


class Line(msgspec.Struct, frozen=True):
    """An event and how often it was booked."""

    event: dict[str, Any]
    count: int = 1


class Balance(msgspec.Struct, frozen=True):
    """What is in an account.

    :param unit: what the account speaks of; it never changes.
    :param relation: the same.
    :param lines: the events, those of series with what all their rounds cost.
    :param releases: how many there were.
    """

    unit: str
    relation: str
    lines: tuple[Line, ...] = ()
    releases: int = 0

    @classmethod
    def read(cls, data: bytes) -> Balance:
        """Read an account.

        :raises ValueError: if it is none.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise ValueError(f"an account of the privacy ledger cannot be read: {error}") from None

    def to_bytes(self) -> bytes:
        """Return it as it is stored."""
        return msgspec.json.encode(self)

    def with_events(self, events: Iterable[Event]) -> Balance:
        """Return the account after a release; what a series had before is replaced."""
        lines = list(self.lines)
        for event in flat(events):
            cost = to_cost(event)
            if isinstance(event, Series):
                lines = [line for line in lines if not _is_series(line, event.name)]
                lines.append(Line(cost))
                continue
            for place, line in enumerate(lines):
                if line.event == cost:
                    lines[place] = Line(cost, line.count + 1)
                    break
            else:
                lines.append(Line(cost))
        return msgspec.structs.replace(self, lines=tuple(lines), releases=self.releases + 1)

    def spent(self, relation: Relation, delta: float) -> Spent:
        """Return what all of it comes to."""
        total = Spent()
        for line in self.lines:
            total += spent([from_cost(line.event)], relation=relation, delta=delta).times(
                line.count
            )
        return total


def flat(events: Iterable[Event]) -> Iterable[Event]:
    """Iterate over events without :class:`Composed` around them."""
    for event in events:
        if isinstance(event, Composed):
            yield from flat(event.events)
        else:
            yield event


def _is_series(line: Line, name: str) -> bool:
    return (line.event["type"], line.event.get("name")) == ("series", name)
