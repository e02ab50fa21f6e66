"""Numbers the distinct rows of key columns in the order in which they first appear."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcp_core.aggregation.number_index import NumberIndex, distinct
from fcp_core.aggregation.spec import DataType, Tensor

#: Up to so many rows are looked up as they are; of more, the distinct ones are sorted out first.
_FEW = 1 << 13


@dataclass(frozen=True)
class Numbering:
    """The ordinals of some rows in an index that does not know all of their keys yet.

    :param ordinals: that of each row; new keys have those after the index's last one.
    :param groups: how many keys there are with the new ones.
    :param string_bytes: how many bytes the strings have that are new, each once.
    """

    ordinals: NDArray[np.int64]
    groups: int
    string_bytes: int = 0


class KeyIndex:
    """Composite keys and their ordinals.

    Two keys are one if all their columns are equal. All NaNs are one key, as in SQL, and so are
    -0.0 and 0.0; upstream's compares them byte by byte.

    :param dtypes: the dtypes of the columns, at least one.
    """

    def __init__(self, dtypes: Sequence[DataType]) -> None:
        self._dtypes = tuple(dtypes)
        # Columns are numbered one by one, and then pairs of such numbers: all but strings is
        # arithmetic on integers.
        self._strings = [_numbers() for _ in dtypes]
        self._values = [NumberIndex() for _ in dtypes]
        self._pairs = [NumberIndex() for _ in dtypes[1:]]
        self._columns: list[list[Tensor]] = [[] for _ in dtypes]
        #: How many bytes its strings have, each once a column.
        self.string_bytes = 0

    def __len__(self) -> int:
        """Return how many distinct keys there are."""
        last = len(self._dtypes) - 1
        if last:
            return len(self._pairs[-1])
        return len(self._strings[0] if self._dtypes[0] is DataType.STRING else self._values[0])

    def add(self, columns: Sequence[Tensor]) -> NDArray[np.int64]:
        """Return the ordinal of each row; keys that are new get the next ones.

        :param columns: one-dimensional, all of one length, of the index's dtypes.
        """
        if not columns[0].size:
            return np.zeros(0, np.int64)
        columns = [_canonical(column) for column in columns]
        known = len(self)
        codes = [self._codes(position, column) for position, column in enumerate(columns)]
        first: Any = slice(None)
        inverse: Any = slice(None)
        if codes[0].size > _FEW:
            # Fewer are looked up as they are.
            first, inverse = _distinct(codes)
        numbers = self._level(0, codes[0][first])
        for position, pairs in enumerate(self._pairs, 1):
            numbers = pairs.add(_paired(numbers, self._level(position, codes[position][first])))
        if len(self) > known:
            # A new key has a number above all before it.
            highest = np.maximum.accumulate(np.concatenate(([known - 1], numbers)))
            fresh = np.flatnonzero(highest[1:] > highest[:-1])
            for kept, column in zip(self._columns, columns, strict=True):
                kept.append(column[first][fresh])
        return np.asarray(numbers[inverse], np.int64)

    def find(self, columns: Sequence[Tensor]) -> Numbering:
        """Return what :meth:`add` would, without adding anything."""
        if not columns[0].size:
            return Numbering(np.zeros(0, np.int64), len(self))
        columns = [_canonical(column) for column in columns]
        codes, string_bytes = [], 0
        for position, column in enumerate(columns):
            if column.dtype != object:
                codes.append(self._codes(position, column))
                continue
            strings = self._strings[position]
            fresh: dict[bytes, int] = {}
            code = [
                strings[element]
                if element in strings
                else fresh.setdefault(element, len(strings) + len(fresh))
                for element in column.tolist()
            ]
            codes.append(np.array(code, np.int64))
            string_bytes += sum(map(len, fresh))
        numbers = self._known(0, codes[0])
        for position, pairs in enumerate(self._pairs, 1):
            more = self._known(position, codes[position])
            there = (numbers >= 0) & (more >= 0)
            found = pairs.find(_paired(numbers[there], more[there]))
            numbers = np.full(numbers.size, -1, np.int64)
            numbers[there] = found
        unknown, groups = np.flatnonzero(numbers < 0), len(self)
        if unknown.size:
            first, inverse = _distinct([code[unknown] for code in codes])
            numbers[unknown] = groups + inverse
            groups += first.size
        return Numbering(numbers, groups, string_bytes)

    def columns(self) -> list[Tensor]:
        """Return the key columns, one row for each ordinal."""
        result = []
        for dtype, kept in zip(self._dtypes, self._columns, strict=True):
            column = np.concatenate(kept) if kept else np.zeros(0, dtype.numpy)
            kept[:] = [column]
            result.append(column)
        return result

    def _level(self, position: int, codes: NDArray[Any]) -> NDArray[np.int64]:
        """Return the number of each of a column's codes; strings have theirs already."""
        if self._dtypes[position] is DataType.STRING:
            return codes
        return self._values[position].add(codes.astype(np.uint64, copy=False))

    def _known(self, position: int, codes: NDArray[Any]) -> NDArray[np.int64]:
        """Return the same of those that there are; -1 for others."""
        if self._dtypes[position] is DataType.STRING:
            return np.where(codes < len(self._strings[position]), codes, -1)
        return self._values[position].find(codes.astype(np.uint64, copy=False))

    def _codes(self, position: int, column: Tensor) -> NDArray[Any]:
        if self._dtypes[position] is not DataType.STRING:
            return np.ascontiguousarray(column).view(f"u{column.dtype.itemsize}")
        known = self._strings[position]
        before = len(known)
        codes = _numbered(known, column)
        if len(known) > before:
            self.string_bytes += sum(
                map(len, itertools.islice(reversed(known), len(known) - before))
            )
        return codes


def distinct_rows(columns: Sequence[Tensor]) -> tuple[list[Tensor], NDArray[np.int64]]:
    """Return the distinct keys of some rows, in order, and the number of each row's in them.

    :param columns: one-dimensional, all of one length; at least one.
    """
    columns = [_canonical(column) for column in columns]
    codes = [
        _numbered(_numbers(), column)
        if column.dtype == object
        else np.ascontiguousarray(column).view(f"u{column.dtype.itemsize}")
        for column in columns
    ]
    first, inverse = _distinct(codes)
    return [column[first] for column in columns], inverse


def _numbers() -> dict[Any, int]:
    """Return a dictionary that gives each new key the next number when it is asked for it."""
    return defaultdict(itertools.count().__next__)


def _numbered(numbers: dict[Any, int], column: Tensor) -> NDArray[np.int64]:
    return np.fromiter(map(numbers.__getitem__, column.tolist()), np.int64, column.size)


def _paired(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return pairs of numbers below 2**32 as one each."""
    return left.astype(np.uint64) << np.uint64(32) | right.astype(np.uint64)


def _canonical(column: Tensor) -> Tensor:
    """Return the column with equal bytes where keys are equal."""
    if column.dtype.kind != "f":
        return column
    # Adding zero makes -0.0 positive, and a signalling NaN a quiet one.
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(column), column.dtype.type(np.nan), column + column.dtype.type(0))


def _distinct(codes: Sequence[NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each distinct row appears first, in that order, and each row's number in it."""
    combined = codes[0]
    for code in codes[1:]:
        # Both factors are at most the number of rows, so the products stay far below 2**63.
        _, left = np.unique(combined, return_inverse=True)
        values, right = np.unique(code, return_inverse=True)
        combined = left.astype(np.int64) * len(values) + right
    return distinct(combined)
