"""Numbers integers of 64 bits in the order in which they first appear, many at a time."""

from __future__ import annotations

import secrets
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.uint64]
Ordinals: TypeAlias = NDArray[np.int64]

#: The table has at least so many places for each number: then few probes find it, or that it is not
#: there.
_SPARE = 2
_BITS = 8


class NumberIndex:
    """A hash table with open addressing, looked up with arrays.

    Where a number lies depends on a secret, so that nobody can send numbers that all lie at one
    place.
    """

    def __init__(self) -> None:
        # An odd factor: the high bits of the product are nearly independent of the number.
        self._factor = np.uint64(secrets.randbits(64) | 1)
        self._count = 0
        self._clear(_BITS)

    def __len__(self) -> int:
        """Return how many different numbers there are."""
        return self._count

    def find(self, numbers: Numbers) -> Ordinals:
        """Return the ordinal of each number; -1 for one that is not there."""
        places = self._places(numbers)
        found = self._ordinals[places]
        rows = np.flatnonzero((found >= 0) & (self._numbers[places] != numbers))
        places = places[rows]
        while rows.size:
            places = places + 1 & self._mask
            here = self._ordinals[places]
            found[rows] = here
            left = np.flatnonzero((here >= 0) & (self._numbers[places] != numbers[rows]))
            rows, places = rows[left], places[left]
        return found

    def add(self, numbers: Numbers) -> Ordinals:
        """Return the ordinal of each number; one that is new gets the next one.

        :param numbers: those that are new in the order in which they are to have ordinals.
        """
        found = self.find(numbers)
        fresh = np.flatnonzero(found < 0)
        if fresh.size:
            first, inverse = distinct(numbers[fresh])
            found[fresh] = self._count + inverse
            self._insert(numbers[fresh][first])
        return found

    def _places(self, numbers: Numbers) -> Ordinals:
        with np.errstate(over="ignore"):
            return ((numbers * self._factor) >> self._shift).astype(np.int64)

    def _clear(self, bits: int) -> None:
        self._shift, self._mask = np.uint64(64 - bits), (1 << bits) - 1
        self._numbers: Numbers = np.zeros(1 << bits, np.uint64)
        self._ordinals: Ordinals = np.full(1 << bits, -1, np.int64)

    def _insert(self, numbers: Numbers) -> None:
        """Put numbers that are not there, each of them once."""
        ordinals = np.arange(self._count, self._count + numbers.size)
        self._count += numbers.size
        if self._count * _SPARE > self._ordinals.size:
            there = self._ordinals >= 0
            numbers = np.concatenate((self._numbers[there], numbers))
            ordinals = np.concatenate((self._ordinals[there], ordinals))
            self._clear((_SPARE * self._count).bit_length())
        places = self._places(numbers)
        while numbers.size:
            free = self._ordinals[places] < 0
            self._ordinals[places[free]] = ordinals[free]
            # Of several that want one place the last has it.
            won = self._ordinals[places] == ordinals
            self._numbers[places[won]] = numbers[won]
            numbers, ordinals = numbers[~won], ordinals[~won]
            places = places[~won] + 1 & self._mask


def distinct(numbers: Numbers) -> tuple[Ordinals, Ordinals]:
    """Return where each distinct number appears first, in that order, and each one's place in it.

    :returns: shapes ``(k,)`` and ``(n,)``.
    """
    values, inverse = np.unique(numbers, return_inverse=True)
    # The last assignment is the one that stays. NumPy would sort stably to find the same.
    first = np.empty(values.size, np.int64)
    first[inverse[::-1]] = np.arange(inverse.size - 1, -1, -1)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return first[order], rank[inverse]
