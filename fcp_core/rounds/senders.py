"""Who takes places and does nothing with them.

A device is known by nothing but the address and the key that it checked in with, and many may share
those: a fleet behind one router, tests on one host. So nobody is limited in how many places it
takes, but in how many of them may be *overdue*: silent for longer than the task's other devices
take. Whoever shows signs of life is trusted with as many silent places as it has shown.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

#: How many senders are remembered; of those without a silent place, the longest unseen goes first.
_REMEMBERED = 10_000
#: The most signs of life that are held to a sender's credit.
_CREDIT = 1_000


class Senders:
    """Counts the silent places and the signs of life of each sender, of one population.

    :param limit: how many places of one sender may be silent in any case; 0: any number.
    """

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._silent: dict[str, int] = {}
        self._credit: OrderedDict[str, int] = OrderedDict()

    @property
    def any_silent(self) -> bool:
        """Whether anybody has a silent place."""
        return bool(self._silent)

    def trusts(self, origin: Sequence[str]) -> bool:
        """Whether a device may be given a place, by all that it is known by."""
        if not self._limit or not self._silent:
            return True
        return all(
            self._silent.get(name, 0) < max(self._limit, self._credit.get(name, 0))
            for name in origin
        )

    def began(self, origin: Sequence[str]) -> None:
        """Take a sign of life."""
        for name in origin:
            self._credit[name] = min(self._credit.pop(name, 0) + 1, _CREDIT)
            if len(self._credit) > _REMEMBERED:
                self._credit.popitem(last=False)

    def fell_silent(self, origin: Sequence[str]) -> None:
        """Take that a place is overdue."""
        for name in origin:
            self._silent[name] = self._silent.get(name, 0) + 1

    def spoke(self, origin: Sequence[str]) -> None:
        """Take that the device of an overdue place came after all."""
        self._release(origin)

    def left(self, origin: Sequence[str]) -> None:
        """Take that an overdue place was given up: each costs a sign of life."""
        for name in origin:
            if self._credit.get(name, 0) > 0:
                self._credit[name] -= 1
        self._release(origin)

    def _release(self, origin: Sequence[str]) -> None:
        for name in origin:
            self._silent[name] -= 1
            if not self._silent[name]:
                del self._silent[name]
