"""Whether data is worth compressing: gzip of dense float32 saves 7 % and costs more than that."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass

#: Data below this size is compressed without a look at it: looking would cost as much.
LOOKED_AT = 256 << 10
#: How many pieces of larger data are compressed to find out, and how long they are.
_PIECES = 8
_PIECE = 4 << 10
#: The share of the bytes that has to be saved. What undoes gzip later has its price as well.
LEAST_SAVING = 0.1


@dataclass(frozen=True)
class Sample:
    """What compressing a sample of some data came to.

    :param saving: the share of its bytes that was saved; below 0 if it grew.
    :param seconds: how long a byte took.
    """

    saving: float
    seconds: float

    def is_worth_it(self, rate: float | None = None) -> bool:
        """Whether all of it should be compressed.

        :param rate: how many bytes the link carries in a second; None: that is not known, and what
            is saved alone decides.
        """
        if self.saving < LEAST_SAVING:
            return False
        return rate is None or self.saving / rate > self.seconds


def sample(data: bytes | memoryview) -> Sample:
    """Compress some pieces of data, as fast as it goes."""
    step = max(_PIECE, len(data) // _PIECES)
    # Together: each alone would have a table of its own.
    some = b"".join(data[at : at + _PIECE] for at in range(0, len(data), step))
    begun = time.perf_counter()
    made = len(zlib.compress(some, 1))
    size = max(1, len(some))
    return Sample(1 - made / size, (time.perf_counter() - begun) / size)


def is_worth_compressing(data: bytes | memoryview, rate: float | None = None) -> bool:
    """Whether gzip of data gains more than it costs.

    :param rate: how many bytes the link carries in a second; None: that is not known.
    """
    return len(data) < LOOKED_AT or sample(data).is_worth_it(rate)
