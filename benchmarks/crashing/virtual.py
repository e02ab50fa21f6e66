"""An event loop whose time is virtual, and that does everything in one thread, in one order."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

#: Which member of the server what runs belongs to; None: the world outside.
MEMBER: ContextVar[Any] = ContextVar("member", default=None)


class NothingHappensError(Exception):
    """Everything waits, and nothing is due."""


class _Selector(selectors.DefaultSelector):
    """Waits for no time at all: the time that it should wait passes at once."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise NothingHappensError
        self.passed += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in which a sleep takes no time, and a thread's work is done in place.

    :ivar spawned: called with each task and the member that it belongs to.
    """

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self.spawned: Callable[[asyncio.Task[Any], Any], None] = lambda task, member: None
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._virtual.passed

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """Run it here and now: a thread would come back at a time that nobody can repeat."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any],
        **options: Any,
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, **options)
        self.spawned(task, MEMBER.get())
        return task
