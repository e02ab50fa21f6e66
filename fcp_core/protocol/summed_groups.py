"""Groups in a table of integers that can be summed before anybody reads it.

An invertible Bloom lookup table: a device adds each of its groups to four cells of a table, one in
each quarter of it, which follow from the group's key. In the sum over all devices a cell that a
single key went to can be read: how many devices added it, the key that many times, and the sums of
their numbers. Taking that group off its other cells makes further ones readable. So who has the sum
learns all groups, and of no device which ones are its own.

All is modulo a power of two: what a cell holds beside a readable group may wrap around, and comes
back when it is taken off. Source: Goodrich and Mitzenmacher, "Invertible Bloom lookup tables"
(2011), with sums in the place of exclusive or.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Of the sums. Sums of numbers are right if their magnitudes are below half of it.
MODULUS = 1 << 62
#: The most integers of a table: 1 MiB of them.
MAX_SIZE = 1 << 17
#: What stands for all keys that are too long.
LONGER = b"(longer)"

_PARTS = 4
#: Bytes of a key in one integer: with room for a thousand million devices.
_CHUNK = 4
#: Cells for each group: below 1.295 reading fails for large tables. Small ones need some to spare,
#: so that no two groups have all of their cells in common.
_CELLS, _SPARE = 1.4, 48

Table: TypeAlias = NDArray[np.uint64]


@dataclass(frozen=True)
class Group:
    """A group, summed.

    :param devices: how many added it.
    :param numbers: their sums.
    """

    key: bytes
    devices: int
    numbers: tuple[int, ...]


class UnreadableError(ValueError):
    """Sums from which not all groups can be told.

    :ivar groups: about how many there are.
    """

    def __init__(self, groups: int) -> None:
        super().__init__(f"the sums are of about {groups} groups")
        self.groups = groups


@dataclass(frozen=True)
class Layout:
    """How large a table is, and what is in its cells.

    :param capacity: how many groups there may be, over all devices.
    :param key_bytes: the longest key, in bytes; keys do not end in a zero byte.
    :param numbers: how many numbers each group has.
    :param salt: from which the cells of a key follow, too.
    :raises ValueError: if it would be too large, or is none.
    """

    capacity: int
    key_bytes: int
    numbers: int
    salt: str = ""

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.key_bytes < 0 or self.numbers < 0:
            raise ValueError("a table has room for a group at least")
        if self.size > MAX_SIZE:
            width = 8 * self._width
            raise ValueError(
                f"{self.capacity} groups in {self._cells} cells of {width} bytes are more than "
                f"{8 * MAX_SIZE} bytes"
            )

    @property
    def size(self) -> int:
        """How many integers it has."""
        return self._cells * self._width

    @property
    def _part(self) -> int:
        return math.ceil((_CELLS * self.capacity + _SPARE) / _PARTS)

    @property
    def _cells(self) -> int:
        return _PARTS * self._part

    @property
    def _chunks(self) -> int:
        return -(-self.key_bytes // _CHUNK)

    @property
    def _width(self) -> int:
        return 2 + self._chunks + self.numbers

    def write(self, groups: Mapping[bytes, Sequence[int]]) -> NDArray[np.int64]:
        """Return a device's table.

        :param groups: the numbers of each key; keys that are too long are one group together.
        :returns: shape ``(size,)``, from 0 to below :data:`MODULUS`.
        """
        fitting: dict[bytes, Sequence[int]] = {}
        for key, numbers in groups.items():
            name = key if len(key) <= self.key_bytes else LONGER[: self.key_bytes]
            before = fitting.get(name, (0,) * self.numbers)
            fitting[name] = [a + b for a, b in zip(before, numbers, strict=True)]
        table: Table = np.zeros((self._cells, self._width), np.uint64)
        for key, numbers in fitting.items():
            row, places = self._row(Group(key, 1, tuple(numbers)))
            for place in places:
                table[place] += row
        return (table % np.uint64(MODULUS)).astype(np.int64).reshape(-1)

    def without(self, sums: NDArray[np.int64], groups: Iterable[Group]) -> NDArray[np.int64]:
        """Return sums as if no device had had these groups.

        :param sums: shape ``(size,)``, modulo :data:`MODULUS`.
        :param groups: some of those that are read from them.
        """
        table: Table = sums.astype(np.uint64).reshape(self._cells, self._width)
        for group in groups:
            row, places = self._row(group)
            for place in places:
                table[place] = (table[place] - row) % np.uint64(MODULUS)
        return table.astype(np.int64).reshape(-1)

    def read(self, sums: NDArray[np.int64]) -> list[Group]:
        """Return the groups of all devices whose tables were summed, in no order.

        :param sums: shape ``(size,)``, modulo :data:`MODULUS`.
        :raises UnreadableError: if there are too many, or a device has sent something else.
        """
        if sums.shape != (self.size,):
            raise ValueError(f"the sums have the shape {sums.shape} instead of ({self.size},)")
        table: Table = sums.astype(np.uint64).reshape(self._cells, self._width)
        about = self._about(table)
        found: list[Group] = []
        waiting = list(range(self._cells))
        while waiting and len(found) <= self._cells:
            group, places = self._only(table, waiting.pop())
            if group is None:
                continue
            found.append(group)
            row = table[places[0]].copy()
            for place in places:
                table[place] = (table[place] - row) % np.uint64(MODULUS)
            waiting += places
        if table.any():
            raise UnreadableError(max(about, len(found)))
        return found

    def _only(self, table: Table, place: int) -> tuple[Group | None, list[int]]:
        """Return the group of a cell that has but one, and all of its cells."""
        devices, check, *rest = table[place].tolist()
        parts = [check, *rest[: self._chunks]]
        if not devices or any(part % devices for part in parts):
            return None, []
        check, *chunks = (part // devices for part in parts)
        if any(chunk >> 8 * _CHUNK for chunk in chunks):
            return None, []
        key = b"".join(chunk.to_bytes(_CHUNK, "big") for chunk in chunks).rstrip(b"\0")
        expected, places = self._hashed(key)
        if check != expected or place not in places:
            return None, []
        half = MODULUS // 2
        numbers = ((number + half) % MODULUS - half for number in rest[self._chunks :])
        # The cell itself comes first: it is what is taken off the others.
        places.sort(key=lambda other: other != place)
        return Group(key, devices, tuple(numbers)), places

    def _row(self, group: Group) -> tuple[Table, list[int]]:
        """Return what a group adds to each of its cells, and which those are."""
        check, places = self._hashed(group.key)
        padded = group.key.ljust(self._chunks * _CHUNK, b"\0")
        parts = [1, check, *np.frombuffer(padded, f">u{_CHUNK}").tolist()]
        row = [part * group.devices for part in parts] + list(group.numbers)
        return np.array([number % MODULUS for number in row], np.uint64), places

    def _hashed(self, key: bytes) -> tuple[int, list[int]]:
        """Return what tells a key from sums of others, and its cells."""
        digest = hashlib.sha512(f"{self.capacity} {self.salt}\n".encode() + key).digest()
        check, *numbers = np.frombuffer(digest, ">u8", 1 + _PARTS).tolist()
        return check >> 32, [p * self._part + n % self._part for p, n in enumerate(numbers)]

    def _about(self, table: Table) -> int:
        """Estimate how many groups there are, by how many cells are empty."""
        empty = np.count_nonzero(~table.any(axis=1)) / self._cells
        return round(-self._part * math.log(max(empty, 1 / (2 * self._cells))))
