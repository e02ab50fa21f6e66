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
        self._lock = threading.Lock()
        #: Those who have nothing to do. The last one to come is woken first: its connection knows
        #: the statements, at both ends.
        self._idle: list[threading.Condition] = []
        #: Whether somebody looks whether whoever is at work is kept.
        self._watched = False
        self._at_work = 0
        self._closed = False

    def put(self, job: Job) -> None:
        """Add a job.

        :raises RuntimeError: if there will be nobody to take it.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the storage is stopped")
            self._waiting.append(job)
            self._wake()

    def close(self) -> None:
        """Let the takers end when there is nothing left."""
        with self._lock:
            self._closed = True
            for idle in self._idle:
                idle.notify()

    def take(self) -> list[Job]:
        """Wait for jobs and return them; none if this is closed and empty.

        Whoever took some calls :meth:`done`.
        """
        with self._lock:
            while True:
                if self._waiting:
                    held = self._waiting[0].since + _HOLD - time.monotonic()
                    if not self._at_work or held <= 0:
                        break
                    self._watch(held)
                elif self._closed:
                    return []
                else:
                    self._wait(None)
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_BATCH))]
            self._at_work += 1
            if self._waiting:
                self._wake()
        return batch

    def done(self, *, comes_back: bool = True) -> None:
        """Say that the jobs that were taken have been settled.

        :param comes_back: who says so takes the next ones at once.
        """
        with self._lock:
            self._at_work -= 1
            if self._waiting and not comes_back:
                self._wake()

    def _wake(self) -> None:
        """Have somebody see what is to be done, unless somebody will."""
        if self._idle and not (self._at_work and self._watched):
            self._idle[-1].notify()

    def _watch(self, seconds: float) -> None:
        if self._watched:
            self._wait(None)
            return
        self._watched = True
        try:
            self._wait(seconds)
        finally:
            self._watched = False

    def _wait(self, seconds: float | None) -> None:
        idle = threading.Condition(self._lock)
        self._idle.append(idle)
        try:
            idle.wait(seconds)
        finally:
            self._idle.remove(idle)
