"""Records as bytes: MessagePack, keyed by field name, so that a field may be added later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import msgspec

from fcp_core.protocol.joining import LARGE, Whole, join
from fcp_core.storage.contract import R, Record

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {}


#: How bytes begin in MessagePack: none, and those whose length takes four bytes.
_NO_BYTES, _BYTES = b"\xc4\x00", b"\xc6"
#: What comes before the bytes of a large record is shorter than this.
_HEAD = 4096


class CodecError(Exception):
    """Stored bytes cannot be decoded as the record."""


def encode(record: Record) -> bytes:
    """Return a record as bytes.

    :raises TypeError: if a field holds something that records do not hold.
    """
    return _encoder.encode(record)


def encode_pieces(record: Record, pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return a record as bytes in pieces: what is in its last field is given, and not copied."""
    head = encode(record).removesuffix(_NO_BYTES)
    return [head + _BYTES + sum(map(len, pieces)).to_bytes(4, "big"), *pieces]


def _decoder(kind: type[Any]) -> msgspec.msgpack.Decoder[Any]:
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return decoder


def decode(kind: type[R], data: bytes | bytearray) -> R:
    """Return the record that *data* holds.

    A field that is missing, since the record was written before there was one, gets its default; a
    field that is not known any more is dropped.

    :raises CodecError: if *data* is not a record of that kind.
    """
    try:
        decoder = _decoder(kind)
        if len(data) >= LARGE:
            # The decoder would copy the bytes in one go, and nothing else could run.
            begin, size = _last_bytes(kind, data)
            if begin and begin + size == len(data):
                return _with_last(kind, data, begin, size, ())
        return decoder.decode(data)  # type: ignore[no-any-return]
    except msgspec.MsgspecError as error:
        raise CodecError(f"a stored record of kind {kind.KIND!r} cannot be read: {error}") from None


def decode_parts(kind: type[R], parts: Iterable[bytes], size: int) -> R:
    """Return the record whose bytes come in parts, which are copied once.

    :param size: how many bytes they are together.
    :raises CodecError: as :func:`decode`; also if parts are missing.
    """
    rest = iter(parts)
    first = next(rest, b"")
    begin, last = _last_bytes(kind, first) if size >= LARGE else (0, 0)
    if begin and begin + last == size:
        try:
            return _with_last(kind, first, begin, last, rest)
        except msgspec.MsgspecError as error:
            raise CodecError(
                f"a stored record of kind {kind.KIND!r} cannot be read: {error}"
            ) from None
    return decode(kind, join([first, *rest]))


def _last_bytes(kind: type[Record], data: bytes | bytearray) -> tuple[int, int]:
    """Return where the bytes of the last field begin, if it holds many, and how many they are."""
    last = _encoder.encode(fields(kind)[-1].name) + _BYTES
    begin = data.find(last, 0, _HEAD) + len(last)
    if begin < len(last):
        return 0, 0
    return begin + 4, int.from_bytes(data[begin : begin + 4], "big")


def _with_last(
    kind: type[R], first: bytes | bytearray, begin: int, size: int, rest: Iterable[bytes]
) -> R:
    """Return the record whose last field's bytes begin in the first of its parts.

    :raises CodecError: if there are not *size* of them.
    """
    record: R = _decoder(kind).decode(bytes(first[: begin - 5]) + _NO_BYTES)
    whole = Whole(size)
    whole.add(memoryview(first)[begin:])
    for part in rest:
        whole.add(part)
    found = whole.get()
    if len(found) != size:
        raise CodecError(
            f"a stored record of kind {kind.KIND!r} has {len(found)} of its {size} bytes"
        )
    return replace(record, **{fields(kind)[-1].name: found})


def index_value(value: Any) -> bytes:
    """Return the value of an indexed field as bytes, equal for what Python holds equal.

    So 1, 1.0 and True have the same bytes.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _encoder.encode(int(value) if isinstance(value, bool) else value)
