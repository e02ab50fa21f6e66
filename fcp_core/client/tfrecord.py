"""TFRecord files, without TensorFlow."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from fcp_core.protocol.status import Code, StatusError

_LENGTH = struct.Struct("<QI")
_CRC = struct.Struct("<I")


def read_tfrecord(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the records of a TFRecord file in order; both checksums of each are verified.

    :raises StatusError: DATA_LOSS, with the record's offset, if the file is truncated or corrupt;
        NOT_FOUND if it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            while True:
                offset = file.tell()
                header = file.read(_LENGTH.size)
                if not header:
                    return
                yield _record(path, file, offset, header)
    except OSError as error:
        raise StatusError(Code.NOT_FOUND, f"cannot read examples: {error}") from error


def write_tfrecord(path: str | os.PathLike[str], records: Iterable[bytes]) -> None:
    """Write *records* as a TFRecord file."""
    with Path(path).open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + _CRC.pack(_masked_crc(length)))
            file.write(record + _CRC.pack(_masked_crc(record)))


def _record(path: str | os.PathLike[str], file: BinaryIO, offset: int, header: bytes) -> bytes:
    if len(header) < _LENGTH.size:
        raise _corrupt(path, offset, "the file ends within a record's length")
    length, crc = _LENGTH.unpack(header)
    if crc != _masked_crc(header[:8]):
        if offset == 0 and _looks_compressed(header):
            raise StatusError(
                Code.DATA_LOSS,
                f"{os.fspath(path)} is compressed, which is not read here; decompress it first",
            )
        raise _corrupt(path, offset, "the checksum of the length is wrong")
    # The checksum vouches for the length, so reading that much cannot be a stray number's doing.
    data = file.read(length + _CRC.size)
    if len(data) < length + _CRC.size:
        raise _corrupt(path, offset, f"the file ends within a record of {length} bytes")
    record = data[:length]
    if _CRC.unpack(data[length:])[0] != _masked_crc(record):
        raise _corrupt(path, offset, "the checksum of the data is wrong")
    return record


def _looks_compressed(header: bytes) -> bool:
    # A zlib header's first two bytes are a multiple of 31: one flipped byte is not taken for one.
    zlib = header[0] == 0x78 and int.from_bytes(header[:2], "big") % 31 == 0
    return zlib or header.startswith(b"\x1f\x8b")


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _corrupt(path: str | os.PathLike[str], offset: int, problem: str) -> StatusError:
    return StatusError(Code.DATA_LOSS, f"{os.fspath(path)}: record at byte {offset}: {problem}")
