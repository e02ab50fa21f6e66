"""TensorFlow's V1 checkpoints: what the ops Save and SaveSlices write and Restore reads.

Opening checks the container; a tensor is looked at when it is asked for, so a variable of a dtype
that cannot be represented here spoils only itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from fcp_core.protocol.checkpoint import wire
from fcp_core.protocol.checkpoint.base import (
    MAX_MESSAGE_BYTES,
    Entry,
    Span,
    Tensor,
    check_count,
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
from fcp_core.protocol.checkpoint.table import (
    FOOTER_SIZE,
    MAGIC,
    Buffer,
    TableWriter,
    read_table,
)
from fcp_core.protocol.checkpoint.tf_v1_kinds import KINDS, UNPACKED, WRITABLE, Kind
from fcp_core.protocol.protos import (
    tensorflow_saved_tensor_slice_pb2,
    tensorflow_tensor_slice_pb2,
)
from fcp_core.protocol.status import StatusError

# The version of the format that TensorFlow writes, and the newest that this reader knows.
_VERSION = 1

_OFFSET_SIZE = 8


def is_table(data: memoryview) -> bool:
    """Whether *data* ends like a V1 checkpoint."""
    return len(data) >= FOOTER_SIZE and data[-len(MAGIC) :] == MAGIC


def is_appended(data: memoryview) -> bool:
    """Whether *data* ends like the variant of appended tables, each followed by its own offset."""
    return len(data) >= FOOTER_SIZE + _OFFSET_SIZE and is_table(data[:-_OFFSET_SIZE])


def read_tf_v1(data: memoryview, *, verify: bool) -> Checkpoint:
    """Open a V1 checkpoint.

    :raises StatusError: INVALID_ARGUMENT if it is truncated or corrupt, or holds a name twice.
    """
    entries: dict[str, _TfEntry] = {}
    blocks: list[Span] = []
    _read_chunk(data, 0, len(data), entries, blocks, verify=verify)
    return Checkpoint("tf_v1", data, entries, blocks)


def read_appended(data: memoryview, *, verify: bool) -> Checkpoint:
    """Open appended V1 checkpoints (what the op AppendSlices writes) as one.

    :raises StatusError: INVALID_ARGUMENT if a part is truncated or corrupt, or if two parts hold
        one name.
    """
    chunks = []
    end = len(data)
    while True:
        if end < FOOTER_SIZE + _OFFSET_SIZE:
            raise invalid("the checkpoint is truncated or corrupt: an appended part is too short")
        stop = end - _OFFSET_SIZE
        (start,) = struct.unpack_from("<q", data, stop)
        if not 0 <= start <= stop - FOOTER_SIZE:
            raise invalid(
                f"the checkpoint is corrupt: the part that ends at {stop} cannot start at {start}"
            )
        chunks.append((start, stop))
        if start == 0:
            break
        end = start
    entries: dict[str, _TfEntry] = {}
    blocks: list[Span] = []
    for start, stop in reversed(chunks):
        _read_chunk(data, start, stop, entries, blocks, verify=verify)
    return Checkpoint("tf_v1", data, entries, blocks)


def _read_chunk(
    data: memoryview,
    start: int,
    end: int,
    entries: dict[str, _TfEntry],
    blocks: list[Span],
    *,
    verify: bool,
) -> None:
    """Add the tensors and blocks of the table between *start* and *end*."""
    mine: dict[str, _TfEntry] | None = None
    for position, value in enumerate(read_table(data, start, end, blocks, verify=verify)):
        check_tensors(position)
        for number, wire_type, *span in wire.fields(data, *value):
            if wire_type != wire.BYTES:
                raise invalid(f"the checkpoint is corrupt: entry {position} is not a tensor")
            if number == 1 and position == 0:
                mine = _read_meta(data, *span)
            elif number == 2 and mine is not None:
                _read_slice(data, span[0], span[1], mine)
        if mine is None:
            break
    if mine is None:
        raise invalid("the checkpoint is corrupt: its first entry does not list the tensors")
    for name, entry in mine.items():
        if name in entries:
            raise invalid(f"the checkpoint holds the tensor {name!r} twice")
        entries[name] = entry
    check_tensors(len(entries))


def _read_meta(data: memoryview, start: int, end: int) -> dict[str, _TfEntry]:
    try:
        meta = tensorflow_saved_tensor_slice_pb2.SavedTensorSliceMeta.FromString(
            bytes(data[start:end])
        )
    except DecodeError:
        raise invalid("the checkpoint is corrupt: its list of tensors cannot be parsed") from None
    if meta.versions.min_consumer > _VERSION:
        raise invalid(
            f"the checkpoint asks for readers of version {meta.versions.min_consumer}; this one "
            f"has version {_VERSION}"
        )
    check_tensors(len(meta.tensor))
    entries: dict[str, _TfEntry] = {}
    for tensor in meta.tensor:
        if tensor.name in entries:
            raise invalid(f"the checkpoint holds the tensor {tensor.name!r} twice")
        dims = None if tensor.shape.unknown_rank else tuple(dim.size for dim in tensor.shape.dim)
        entries[tensor.name] = _TfEntry(tensor.name, tensor.type, dims)
    return entries


def _read_slice(data: memoryview, start: int, end: int, entries: Mapping[str, _TfEntry]) -> None:
    """Note where the values of one slice lie; the last field of a kind counts."""
    name = ""
    slice_span = value_span = (start, start)
    for number, wire_type, first, last in wire.fields(data, start, end):
        if number not in (1, 2, 3):
            continue
        if wire_type != wire.BYTES:
            raise invalid(f"the checkpoint is corrupt: wire type {wire_type} at byte {first}")
        if number == 1:
            try:
                name = str(data[first:last], "utf-8")
            except UnicodeDecodeError:
                raise invalid(
                    f"the checkpoint is corrupt: the name at byte {first} is not UTF-8"
                ) from None
        elif number == 2:
            slice_span = (first, last)
        else:
            value_span = (first, last)
    if name in entries:
        entries[name].slices.append((slice_span, value_span))


class _TfEntry(Entry):
    """One variable: what the list of tensors says of it, and where its slices lie."""

    def __init__(self, name: str, number: int, dims: tuple[int, ...] | None) -> None:
        self._name = name
        self._number = number
        self._dims = dims
        self.slices: list[tuple[Span, Span]] = []

    def _kind(self) -> Kind:
        kind = KINDS.get(self._number)
        if kind is None:
            raise invalid(
                f"tensor {self._name!r} has TensorFlow's dtype number {self._number}, which has "
                "no NumPy form here"
            )
        return kind

    def spec(self) -> tuple[np.dtype[Any], tuple[int, ...]]:
        dtype = self._kind().dtype
        if self._dims is None:
            raise invalid(f"tensor {self._name!r} has no shape: its rank is unknown")
        return dtype, check_shape(self._name, self._dims, dtype.itemsize)

    def values(self) -> Sequence[Span]:
        return [values for _, values in self.slices]

    def elements(self, data: memoryview) -> Span | None:
        try:
            kind = self._kind()
            if kind.coding != "raw":
                return None
            self.tensor(data)
            parts = self._parts(data, kind, *self._only_slice(data, self.spec()[1]))
        except StatusError:
            return None
        return parts[0] if len(parts) == 1 else None

    def tensor(self, data: memoryview) -> Tensor:
        kind = self._kind()
        dtype, shape = self.spec()
        spans = self._parts(data, kind, *self._only_slice(data, shape))
        parts = [data[first:last] for first, last in spans]
        if kind.coding == "bytes":
            check_count(self._name, shape, len(parts))
            return string_tensor([bytes(part) for part in parts], shape)
        packed = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        if kind.coding == "raw":
            count, rest = divmod(len(packed), dtype.itemsize)
            if rest:
                raise invalid(
                    f"the checkpoint is corrupt: tensor {self._name!r} has {len(packed)} bytes of "
                    f"values of {dtype.itemsize} bytes"
                )
            check_count(self._name, shape, count)
            return np.frombuffer(packed, dtype).reshape(shape)
        count = wire.count_varints(packed)
        check_count(self._name, shape, count)
        if kind.coding == "half":
            patterns = wire.decode_varints(packed, count, np.dtype("<u2"))
            return patterns.view(dtype).reshape(shape)
        if kind.coding == "bfloat16":
            wide = wire.decode_varints(packed, count, np.dtype("<u2")).astype("<u4")
            wide <<= 16
            return wide.view(dtype).reshape(shape)
        return wire.decode_varints(packed, count, dtype).reshape(shape)

    def _only_slice(self, data: memoryview, shape: tuple[int, ...]) -> Span:
        """Return the span of the TensorProto that holds the whole variable."""
        if not self.slices:
            raise invalid(f"the checkpoint lists the tensor {self._name!r} but holds no values")
        (first, last), values = self.slices[0]
        try:
            extents = tensorflow_tensor_slice_pb2.TensorSliceProto.FromString(
                bytes(data[first:last])
            ).extent
        except DecodeError:
            raise invalid(
                f"the checkpoint is corrupt: the slice of tensor {self._name!r} cannot be parsed"
            ) from None
        whole = all(
            not extent.HasField("length") or (extent.start, extent.length) == (0, size)
            for extent, size in zip(extents, shape, strict=False)
        )
        if len(self.slices) > 1 or not whole:
            raise invalid(
                f"tensor {self._name!r} is stored in slices, which this reader does not join; "
                "save it whole"
            )
        if len(extents) != len(shape):
            raise invalid(
                f"the checkpoint is corrupt: tensor {self._name!r} has {len(shape)} dimensions "
                f"and a slice of {len(extents)}"
            )
        return values

    def _parts(self, data: memoryview, kind: Kind, start: int, end: int) -> list[Span]:
        """Return the payloads of the field that holds the values."""
        parts = []
        for number, wire_type, first, last in wire.fields(data, start, end):
            if number != kind.field:
                continue
            if wire_type not in (wire.BYTES, UNPACKED[number]):
                raise invalid(f"the checkpoint is corrupt: wire type {wire_type} at byte {first}")
            parts.append((first, last))
        return parts


def write_tf_v1(tensors: Mapping[str, Tensor]) -> bytes:
    """Write a V1 checkpoint that TensorFlow's Restore ops and :func:`read_tf_v1` read.

    :param tensors: by name; float16, float32, float64, complex64, complex128, bool,
        int8 to int64, uint8, uint16 and strings.
    :raises StatusError: INVALID_ARGUMENT for a dtype that the format has no place for (uint32 and
        uint64 among them), for elements that are no strings, or a tensor of over 2 GiB.
    """
    slices_pb2 = tensorflow_saved_tensor_slice_pb2
    meta = slices_pb2.SavedTensorSliceMeta()
    meta.versions.producer = _VERSION
    found: list[tuple[bytes, bytes, Tensor, Kind]] = []
    for name, value in tensors.items():
        check_unmasked(name, value)
        tensor = np.asarray(value)
        encoded = encode_text(f"the tensor name {name!r}", name)
        kind = _writable_kind(name, tensor.dtype)
        described = meta.tensor.add(name=name, type=kind.number)
        described.shape.SetInParent()
        described.slice.add().extent.extend(
            tensorflow_tensor_slice_pb2.TensorSliceProto.Extent() for _ in tensor.shape
        )
        for size in tensor.shape:
            described.shape.dim.add(size=size)
        found.append((_key(encoded, tensor.ndim), encoded, tensor, kind))
    table = TableWriter()
    table.add(b"", [slices_pb2.SavedTensorSlices(meta=meta).SerializeToString()])
    for key, encoded, tensor, kind in sorted(found, key=lambda item: item[0]):
        table.add(key, _slice(encoded, tensor, kind))
    return table.finish()


def _writable_kind(name: str, dtype: np.dtype[Any]) -> Kind:
    if dtype.kind in "SUO":
        return KINDS[7]
    try:
        return WRITABLE[dtype.kind, dtype.itemsize]
    except KeyError:
        raise invalid(
            f"tensor {name!r} has the dtype {dtype}, which TF V1 checkpoints cannot hold; use one "
            "of float16, float32, float64, complex64, complex128, bool, int8, int16, int32, int64, "
            "uint8, uint16 or strings"
        ) from None


def _key(name: bytes, rank: int) -> bytes:
    """Return the table key of a whole tensor, in TensorFlow's order-preserving code."""
    # UTF-8 never has 0xff, the other byte that the code escapes.
    escaped = name.replace(b"\0", b"\0\xff")
    rank_code = bytes([1, rank]) if rank else b"\0"
    return b"\0" + escaped + b"\0\x01" + rank_code + b"\x80\x7f" * rank


