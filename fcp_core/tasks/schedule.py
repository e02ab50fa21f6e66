"""When a task is submitted again: once in each period, whoever submits it how often."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

#: More than the digits that a time since 1970 loses as a double, in seconds.
_SURELY = 1e-3


@dataclass(frozen=True)
class Schedule:
    """Periods of one length.

    :param every: their length, in seconds.
    :param starting: when one of them begins, in seconds since 1970.
    """

    every: float
    starting: float = 0.0

    def begin(self, now: float) -> float:
        """Return when the period of a time began."""
        return self.starting + (now - self.starting) // self.every * self.every

    def key(self, task: str, now: float) -> str:
        """Return the key that a task is submitted with: a second submission of it is the first."""
        return f"{task} {stamp(self.begin(now))}"

    def next(self, last: float) -> float:
        """Return when the period after the one that began at *last* has surely begun."""
        return last + self.every + _SURELY


def stamp(seconds: float) -> str:
    """Return a time as a part of a name, such as ``2026-11-30T020000Z``."""
    moment = datetime.fromtimestamp(round(seconds, 3), timezone.utc)
    fraction = f"{moment.microsecond // 1000:03d}" if moment.microsecond else ""
    return f"{moment:%Y-%m-%dT%H%M%S}{fraction}Z"
