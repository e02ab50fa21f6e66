"""Stopping a session from another thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from fcp_core.protocol.status import Code, StatusError


class Interruption:
    """A switch that is thrown once, with what has to happen when it is.

    Whatever blocks (a socket, a TensorFlow session) registers how to be unblocked; what runs in
    steps asks ``check`` between them.
    """

    def __init__(self) -> None:
        self._why = StatusError(Code.CANCELLED, "the client was interrupted")
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next = 0

    @property
    def requested(self) -> bool:
        """Whether the switch was thrown."""
        return self._event.is_set()

    def request(self) -> None:
        """Throw the switch: run every registered callback, wake every waiter."""
        self._throw(self._why)

    def _throw(self, why: StatusError) -> None:
        with self._lock:
            if not self._event.is_set():
                self._why = why
            self._event.set()
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback()

    def check(self) -> None:
        """Raise if the switch was thrown.

        :raises StatusError: CANCELLED; DEADLINE_EXCEEDED if a time limit threw it.
        """
        if self._event.is_set():
            raise StatusError(self._why.code, self._why.message)

    def wait(self, seconds: float) -> None:
        """Wait for *seconds*, or until the switch is thrown.

        :raises StatusError: CANCELLED if it was.
        """
        if seconds > 0:
            self._event.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def limited(self, seconds: float, what: str) -> Iterator[Interruption]:
        """Have a switch inside that is thrown with this one, or after some time.

        :param seconds: the time, by a clock that never steps.
        :param what: names what takes so long, for the error.
        :raises StatusError: CANCELLED if this one was thrown.
        """
        inner = Interruption()
        late = StatusError(Code.DEADLINE_EXCEEDED, f"{what} took more than {seconds:g} s")
        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), inner._throw, (late,))
        timer.daemon = True
        with self.unblocking(inner.request):
            timer.start()
            try:
                yield inner
            finally:
                timer.cancel()

    @contextlib.contextmanager
    def unblocking(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have *callback* called, from the interrupting thread, if the switch is thrown inside.

        :raises StatusError: CANCELLED if it was before.
        """
        with self._lock:
            self.check()
            key = self._next
            self._next += 1
            self._callbacks[key] = callback
        try:
            yield
        finally:
            with self._lock:
                del self._callbacks[key]
