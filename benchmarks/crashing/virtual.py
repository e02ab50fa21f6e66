"""An event loop whose time is virtual, and that does everything in one thread, in one order."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar
from typing import Any

#: Which member of the server what runs belongs to; None: the world outside.
MEMBER: ContextVar[Any] = ContextVar("member", default=None)


class LostError(Exception):
    """No answer came."""


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

    A member that is paused (its ``wakes`` is a time to come) does nothing until it wakes.

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

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        """Call it in the next turn, or once its member wakes."""
        member = MEMBER.get() if context is None else context.get(MEMBER)
        if member is not None and member.wakes > self.time():
            return super().call_at(self._turn(member), callback, *args, context=context)
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call it at a time, or once its member wakes."""
        member = MEMBER.get() if context is None else context.get(MEMBER)
        if member is None:
            return super().call_at(when, callback, *args, context=context)
        timer: list[asyncio.TimerHandle] = []
        timer.append(
            super().call_at(when, self._due, timer, member, callback, args, context=context)
        )
        return timer[0]

    def _due(
        self,
        timer: list[asyncio.TimerHandle],
        member: Any,
        callback: Callable[..., object],
        args: Sequence[Any],
    ) -> None:
        if timer[0].cancelled():
            return
        if member.wakes > self.time():
            super().call_at(self._turn(member), self._due, timer, member, callback, args)
        else:
            callback(*args)

    @staticmethod
    def _turn(member: Any) -> float:
        """Return when a member that sleeps does the next thing, in the order in which it came."""
        member.turns += 1
        return float(member.wakes + 1e-6 * member.turns)

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
