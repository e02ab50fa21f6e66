"""Why devices do not contribute to a task, with counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from fcp_core.rounds.text import clean

#: How many different reasons are counted, and how many characters each has.
_MAX_REASONS, _LENGTH = 64, 300


class Reasons:
    """Counts reasons; what is in them of a device or a plugin is bounded."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def note(self, reason: str, count: int = 1) -> None:
        """Count a reason."""
        reason = clean(reason, _LENGTH)
        known = reason in self._counts or len(self._counts) < _MAX_REASONS
        self._counts[reason if known else "something else"] += count

    def items(self) -> list[tuple[str, int]]:
        """Return each reason with its count, the most frequent first."""
        if not self._counts:
            return []  # as nearly always
        return [(reason, count) for reason, count in self._counts.most_common() if count > 0]

    def text(self, without: Collection[str] = ()) -> str:
        """Name the most frequent ones, but for some."""
        named = [(reason, count) for reason, count in self.items() if reason not in without]
        return ", ".join(f"{count} x {reason}" for reason, count in named[:8])

    def __str__(self) -> str:
        """Name the most frequent ones."""
        return self.text()
