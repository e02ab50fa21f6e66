"""What a device keeps of what it downloaded: plans come again round after round."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class ResourceCache:
    """Resources by the id that the server gave them, the least recently used dropped first.

    It lives in memory and ends with the client. Thread-safe.

    :param max_bytes: how much it holds; what is larger than half of it is not kept. 0: nothing is.
    :param now: tells the time in seconds, from any beginning.
    """

    def __init__(self, max_bytes: int, now: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._now = now
        self._lock = threading.Lock()
        self._held = 0
        #: By id: the content, for how long it may be kept, and until when.
        self._entries: OrderedDict[str, tuple[bytes, float, float]] = OrderedDict()

    def get(self, cache_id: str) -> bytes | None:
        """Return a resource, or None; using it keeps it for as long again."""
        with self._lock:
            entry = self._entries.get(cache_id)
            if entry is None:
                return None
            data, max_age, expires = entry
            if self._now() >= expires:
                self._drop(cache_id)
                return None
            self._entries[cache_id] = data, max_age, self._now() + max_age
            self._entries.move_to_end(cache_id)
            return data

    def put(self, cache_id: str, data: bytes, max_age: float) -> None:
        """Keep a resource.

        :param cache_id: names the content; without one it is not kept.
        :param max_age: for how long, in seconds.
        """
        if not cache_id or max_age <= 0 or 2 * len(data) > self._max_bytes:
            return
        with self._lock:
            self._drop(cache_id)
            while self._held + len(data) > self._max_bytes:
                self._drop(next(iter(self._entries)))
            self._entries[cache_id] = data, max_age, self._now() + max_age
            self._held += len(data)

    def _drop(self, cache_id: str) -> None:
        entry = self._entries.pop(cache_id, None)
        if entry is not None:
            self._held -= len(entry[0])
