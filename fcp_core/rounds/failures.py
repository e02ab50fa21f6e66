"""Whether the first devices of a task all fail in the same way: then more of them will not help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fcp_core.protocol.status import Code
from fcp_core.rounds.text import clean

#: How devices fail at what a task asks of them. That one goes away, or has too few examples, says
#: nothing of the task.
_PHASES = frozenset({"computation", "submit", "aborted", "protocol"})


class Failures:
    """Counts the failures of a task without a contribution, as long as all are alike.

    What one address and key bring counts for half at most: nobody alone can end a task.

    :param limit: how many are enough; 0: none are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kind: tuple[str, Code] | None = None
        self._message = ""
        self._by: Counter[tuple[str, ...]] = Counter()

    @property
    def code(self) -> Code:
        """The code of all."""
        return Code.UNKNOWN if self._kind is None else self._kind[1]

    @property
    def enough(self) -> bool:
        """Whether there are so many that the task is to end."""
        return 0 < self._limit <= self._count

    @property
    def _count(self) -> int:
        half = max(1, self._limit // 2)
        return sum(min(n, half) if origin else n for origin, n in self._by.items())

    def take(self, origin: Sequence[str], phase: str, code: Code, message: str) -> None:
        """Count a device that was dropped.

        :param origin: the address and the key that it checked in with, as far as they count.
        """
        if not self._limit or phase not in _PHASES:
            return
        if self._kind is None:
            self._kind, self._message = (phase, code), message
        if self._kind != (phase, code):
            self._limit = 0
            self._by.clear()
            return
        self._by[tuple(origin)] += 1

    def __str__(self) -> str:
        """Say how they failed."""
        phase = "" if self._kind is None else self._kind[0]
        how = f"{phase} {self.code.name}: {clean(self._message, 300)}"
        return f"its first {sum(self._by.values())} devices all failed alike ({how})"
