"""Check-ins whose answer waits until there is room for one more device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fcp_core.server.services.ticker import Ticker

#: Seconds after which further devices are let in, if there still is room.
_AGAIN = 0.2


class HeldCheckIns:
    """The check-ins of one population that are not answered yet, in order of arrival.

    :param capacity: returns how many more devices the population's tasks take now.
    """

    def __init__(self, population: str, ticker: Ticker, capacity: Callable[[], int]) -> None:
        self._key = f"held:{population}"
        self._ticker = ticker
        self._capacity = capacity
        self._held: dict[int, asyncio.Future[None]] = {}
        self._last = 0

    async def wait(self, longest: float, now: float) -> None:
        """Wait until there is a task that has room for one more device.

        :param longest: seconds after which this returns in any case.
        """
        if self._capacity() > len(self._held):
            return
        self._last += 1
        number = self._last
        held = self._held[number] = asyncio.get_running_loop().create_future()
        key = f"{self._key}:{number}"
        self._ticker.at(key, now + longest, lambda now: _go_on(held))
        try:
            await held
        finally:
            self._held.pop(number, None)
            self._ticker.at(key, None, self.let_in)

    def let_in(self, now: float) -> None:
        """Release as many as there is room for."""
        self._release(self._capacity())
        # One that was let in may not come on.
        again = now + _AGAIN if self._held and self._capacity() else None
        self._ticker.at(self._key, again, self.let_in)

    def release(self) -> None:
        """Release all of them."""
        self._release(len(self._held))

    def _release(self, number: int) -> None:
        for key in list(self._held)[:number]:
            _go_on(self._held.pop(key))


def _go_on(held: asyncio.Future[None]) -> None:
    if not held.done():
        held.set_result(None)
