"""Aggregators that keep every update until they report."""

from __future__ import annotations

import hashlib
import struct
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Accumulator, Options
from fcp_core.aggregation.checks import bad
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.protocol.status import Code, StatusError
from fcp_robust.updates import CHUNK, Updates, Vector

#: Marks a dump, and what follows: the number of updates and of numbers in each.
_HEADER = struct.Struct("<4sQQ")
_MAGIC = b"FRK1"


class KeptUpdates(Accumulator):
    """Keeps the updates as vectors. A weight, if there is one, is ignored.

    Without any update it reports NaN, as a mean does.

    :raises StatusError: INVALID_ARGUMENT if the intrinsic or an option will not do.
    """

    def __init__(self, intrinsic: Intrinsic, options: Options) -> None:
        self._updates = Updates(intrinsic)
        self._options = dict(options)
        self._rows: list[Vector] = []
        self.configure(options)

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes) -> Self:
        """Rebuild an accumulator from :meth:`dump`.

        :raises StatusError: INVALID_ARGUMENT for bytes that are no such dump.
        """
        self = cls(intrinsic, options)
        updates = self._updates
        magic, count, size = b"", 0, 0
        if len(data) >= _HEADER.size:
            magic, count, size = _HEADER.unpack_from(data)
        length = _HEADER.size + count * size * updates.dtype.itemsize
        if magic != _MAGIC or size != updates.size or len(data) != length:
            raise bad(intrinsic, f"these {len(data)} bytes are no dump of {cls.__name__}")
        rows = np.frombuffer(data, updates.dtype, count * size, _HEADER.size)
        self._rows = list(rows.reshape(count, size))
        return self

    @property
    def num_inputs(self) -> int:
        """How many contributions it holds."""
        return len(self._rows)

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse NaN and infinity."""
        self._updates.check_finite(inputs)

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Keep a copy of the values."""
        self._rows.append(self._updates.join(inputs))

    def merge(self, other: Self) -> None:
        """Keep the other's updates too; kept ones never change, so both may hold them."""
        mine = (type(self), self._updates.intrinsic, self._options)
        if (type(other), other._updates.intrinsic, other._options) != mine:
            raise bad(self._updates.intrinsic, "only states of one configuration can be merged")
        self._rows.extend(other._rows)

    def can_report(self) -> bool:
        """Whether there are enough updates."""
        return len(self._rows) >= self.minimum()

    def report(self) -> list[Tensor]:
        """Combine the updates.

        :raises StatusError: FAILED_PRECONDITION if there are too few.
        """
        if not self.can_report():
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"{type(self).__name__} needs {self.minimum()} contributions and has "
                f"{len(self._rows)}",
            )
        if not self._rows:
            return self._updates.tensors(np.full(self._updates.size, np.nan))
        # In an order of their own, so that ties and rounding do not depend on who came first.
        rows = sorted(self._rows, key=lambda row: hashlib.sha256(row.data).digest())
        with np.errstate(over="ignore"):
            return self._updates.tensors(self.combine(rows))

    def dump(self) -> bytes:
        """Return the updates, one after another."""
        header = _HEADER.pack(_MAGIC, len(self._rows), self._updates.size)
        return b"".join([header, *(row.tobytes() for row in self._rows)])

    def configure(self, options: Options) -> None:
        """Take the options over and check them.

        :raises StatusError: INVALID_ARGUMENT if one will not do.
        """

    def minimum(self) -> int:
        """Return how many updates it needs to report."""
        return 0

    @abstractmethod
    def combine(self, rows: Sequence[Vector]) -> Vector:
        """Return the result for one or more updates."""


def by_column(rows: Sequence[Vector], function: str, trim: int = 0) -> Vector:
    """Return the mean or the median of each column, *trim* values left out at both ends.

    :param function: "mean" or "median".
    """
    result = np.empty(rows[0].size)
    step = max(1, CHUNK // len(rows))
    for start in range(0, result.size, step):
        block = np.stack([row[start : start + step] for row in rows]).astype(np.float64)
        if function == "median":
            result[start : start + step] = np.median(block, axis=0)
        else:
            block.sort(axis=0)
            result[start : start + step] = np.mean(block[trim : len(rows) - trim], axis=0)
    return result
