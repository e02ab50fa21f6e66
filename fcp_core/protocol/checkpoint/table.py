"""The sorted string table that holds a TF V1 checkpoint: data blocks, an index and a footer."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from fcp_core.protocol.checkpoint.base import Span, invalid
from fcp_core.protocol.checkpoint.wire import read_varint, varint
from fcp_core.protocol.joining import join

FOOTER_SIZE = 48
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")

_TRAILER_SIZE = 5
_CRC_MASK = 0xA282EAD8
_ONE_RESTART = struct.pack("<II", 0, 1)

#: What is joined into a file: bytes, or a contiguous array of bytes.
Buffer = bytes | NDArray[np.uint8]


def read_table(
    data: memoryview, start: int, end: int, blocks: list[Span], *, verify: bool
) -> Iterator[Span]:
    """Yield start and end of each value in the table between *start* and *end*, in key order.

    :param blocks: takes what each block's checksum covers: its contents and the type after them.
    :param verify: check the checksum of each block.
    :raises StatusError: INVALID_ARGUMENT if it is not a well-formed table, if a block is compressed
        or if a checksum is wrong.
    """
    limit = end - FOOTER_SIZE
    if limit < start or data[end - len(MAGIC) : end] != MAGIC:
        raise invalid("the checkpoint is truncated or corrupt: its table has no footer")
    at = limit
    handles = []
    for _ in range(2):
        offset, at = read_varint(data, at, end - len(MAGIC))
        size, at = read_varint(data, at, end - len(MAGIC))
        handles.append((offset, size))
    metaindex, index = (
        _block(data, start, limit, handle, verify=verify, what=what)
        for handle, what in zip(handles, ("metaindex", "index"), strict=True)
    )
    blocks += ((first, last + 1) for first, last in (metaindex, index))
    for _ in _entries(data, *metaindex):
        pass
    # It always lies there; elsewhere it belongs to another table, of which this is a torn part.
    if index[1] + _TRAILER_SIZE != limit:
        raise invalid("the checkpoint is truncated or corrupt: its index is not before its footer")
    free = start
    for value in _entries(data, *index):
        offset, after = read_varint(data, *value)
        size, _ = read_varint(data, after, value[1])
        block = _block(data, start, limit, (offset, size), verify=verify, what="data")
        # Writers lay blocks down in order. An index that names one twice would only cost time.
        if block[0] < free:
            raise invalid("the checkpoint is corrupt: its index names overlapping blocks")
        free = block[1]
        blocks.append((block[0], block[1] + 1))
        yield from _entries(data, *block)


def _block(
    data: memoryview,
    start: int,
    limit: int,
    handle: tuple[int, int],
    *,
    verify: bool,
    what: str,
) -> Span:
    """Return the span of a block's contents."""
    offset, size = handle
    if offset + size + _TRAILER_SIZE > limit - start:
        raise invalid(
            f"the checkpoint is truncated or corrupt: its {what} block of {size} bytes at "
            f"{offset} reaches beyond the end"
        )
    first, last = start + offset, start + offset + size
    kind = data[last]
    if verify:
        stored = int.from_bytes(data[last + 1 : last + _TRAILER_SIZE], "little")
        if stored != _checksum([np.frombuffer(data[first : last + 1], np.uint8)]):
            raise invalid(
                f"the checkpoint is corrupt: the checksum of its {what} block at {offset} is wrong"
            )
    if kind == 1:
        raise invalid("the checkpoint is compressed with Snappy; write it uncompressed")
    if kind != 0:
        raise invalid(f"the checkpoint is corrupt: block type {kind}, expected 0")
    return first, last


def _entries(data: memoryview, start: int, end: int) -> Iterator[Span]:
    """Yield the spans of the values of a block; keys are skipped, for the values repeat them."""
    if end - start < 4:
        raise invalid("the checkpoint is corrupt: a block is too short for its restart points")
    restarts = int.from_bytes(data[end - 4 : end], "little")
    if restarts > (end - start) // 4 - 1:
        raise invalid("the checkpoint is corrupt: a block has more restart points than bytes")
    at, end = start, end - 4 * (restarts + 1)
    while at < end:
        _, at = read_varint(data, at, end)
        key_size, at = read_varint(data, at, end)
        value_size, at = read_varint(data, at, end)
        if key_size + value_size > end - at:
            raise invalid(f"the checkpoint is corrupt: an entry before byte {at} is too long")
        at += key_size
        yield at, at + value_size
        at += value_size


def _checksum(parts: Sequence[Buffer]) -> int:
    """Return the masked CRC-32C of the concatenated parts."""
    crc: int = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF


class TableWriter:
    """Collects the parts of a table; nothing is copied before :meth:`finish`."""

    def __init__(self) -> None:
        self._parts: list[Any] = []
        self._size = 0
        self._index: list[tuple[bytes, bytes]] = []

    def add(self, key: bytes, value: Sequence[Buffer]) -> None:
        """Add an entry in a block of its own; keys must come in ascending order.

        :param value: the parts of the value.
        """
        size = sum(len(part) for part in value)
        head = b"\0" + varint(len(key)) + varint(size) + key
        self._index.append((key, self._block([head, *value, _ONE_RESTART])))

    def finish(self) -> bytes:
        """Return the file."""
        metaindex = self._block([_ONE_RESTART])
        entries: list[bytes] = []
        restarts = []
        at = 0
        for key, handle in self._index:
            entry = b"\0" + varint(len(key)) + varint(len(handle)) + key + handle
            entries.append(entry)
            restarts.append(at)
            at += len(entry)
        tail = struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
        handles = metaindex + self._block([*entries, tail])
        self._parts.append(handles.ljust(FOOTER_SIZE - len(MAGIC), b"\0") + MAGIC)
        return join(self._parts)

    def _block(self, contents: list[Buffer]) -> bytes:
        """Append a block and return its handle."""
        size = sum(len(part) for part in contents)
        handle = varint(self._size) + varint(size)
        contents.append(b"\0")
        crc = _checksum(contents)
        self._parts += contents
        self._parts.append(crc.to_bytes(4, "little"))
        self._size += size + _TRAILER_SIZE
        return handle
