"""Large records of an SQLite storage: they lie in parts, since SQLite copies what it is given."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from fcp_core.protocol.blocks import rest
from fcp_core.protocol.joining import join
from fcp_core.storage.codec import decode, decode_parts
from fcp_core.storage.contract import R

#: Larger records are in parts of so many bytes.
PART = 1 << 20
#: Stands, before their size, for the bytes of those; no value of MessagePack begins with it.
_IN_PARTS = b"\xc1"
_PUT = "INSERT INTO parts VALUES (?, ?, ?, ?)"


def put_parts(
    db: sqlite3.Connection, kind: str, key: str, pieces: Sequence[bytes | memoryview]
) -> bytes:
    """Write the parts of a record in place of those that it had; return what its row has.

    :param pieces: its bytes.
    """
    db.execute("DELETE FROM parts WHERE kind = ? AND key = ?", (kind, key))
    size = sum(map(len, pieces))
    if size <= PART:
        return b"".join(pieces)
    db.executemany(_PUT, ((kind, key, n, part) for n, part in enumerate(_cut(pieces))))
    return _IN_PARTS + size.to_bytes(8, "big")


def _cut(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), PART):
            part = view[start : start + PART]
            yield part
            # It was copied: if it lies in a file, memory need not hold it until all were.
            rest(part)


def read(db: sqlite3.Connection, kind: type[R], key: str, data: bytes) -> R:
    """Return a record, of which *data* is what its row has."""
    if not data.startswith(_IN_PARTS):
        return decode(kind, data)
    return decode_parts(kind, _parts(db, kind.KIND, key), int.from_bytes(data[1:], "big"))


def whole(db: sqlite3.Connection, kind: str, key: str, data: bytes) -> bytes:
    """Return the bytes of a record, of which *data* is what its row has."""
    return join(_parts(db, kind, key)) if data.startswith(_IN_PARTS) else data


def _parts(db: sqlite3.Connection, kind: str, key: str) -> Iterator[bytes]:
    query = "SELECT data FROM parts WHERE kind = ? AND key = ? ORDER BY n"
    return (row[0] for row in db.execute(query, (kind, key)))
