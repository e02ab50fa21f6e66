"""A dictionary whose entries have an end."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class Expiring(Generic[V]):
    """Values by key, each with the time at which it is due to go.

    Nothing goes by itself: :meth:`pop_due` takes out what is due, so that the owner sees it.
    """

    def __init__(self) -> None:
        # Two dictionaries and no pairs: a pair that holds an object is one more thing that each run
        # of the garbage collector looks at, and there may be hundreds of thousands.
        self._values: dict[str, V] = {}
        self._expiries: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def put(self, key: str, value: V, expires: float) -> None:
        """Insert or replace a value; it is due once the time is *expires*."""
        self._values[key] = value
        self._expiries[key] = expires
        heapq.heappush(self._heap, (expires, key))

    def get(self, key: str) -> V | None:
        """Return the value of a key, or None."""
        return self._values.get(key)

    def pop(self, key: str) -> V | None:
        """Take a value out."""
        self._expiries.pop(key, None)
        return self._values.pop(key, None)

    def pop_due(self, now: float) -> list[tuple[str, V]]:
        """Take out everything that is due, earliest first."""
        due = []
        while (expires := self.next_expiry()) is not None and expires <= now:
            key = heapq.heappop(self._heap)[1]
            del self._expiries[key]
            due.append((key, self._values.pop(key)))
        return due

    def next_expiry(self) -> float | None:
        """Return when the next entry is due, or None if there is none."""
        while self._heap:
            expires, key = self._heap[0]
            if self._expiries.get(key) == expires:
                return expires
            # Replaced or taken out since: its place in the heap means nothing any more.
            heapq.heappop(self._heap)
        return None

    def __iter__(self) -> Iterator[V]:
        """Iterate over the values, in the order in which their keys came."""
        return iter(list(self._values.values()))

    def __len__(self) -> int:
        """Return how many entries there are."""
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        """Whether there is a value of that key."""
        return key in self._values
