"""An account of the ledger: the events that were booked, as few as say the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from fcp_privacy.events import (
    Composed,
    Event,
    PoissonSampled,
    Relation,
    Series,
    Spent,
    from_cost,
    sampled,
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
                lines = [*_without(lines, event), Line(cost)]
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
        total, drawn = Spent(), []
        for line in self.lines:
            event = from_cost(line.event)
            if isinstance(event, PoissonSampled):
                drawn.append((event, line.count))
            else:
                total += spent([event], relation=relation, delta=delta).times(line.count)
        if drawn:
            # It takes a delta by itself, and leaves half of it if there is something else.
            total += sampled(drawn, relation, delta if total == Spent() else delta / 2)
        return total


def flat(events: Iterable[Event]) -> Iterable[Event]:
    """Iterate over events without :class:`Composed` around them."""
    for event in events:
        if isinstance(event, Composed):
            yield from flat(event.events)
        else:
            yield event


def _without(lines: list[Line], series: Series) -> list[Line]:
    """Return lines without what a series had cost before.

    A series that costs less than before has begun anew: what it had cost stays, under another name.
    """
    kept = []
    for line in lines:
        event = from_cost(line.event)
        if not isinstance(event, Series) or event.name != series.name:
            kept.append(line)
        elif spent([series]).rho < spent([event]).rho:
            begun = sum(item.event.get("name", "").startswith(series.name) for item in lines)
            kept.append(Line(to_cost(Series(f"{series.name}#{begun}", event.event))))
    return kept
