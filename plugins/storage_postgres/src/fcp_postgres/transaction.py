"""What a body sees: reads from the database, and writes that wait for the end of the body."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fcp_core.storage.codec import decode, encode, encode_pieces
from fcp_core.storage.contract import ChangedError, R, Read, Record, Transaction
from fcp_postgres.tables import LARGE, Table, after, agrees, column_value, key_bytes

#: Runs a query with its arguments and returns the rows.
Query = Callable[..., list[Any]]


class Written(NamedTuple):
    """A record that is to be written: the row of its table.

    :param pieces: its bytes if they are many; the row then has none.
    """

    table: Table
    row: tuple[bytes, ...]
    pieces: Sequence[bytes | memoryview] = ()

    @property
    def data(self) -> bytes:
        """Its bytes."""
        return b"".join(self.pieces) or self.row[1]

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.row[1]) + sum(map(len, self.pieces))


class ApartError(BaseException):  # A body must not take it for its own.
    """A body changes what one before it in the same transaction took for granted."""


class Writes:
    """Records that are to be written, or deleted (None), by kind and key.

    :ivar granted: the kinds and keys of those that must be new, if they are written, or there.
    """

    def __init__(self) -> None:
        self.by_kind: dict[str, dict[bytes, Written | None]] = defaultdict(dict)
        self.granted: set[tuple[str, bytes]] = set()

    def update(self, other: Writes) -> None:
        """Add what another one has, which wins."""
        for kind, writes in other.by_kind.items():
            self.by_kind[kind].update(writes)
        self.granted |= other.granted


class BufferedTransaction(Transaction):
    """A transaction of one body, among those that share a transaction of the database.

    Nothing is written before the body has returned, so one that raises leaves nothing to undo.

    :param query: runs a query.
    :param table: returns the table of a kind.
    :param before: what the bodies before this one in the same transaction write.
    """

    def __init__(
        self, query: Query, table: Callable[[type[Record]], Table], before: Writes
    ) -> None:
        self._query = query
        self._table = table
        self._before = before
        self.writes = Writes()
        #: What was read before it was asked for, by kind and key, or values: rows of the table.
        self._ahead: dict[tuple[str, object], list[Any]] = {}

    def now(self) -> float:
        """Return the database's time."""
        rows = self._query("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(rows[0][0])

    def expect(self, *reads: Read) -> None:
        """Read everything in one statement."""
        parts: list[str] = []
        arguments: list[bytes] = []
        for number, (kind, which) in enumerate(reads):
            table = self._table(kind)
            if isinstance(which, str):
                query, values = table.get, [key_bytes(which)]
            else:
                query = table.select(which, keys_only=True)
                values = [*map(column_value, which.values())]
            parts.append(f"SELECT {number}, found.* FROM ({after(query, len(arguments))}) found")
            arguments += values
        rows = self._query(" UNION ALL ".join(parts), *arguments)
        for number, (kind, which) in enumerate(reads):
            found = [row[1:] for row in rows if row[0] == number]
            self._ahead[kind.KIND, _name_of(which)] = found

    def get(self, kind: type[R], key: str) -> R | None:
        """Return the record of that key, or None."""
        table, name = self._table(kind), key_bytes(key)
        found, written = self._written(kind, name)
        if found:
            return None if written is None else decode(kind, written.data)
        rows = self._ahead.get((kind.KIND, key))
        if rows is None:
            rows = self._query(table.get, name)
        data = self._bytes(table, rows).get(name)
        return None if data is None else decode(kind, data)

    def put(self, record: Record) -> None:
        """Insert or replace a record."""
        # Encoded now: what the caller changes later must not change what is stored.
        self._put(record, [encode(record)])

    def put_pieces(self, record: Record, pieces: Sequence[bytes | memoryview]) -> None:
        """Insert or replace a record whose last field is given in pieces."""
        self._put(record, encode_pieces(record, pieces))

    def _put(self, record: Record, pieces: Sequence[bytes | memoryview]) -> None:
        table, size = self._table(type(record)), sum(map(len, pieces))
        large = size > LARGE
        row = table.row(record, b"" if large else b"".join(pieces), size)
        self._write(record.KIND, row[0], Written(table, row, pieces if large else ()))

    def delete(self, kind: type[Record], key: str) -> None:
        """Delete the record of that key, if there is one."""
        self._table(kind)
        self._write(kind.KIND, key_bytes(key), None)

    def insert(self, record: Record) -> None:
        """Insert a record that is not there."""
        self._grant(type(record), record.key, there=False)
        self.put(record)

    def remove(self, kind: type[Record], key: str) -> None:
        """Delete a record that is there."""
        self._grant(kind, key, there=True)
        self.delete(kind, key)

    def _grant(self, kind: type[Record], key: str, *, there: bool) -> None:
        """Take for granted that a record is there, or is not, until all is written."""
        name = key_bytes(key)
        found, written = self._written(kind, name)
        if not found:
            self.writes.granted.add((kind.KIND, name))
        elif (written is not None) is not there:
            raise ChangedError(kind.KIND, key)

    def _write(self, kind: str, key: bytes, written: Written | None) -> None:
        if (kind, key) in self._before.granted:
            raise ApartError
        self.writes.by_kind[kind][key] = written

    def select(self, kind: type[R], **equals: Any) -> Iterator[R]:
        """Iterate, ordered by key, over the records whose indexed fields have these values."""
        found = self._find(kind, equals, keys_only=False)
        records = (decode(kind, found[key] or b"") for key in sorted(found))
        return iter([record for record in records if agrees(record, equals)])

    def keys(self, kind: type[Record], **equals: Any) -> list[str]:
        """Return the keys of what :meth:`select` iterates over, in order."""
        found = self._find(kind, equals, keys_only=True)
        return [
            key.decode()
            for key, data in sorted(found.items())
            if data is None or agrees(decode(kind, data), equals)
        ]

    def _find(
        self, kind: type[Record], equals: Mapping[str, Any], *, keys_only: bool
    ) -> dict[bytes, bytes | None]:
        """Return the bytes of what has these values, and of some that may not have them.

        :param keys_only: None instead of the bytes of those that certainly have them.
        """
        for name in equals:
            if name not in kind.INDEXES:
                raise ValueError(f"{kind.KIND} is not indexed by {name}, only by {kind.INDEXES}")
        table = self._table(kind)
        rows = self._ahead.get((kind.KIND, _name_of(equals))) if keys_only else None
        if rows is None:
            query = table.select(equals, keys_only=keys_only)
            rows = self._query(query, *map(column_value, equals.values()))
        found = self._bytes(table, rows)
        for writes in self._layers(kind):
            for key, written in writes.items():
                found.pop(key, None)
                if written is not None:
                    found[key] = written.data
        return found

    def _bytes(self, table: Table, rows: list[Any]) -> dict[bytes, bytes | None]:
        """Return the bytes of records by their keys, joined if they are in parts.

        :param rows: the keys, bytes and parts.
        """
        numbers = [row[2] for row in rows if row[2] is not None]
        joined: dict[int, list[bytes]] = {number: [] for number in numbers}
        for number, data in self._query(table.get_parts, numbers) if numbers else ():
            joined[number].append(data)
        return {
            key: data if number is None else b"".join(joined.pop(number))
            for key, data, number in rows
        }

    def _layers(self, kind: type[Record]) -> list[Mapping[bytes, Written | None]]:
        layers = (self._before, self.writes)
        return [layer.by_kind[kind.KIND] for layer in layers if kind.KIND in layer.by_kind]

    def _written(self, kind: type[Record], key: bytes) -> tuple[bool, Written | None]:
        for writes in reversed(self._layers(kind)):
            if key in writes:
                return True, writes[key]
        return False, None


def _name_of(which: str | Mapping[str, Any]) -> object:
    return which if isinstance(which, str) else frozenset(which.items())
