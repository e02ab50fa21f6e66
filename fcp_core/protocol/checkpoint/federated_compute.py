"""Federated compute checkpoints (``FCv1``): the format that devices write without TensorFlow.

It has no checksums, so opening checks each tensor's dtype, shape and size; only the elements of
string tensors are looked at later. It ends in four zeros, which every published builder writes;
upstream's parser also takes fewer, and ignores what follows, but then a cut file would pass.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fcp_core.protocol.checkpoint import wire
from fcp_core.protocol.checkpoint.base import (
    MAX_MESSAGE_BYTES,
    Entry,
    Span,
    Tensor,
    check_shape,
    check_tensors,
    check_unmasked,
    encode_text,
    invalid,
    little_endian_bytes,
    string_tensor,
    string_values,
)
from fcp_core.protocol.checkpoint.layout import Checkpoint
from fcp_core.protocol.checkpoint.table import Buffer
from fcp_core.protocol.joining import join

HEADER = b"FCv1"
_TERMINATOR = b"\0\0\0\0"

_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    7: np.dtype(object),
    9: np.dtype("<i8"),
    23: np.dtype("<u8"),
}
_NUMBERS = {
    (dtype.kind, dtype.itemsize): number for number, dtype in _DTYPES.items() if dtype.kind != "O"
}


def is_federated_compute(data: memoryview) -> bool:
    """Whether *data* begins like a federated compute checkpoint."""
    return data[: len(HEADER)] == HEADER


def read_federated_compute(data: memoryview) -> Checkpoint:
    """Open a federated compute checkpoint; of a repeated name the first tensor counts.

    Names may be any bytes; what is not UTF-8 comes as surrogates, as in file names.

    :raises StatusError: INVALID_ARGUMENT if it is truncated or corrupt, or if a tensor's dtype,
        shape and size do not fit each other.
    """
    entries: dict[str, _FcEntry] = {}
    at, end = len(HEADER), len(data)
    while True:
        if data[at : at + len(_TERMINATOR)] == _TERMINATOR:
            at += len(_TERMINATOR)
            break
        if at >= end:
            raise invalid("the checkpoint is truncated: it does not end in its terminator")
        start, at = wire.read_span(data, at, end)
        if start == at:
            raise invalid("the checkpoint is truncated or corrupt: its terminator is not whole")
        name = str(data[start:at], "utf-8", "surrogateescape")
        start, at = wire.read_span(data, at, end)
        entry = _FcEntry(data, name, start, at)
        entries.setdefault(name, entry)
        check_tensors(len(entries))
    if at < end:
        raise invalid(f"the checkpoint is corrupt: {end - at} bytes follow its terminator")
    return Checkpoint("federated_compute", data, entries, ())


class _FcEntry(Entry):
    """One tensor message, read but for its content."""

    def __init__(self, data: memoryview, name: str, start: int, end: int) -> None:
        self._name = name
        number = 0
        dims: list[int] = []
        content = (start, start)
        for field, wire_type, first, last in wire.fields(data, start, end):
            expected = {1: wire.VARINT, 2: wire.BYTES, 4: wire.BYTES}.get(field, wire_type)
            if wire_type != expected:
                raise invalid(
                    f"tensor {name!r} is corrupt: field {field} has wire type {wire_type}"
                )
            if field == 1:
                number = wire.read_varint(data, first, last)[0]
            elif field == 2:
                dims += _dim_sizes(data, name, first, last)
            elif field == 4:
                content = (first, last)
        if number == 0:
            raise invalid(f"tensor {name!r} has no dtype")
        if number not in _DTYPES:
            raise invalid(
                f"tensor {name!r} has the unknown dtype number {number}; expected one of "
                f"{', '.join(map(str, _DTYPES))}"
            )
        self._dtype = _DTYPES[number]
        self._shape = check_shape(name, dims, self._dtype.itemsize)
        self._content = content
        size, count = content[1] - content[0], math.prod(self._shape)
        if self._dtype.kind == "O":
            # Each element takes one byte of length at least.
            fits, wanted = size >= count, f"at least {count}"
        else:
            fits, wanted = size == count * self._dtype.itemsize, str(count * self._dtype.itemsize)
        if not fits:
            raise invalid(
                f"tensor {name!r} has the shape {list(dims)} of {self._dtype}, so {wanted} bytes "
                f"of content, but {size} are stored"
            )

    def spec(self) -> tuple[np.dtype[Any], tuple[int, ...]]:
        return self._dtype, self._shape

    def tensor(self, data: memoryview) -> Tensor:
        start, end = self._content
        if self._dtype.kind == "O":
            return string_tensor(self._strings(data, start, end), self._shape)
        return np.frombuffer(data[start:end], self._dtype).reshape(self._shape)

    def values(self) -> Sequence[Span]:
        return (self._content,)

    def elements(self, data: memoryview) -> Span | None:
        return None if self._dtype.kind == "O" else self._content

    def _strings(self, data: memoryview, start: int, end: int) -> list[bytes]:
        """Return the elements: all lengths come first, then all bytes."""
        count = math.prod(self._shape)
        head = data[start : min(end, start + count * wire.LONGEST_VARINT)]
        ends = np.flatnonzero(np.frombuffer(head, np.uint8) < 0x80)
        if ends.size < count:
            raise invalid(f"tensor {self._name!r} has fewer lengths of strings than strings")
        if not count:
            return []
        at = int(ends[count - 1]) + 1
        lengths = wire.decode_varints(head[:at], count, np.dtype(np.int64))
        left = end - start - at
        stops = np.cumsum(lengths)
        # No length over the whole means that the sum cannot have run over.
        if lengths.min() < 0 or lengths.max() > left or stops[-1] > left:
            raise invalid(f"tensor {self._name!r} has strings that reach beyond its content")
        content = bytes(data[start + at : end])
        bounds = [0, *stops.tolist()]
        return [content[a:b] for a, b in itertools.pairwise(bounds)]


def _dim_sizes(data: memoryview, name: str, start: int, end: int) -> list[int]:
    """Return the sizes in a shape message, packed or not."""
    sizes = []
    for field, wire_type, at, last in wire.fields(data, start, end):
        if field != 1:
            continue
        if wire_type not in (wire.VARINT, wire.BYTES):
            raise invalid(f"the shape of tensor {name!r} is corrupt: wire type {wire_type}")
        while at < last:
            size, at = wire.read_varint(data, at, last)
            sizes.append(wire.signed(size))
    return sizes


def write_federated_compute(tensors: Mapping[str, Tensor]) -> bytes:
    """Write a federated compute checkpoint.

    :param tensors: by name; float32, float64, int32, int64, uint64 and strings.
    :raises StatusError: INVALID_ARGUMENT for other dtypes, for elements that are no strings, for an
        empty name or a tensor of over 2 GiB.
    """
    parts: list[Any] = [HEADER]
    for name, value in tensors.items():
        check_unmasked(name, value)
        tensor = np.asarray(value)
        encoded = encode_text(f"the tensor name {name!r}", name, "surrogateescape")
        if not encoded:
            raise invalid("a federated compute checkpoint cannot hold a tensor without a name")
        number, content = _content(name, tensor)
        size = sum(len(part) for part in content)
        shape = b"".join(wire.varint(dim) for dim in tensor.shape)
        head = b"\x08" + wire.varint(number)
        if shape:
            inner = b"\x0a" + wire.varint(len(shape)) + shape
            head += b"\x12" + wire.varint(len(inner)) + inner
        if size:
            head += b"\x22" + wire.varint(size)
        total = len(head) + size
        if total > MAX_MESSAGE_BYTES:
            raise invalid(
                f"tensor {name!r} takes {total} bytes; a federated compute checkpoint holds 2 GiB "
                "per tensor"
            )
        parts.append(wire.varint(len(encoded)) + encoded + wire.varint(total) + head)
        parts += content
    parts.append(_TERMINATOR)
    return join(parts)


def _content(name: str, tensor: Tensor) -> tuple[int, list[Buffer]]:
    """Return the dtype number and the parts of the content."""
    if tensor.dtype.kind in "SUO":
        strings = string_values(name, tensor)
        lengths = np.fromiter(map(len, strings), np.int64, len(strings))
        return 7, [wire.encode_varints(lengths), *strings]
    number = _NUMBERS.get((tensor.dtype.kind, tensor.dtype.itemsize))
    if number is None:
        raise invalid(
            f"tensor {name!r} has the dtype {tensor.dtype}, which federated compute checkpoints "
            "cannot hold; use one of float32, float64, int32, int64, uint64 or strings"
        )
    return number, [little_endian_bytes(tensor, _DTYPES[number])]
