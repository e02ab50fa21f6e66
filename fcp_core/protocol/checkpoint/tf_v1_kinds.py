"""How TensorFlow's V1 checkpoints store each dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fcp_core.protocol.checkpoint import wire

Coding = Literal["raw", "varint", "half", "bfloat16", "bytes"]


@dataclass(frozen=True)
class Kind:
    """How TensorFlow stores one dtype.

    :param number: its number in TensorFlow's DataType.
    :param dtype: what it is in memory.
    :param field: the repeated field of TensorProto that holds the values.
    :param coding: ``raw`` elements as in memory, ``varint`` numbers, ``half`` for 16-bit patterns
        in varints, ``bfloat16`` for the upper halves of float32 likewise, ``bytes`` for strings.
    """

    number: int
    dtype: np.dtype[Any]
    field: int
    coding: Coding


_ROWS: tuple[tuple[int, str, int, Coding], ...] = (
    (1, "<f4", 5, "raw"),
    (2, "<f8", 6, "raw"),
    (3, "<i4", 7, "varint"),
    (4, "u1", 7, "varint"),
    (5, "<i2", 7, "varint"),
    (6, "i1", 7, "varint"),
    (7, "O", 8, "bytes"),
    (8, "<c8", 9, "raw"),
    (9, "<i8", 10, "varint"),
    (10, "?", 11, "varint"),
    # NumPy has no bfloat16; float32 holds each of its values.
    (14, "<f4", 13, "bfloat16"),
    (17, "<u2", 7, "varint"),
    (18, "<c16", 12, "raw"),
    (19, "<f2", 13, "half"),
)


KINDS = {row[0]: Kind(row[0], np.dtype(row[1]), *row[2:]) for row in _ROWS}


WRITABLE: dict[tuple[str, int], Kind] = {
    (kind.dtype.kind, kind.dtype.itemsize): kind
    for kind in KINDS.values()
    if kind.coding not in ("bytes", "bfloat16")
}


# The wire type of one unpacked value, by field.
UNPACKED = {
    5: wire.FIXED32,
    6: wire.FIXED64,
    7: wire.VARINT,
    8: wire.BYTES,
    9: wire.FIXED32,
    10: wire.VARINT,
    11: wire.VARINT,
    12: wire.FIXED64,
    13: wire.VARINT,
}