def _slice(name: bytes, tensor: Tensor, kind: Kind) -> list[Buffer]:
    """Return the parts of the entry of a whole tensor."""
    values = _packed(name, tensor, kind)
    extents = b"\x0a\0" * tensor.ndim
    size = sum(len(part) for part in values)
    head = b"\x0a" + wire.varint(len(name)) + name
    head += b"\x12" + wire.varint(len(extents)) + extents + b"\x1a" + wire.varint(size)
    total = len(head) + size
    if total > MAX_MESSAGE_BYTES - 16:
        raise invalid(
            f"tensor {name.decode()!r} takes {total} bytes; TF V1 checkpoints hold 2 GiB per tensor"
        )
    return [b"\x12" + wire.varint(total) + head, *values]


def _packed(name: bytes, tensor: Tensor, kind: Kind) -> list[Buffer]:
    """Return the parts of the TensorProto."""
    if kind.coding == "bytes":
        tag = wire.varint(kind.field << 3 | wire.BYTES)
        strings = string_values(name.decode(), tensor)
        return [b"".join(b"%b%b%b" % (tag, wire.varint(len(s)), s) for s in strings)]
    if not tensor.size:
        return []
    if kind.coding == "raw":
        payload = little_endian_bytes(tensor, kind.dtype)
    elif kind.coding == "varint":
        payload = wire.encode_varints(tensor.reshape(-1))
    else:
        patterns = tensor.astype(tensor.dtype.newbyteorder("="), order="C", copy=False)
        payload = wire.encode_varints(patterns.reshape(-1).view(np.uint16))
    return [wire.varint(kind.field << 3 | wire.BYTES) + wire.varint(len(payload)), payload]
