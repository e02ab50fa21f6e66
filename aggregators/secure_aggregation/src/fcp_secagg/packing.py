"""Vectors of integers below a modulus, and how they are packed: each element takes equal bits.

Element 0 comes first; within the string of bits, bit k is bit ``k % 8`` of byte ``k // 8``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.uint64]

#: The largest modulus of the published client.
MAX_MODULUS = 2**62

#: Elements that are packed and unpacked at a time; a multiple of 8, so that a part ends at a byte.
_PART = 1 << 13


@dataclass(frozen=True)
class VectorSpec:
    """A vector that is summed under masks.

    :param name: the tensor's name.
    :param length: how many elements it has; at least 1.
    :param modulus: elements are from 0 to one less; from 2 to 2**62.
    :raises ValueError: if it is out of range.
    """

    name: str
    length: int
    modulus: int

    def __post_init__(self) -> None:
        if not 1 < self.modulus <= MAX_MODULUS:
            raise ValueError(
                f"vector {self.name!r}: the modulus must be from 2 to 2**62, not {self.modulus}"
            )
        if not 1 <= self.length < 2**32:
            raise ValueError(
                f"vector {self.name!r}: there must be from 1 to 2**32 - 1 elements, "
                f"not {self.length}"
            )

    @property
    def bits(self) -> int:
        """How many bits an element takes."""
        return (self.modulus - 1).bit_length()

    @property
    def packed_size(self) -> int:
        """How many bytes the packed vector takes."""
        return -(-self.length * self.bits // 8)

    @property
    def is_power(self) -> bool:
        """Whether the modulus is a power of two."""
        return self.modulus & (self.modulus - 1) == 0


def pack(values: Vector, spec: VectorSpec) -> bytes:
    """Return a vector's packed form.

    :param values: ``uint64[length]``, below the modulus.
    """
    bits = spec.bits
    if bits in (8, 16, 32):
        return values.astype(f"<u{bits // 8}").tobytes()
    parts = []
    for start in range(0, spec.length, _PART):
        part = values[start : start + _PART].astype("<u8", copy=False)
        rows = np.unpackbits(part.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        parts.append(np.packbits(rows[:, :bits].reshape(-1), bitorder="little").tobytes())
    return b"".join(parts)


def unpack(data: bytes | bytearray | memoryview, spec: VectorSpec) -> Vector:
    """Return the vector of a packed form; an element that is too large is reduced once.

    :raises ValueError: if the size is wrong.
    """
    if len(data) != spec.packed_size:
        raise ValueError(
            f"vector {spec.name!r} takes {spec.packed_size} bytes, there are {len(data)}"
        )
    bits = spec.bits
    if bits in (8, 16, 32):
        values = np.frombuffer(data, f"<u{bits // 8}").astype(np.uint64)
    else:
        values = _unpack_odd(np.frombuffer(data, np.uint8), spec)
    if not spec.is_power:
        modulus = np.uint64(spec.modulus)
        np.subtract(values, modulus, out=values, where=values >= modulus)
    return values


def _unpack_odd(data: NDArray[np.uint8], spec: VectorSpec) -> Vector:
    bits = spec.bits
    values = np.empty(spec.length, np.uint64)
    for start in range(0, spec.length, _PART):
        count = min(_PART, spec.length - start)
        first = start * bits // 8
        piece = np.unpackbits(
            data[first : first + -(-count * bits // 8)], bitorder="little", count=count * bits
        )
        rows = np.zeros((count, 64), np.uint8)
        rows[:, :bits] = piece.reshape(count, bits)
        packed = np.packbits(rows, axis=1, bitorder="little")
        values[start : start + count] = packed.reshape(-1).view("<u8")
    return values
