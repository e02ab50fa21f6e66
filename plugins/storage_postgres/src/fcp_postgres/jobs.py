"""Transactions that wait, and which connection takes them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from fcp_core.storage.contract import Transaction

#: How many transactions share a commit at most.
_MAX_BATCH = 256
#: How long a transaction waits for the connection that is at work before another one takes it, in
#: seconds. Two at a time conflict, and one takes as many as have come; so another one only helps
#: out when that one is kept by something large.
_HOLD = 0.05


class Job:
    """A transaction that waits for its turn."""

    def __init__(self, body: Callable[[Transaction], Any]) -> None:
        self.body = body
        self.future: Future[Any] = Future()
        self.since = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None

    def starts(self) -> bool:
        """Return whether anybody still waits for it; it can then be cancelled no more."""
        return self.future.set_running_or_notify_cancel()

    def settle(self) -> None:
        """Tell whoever waits."""
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Jobs:
    """The jobs that wait. Connections take them in batches, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._at_work = 0
        self._closed = False

    def put(self, job: Job) -> None:
        """Add a job.

        :raises RuntimeError: if there will be nobody to take it.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the storage is stopped")
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Let the takers end when there is nothing left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> list[Job]:
        """Wait for jobs and return them; none if this is closed and empty.

        Whoever took some calls :meth:`done`.
        """
        with self._changed:
            while True:
                if self._waiting:
                    held = self._waiting[0].since + _HOLD - time.monotonic()
                    if not self._at_work or held <= 0:
                        break
                    self._changed.wait(held)
                elif self._closed:
                    return []
                else:
                    self._changed.wait()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_BATCH))]
            self._at_work += 1
        return batch

    def done(self) -> None:
        """Say that the jobs that were taken have been settled."""
        with self._changed:
            self._at_work -= 1
            self._changed.notify()
