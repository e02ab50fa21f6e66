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
        self._items: dict[str, tuple[V, float]] = {}
        self._heap: list[tuple[float, str]] = []

    def put(self, key: str, value: V, expires: float) -> None:
        """Insert or replace a value; it is due once the time is *expires*."""
        self._items[key] = (value, expires)
        heapq.heappush(self._heap, (expires, key))

    def get(self, key: str) -> V | None:
        """Return the value of a key, or None."""
        item = self._items.get(key)
        return None if item is None else item[0]

    def pop(self, key: str) -> V | None:
        """Take a value out."""
        item = self._items.pop(key, None)
        return None if item is None else item[0]

    def pop_due(self, now: float) -> list[tuple[str, V]]:
        """Take out everything that is due, earliest first."""
        due = []
        while (expires := self.next_expiry()) is not None and expires <= now:
            key = heapq.heappop(self._heap)[1]
            due.append((key, self._items.pop(key)[0]))
        return due

    def next_expiry(self) -> float | None:
        """Return when the next entry is due, or None if there is none."""
        while self._heap:
            expires, key = self._heap[0]
            item = self._items.get(key)
            if item is not None and item[1] == expires:
                return expires
            # Replaced or taken out since: its place in the heap means nothing any more.
            heapq.heappop(self._heap)
        return None

    def __iter__(self) -> Iterator[V]:
        """Iterate over the values, in the order in which their keys came."""
        return iter([value for value, _ in self._items.values()])

    def __len__(self) -> int:
        """Return how many entries there are."""
        return len(self._items)

    def __contains__(self, key: str) -> bool:
        """Whether there is a value of that key."""
        return key in self._items
