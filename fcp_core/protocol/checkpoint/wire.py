"""A bounded reader of the protobuf wire format that gives positions instead of copies.

The generated classes copy what they parse; here a field is a span of the file, so that packed
numbers can be used where they lie.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fcp_core.protocol.blocks import FileBlock, block_of, rest
from fcp_core.protocol.checkpoint.base import invalid

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

LONGEST_VARINT = 10

# Bytes, or values, handled at once: small enough that the scratch arrays stay in the cache.
_CHUNK = 1 << 16
# After so many decoded bytes their own memory is given back, if they lie in a file.
_BEHIND = 4 << 20
# So many bytes of numbers, and more, lie in a file if what they are decoded from does.
_IN_FILE = 16 << 20


class Field(NamedTuple):
    """One field: its number, its wire type and the span of its payload.

    The payload of a varint is the varint itself, so that a repeated field has the same bytes
    whether it is packed or not.
    """

    number: int
    wire_type: int
    start: int
    end: int


def read_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return the unsigned 64-bit varint at *at* and the position after it.

    :raises StatusError: INVALID_ARGUMENT if it does not end before *end*, or has over ten bytes.
    """
    value = shift = 0
    for position in range(at, min(end, at + LONGEST_VARINT)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + 1
        shift += 7
    if end - at >= LONGEST_VARINT:
        raise invalid(f"the checkpoint is corrupt: a number at byte {at} has over ten bytes")
    raise invalid(f"the checkpoint is truncated or corrupt: a number at byte {at} has no end")


def read_span(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return start and end of the length-prefixed bytes at *at*.

    :raises StatusError: INVALID_ARGUMENT if they would reach beyond *end*.
    """
    size, start = read_varint(data, at, end)
    if size > end - start:
        raise invalid(
            f"the checkpoint is truncated or corrupt: {size} bytes announced at byte {at}, "
            f"{end - start} left"
        )
    return start, start + size


def fields(data: memoryview, at: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message that lies between *at* and *end*.

    :raises StatusError: INVALID_ARGUMENT if it is not a well-formed message.
    """
    while at < end:
        tag, start = read_varint(data, at, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise invalid(f"the checkpoint is corrupt: field number {number} at byte {at}")
        if wire_type == BYTES:
            start, stop = read_span(data, start, end)
        elif wire_type == VARINT:
            stop = read_varint(data, start, end)[1]
        elif wire_type == FIXED32:
            stop = start + 4
        elif wire_type == FIXED64:
            stop = start + 8
        else:
            raise invalid(f"the checkpoint is corrupt: wire type {wire_type} at byte {at}")
        if stop > end:
            raise invalid(f"the checkpoint is truncated or corrupt: a value at byte {start}")
        yield Field(number, wire_type, start, stop)
        at = stop


def signed(value: int) -> int:
    """Return the int64 of an unsigned varint."""
    return value - (1 << 64) if value >= 1 << 63 else value


def varint(value: int) -> bytes:
    """Return *value* (at least 0) as a varint."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def count_varints(data: memoryview) -> int:
    """Return how many varints end in *data*."""
    raw = np.frombuffer(data, np.uint8)
    pieces = (raw[at : at + _CHUNK] for at in range(0, raw.size, _CHUNK))
    return sum(int(np.count_nonzero(piece < 0x80)) for piece in pieces)


def decode_varints(data: memoryview, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Decode *count* varints that fill *data*.

    :param count: what :func:`count_varints` says.
    :param dtype: an integer dtype; higher bits are dropped, as protobuf does.
    :raises StatusError: INVALID_ARGUMENT if the last one has no end or one has over ten bytes.
    """
    raw = np.frombuffer(data, np.uint8)
    if raw.size and raw[-1] >= 0x80:
        raise invalid("the checkpoint is corrupt: the last of the packed numbers has no end")
    out = _room(data, count, dtype)
    at = done = behind = 0
    while at < raw.size:
        piece = raw[at : at + _CHUNK]
        last = np.flatnonzero(piece < 0x80)
        if last.size == piece.size:
            out[done : done + last.size] = piece
        else:
            _decode_piece(piece, last, out, done)
        at += int(last[-1]) + 1
        done += last.size
        if at - behind >= _BEHIND:  # what is decoded takes its place
            rest(data[behind:at])
            behind = at
    return out


def _room(data: memoryview, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return where numbers are decoded to."""
    block, size = block_of(data), count * dtype.itemsize
    if isinstance(block, FileBlock) and size >= _IN_FILE:
        with contextlib.suppress(OSError):  # a full disk: then memory has to do
            return np.frombuffer(block.beside(size), dtype)
    return np.empty(count, dtype)


def _decode_piece(
    piece: NDArray[np.uint8], last: NDArray[np.intp], out: NDArray[Any], done: int
) -> None:
    """Decode the varints of *piece* whose last bytes are at *last* into *out* from *done* on."""
    # An overlong number at the front may leave no last byte at all in the piece.
    first = np.zeros(last.size, np.intp)
    first[1:] = last[:-1] + 1
    more = last - first
    longest = int(more.max(initial=0)) if last.size else LONGEST_VARINT
    if longest >= LONGEST_VARINT:
        raise invalid("the checkpoint is corrupt: a packed number has over ten bytes")
    values = (piece[first] & 0x7F).astype(np.uint64)
    for extra in range(1, longest + 1):
        at = np.flatnonzero(more >= extra)
        bits = (piece[first[at] + extra] & 0x7F).astype(np.uint64)
        values[at] |= bits << np.uint64(7 * extra)
    out[done : done + values.size] = values.astype(out.dtype)


def encode_varints(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the varints of *values*, one after another.

    :param values: integers or booleans; negative ones take ten bytes, as protobuf wants it.
    """
    pieces = [_encode_piece(values[at : at + _CHUNK]) for at in range(0, values.size, _CHUNK)]
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint8)


def _encode_piece(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    values = numbers.astype(np.int64).view(np.uint64)
    sizes = np.ones(values.size, np.intp)
    for bits in range(7, 64, 7):
        larger = values >= np.uint64(1 << bits)
        if not larger.any():
            break
        sizes += larger
    else:
        bits = 70
    width = bits // 7
    if width == 1:
        return values.astype(np.uint8)
    ends = np.cumsum(sizes)
    first = ends - sizes
    out = np.empty(int(ends[-1]), np.uint8)
    for index in range(width):
        at = np.flatnonzero(sizes > index)
        part = (values[at] >> np.uint64(7 * index)).astype(np.uint8) & np.uint8(0x7F)
        part |= (sizes[at] > index + 1).astype(np.uint8) << np.uint8(7)
        out[first[at] + index] = part
    return out
