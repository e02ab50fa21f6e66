"""Records as bytes: MessagePack, keyed by field name, so that a field may be added later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import msgspec

from fcp_core.protocol.joining import LARGE, join
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


def decode(kind: type[R], data: bytes | bytearray) -> R:
    """Return the record that *data* holds.

    A field that is missing, since the record was written before there was one, gets its default; a
    field that is not known any more is dropped.

    :raises CodecError: if *data* is not a record of that kind.
    """
    try:
        decoder = _decoders.get(kind)
        if decoder is None:
            decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
        if len(data) >= LARGE:
            # The decoder would copy the bytes in one go, and nothing else could run.
            last = fields(kind)[-1].name
            begin = data.find(_encoder.encode(last) + _BYTES, 0, _HEAD) + len(last) + 2
            size = int.from_bytes(data[begin : begin + 4], "big")
            if begin > len(last) + 1 and begin + 4 + size == len(data):
                record: R = decoder.decode(bytes(data[: begin - 1]) + _NO_BYTES)
                return replace(record, **{last: join([memoryview(data)[begin + 4 :]])})
        return decoder.decode(data)  # type: ignore[no-any-return]
    except msgspec.MsgspecError as error:
        raise CodecError(f"a stored record of kind {kind.KIND!r} cannot be read: {error}") from None


def index_value(value: Any) -> bytes:
    """Return the value of an indexed field as bytes, equal for what Python holds equal.

    So 1, 1.0 and True have the same bytes.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _encoder.encode(int(value) if isinstance(value, bool) else value)
