"""The tables: one for each kind of record, and the SQL that reads and writes it.

A table has the record's key, its bytes, and a column ``i_<field>`` for each indexed field.
``shape`` lists the fields that whoever wrote the row had an index for: another release, which may
run at the same time, can have more or fewer, and says nothing about columns it does not know.
The bytes of a large record are in parts, and ``parts`` says in which.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fcp_core.protocol.status import Code, StatusError
from fcp_core.storage.codec import index_value
from fcp_core.storage.contract import Record

#: Longer values of indexed fields are stored as a digest: a page of an index has no room for more.
_LONGEST_VALUE = 200
#: Keys have to fit into a page of an index.
LONGEST_KEY = 2000
#: PostgreSQL takes no values of a gibibyte, and no messages.
LARGEST_RECORD = 1_000_000_000
#: Larger records are stored in parts.
LARGE = 1 << 15
#: As much as has room in a page beside what PostgreSQL keeps of a row.
_PART = 8100
#: No value of MessagePack begins with it.
_DIGEST = b"\xc1"


def quoted(name: str) -> str:
    """Return an identifier for SQL."""
    return '"' + name.replace('"', '""') + '"'


def key_bytes(key: str) -> bytes:
    """Return a key as it is stored: bytes are ordered as code points are, and may be zero.

    :raises ValueError: if it is too long.
    """
    data = key.encode()
    if len(data) > LONGEST_KEY:
        raise ValueError(f"a key has {len(data)} bytes; PostgreSQL indexes {LONGEST_KEY} at most")
    return data


def column_value(value: Any) -> bytes:
    """Return the value of an indexed field as it is stored."""
    data = index_value(value)
    if len(data) <= _LONGEST_VALUE:
        return data
    return _DIGEST + hashlib.sha256(data).digest()


@dataclass(frozen=True)
class Table:
    """The table of a kind.

    :param schema: the schema that it is in.
    :param name: its name there.
    :param fields: the indexed fields, sorted.
    """

    schema: str
    name: str
    fields: tuple[str, ...]

    @property
    def path(self) -> str:
        """Its name with its schema, for SQL."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def get(self) -> str:
        """SQL: a record by its key: the key, bytes and parts."""
        return f"SELECT key, data, parts FROM {self.path} WHERE key = $1"

    @property
    def get_parts(self) -> str:
        """SQL: the parts of these numbers, in order; to join them there takes twice as long."""
        return f"SELECT id, data FROM {self.parts} WHERE id = ANY($1::bigint[]) ORDER BY id, n"

    @property
    def everything(self) -> str:
        """SQL: all records, with their indexed values."""
        columns = ["key", "shape", *(quoted(f"i_{field}") for field in self.fields)]
        return f"SELECT {', '.join(columns)}, {self._bytes} AS data FROM {self.path}"

    @property
    def parts(self) -> str:
        """The table that has the parts of large records, for SQL."""
        return f"{quoted(self.schema)}.parts"

    @property
    def part_ids(self) -> str:
        """The sequence that numbers them, for SQL."""
        return f"{quoted(self.schema)}.part_ids"

    @property
    def _bytes(self) -> str:
        """SQL: the bytes of a record, which may be in parts."""
        joined = (
            f"SELECT string_agg(p.data, ''::bytea ORDER BY p.n) FROM {self.parts} p"
            f" WHERE p.id = {self.path}.parts"
        )
        # Without its parts it cannot be read, and is named.
        return f"CASE WHEN parts IS NULL THEN data ELSE coalesce(({joined}), '') END"

    @property
    def delete(self) -> str:
        """SQL: delete the records of keys."""
        return f"DELETE FROM {self.path} WHERE key = ANY($1::bytea[])"

    def upsert(self, after: int = 0, rows: int = 1, *, new: bool = False) -> str:
        """SQL: write records; the arguments of each are the key, bytes, parts and indexed values.

        :param after: how many arguments come before them.
        :param new: fail if one of them is there.
        """
        columns = ["key", "data", "parts", *(quoted(f"i_{field}") for field in self.fields)]
        numbers = itertools.count(after + 1)
        shape = _array(self.fields)
        values = ", ".join(
            f"({', '.join(f'${next(numbers)}' for _ in columns)}, {shape})" for _ in range(rows)
        )
        changes = ", ".join(f"{name} = excluded.{name}" for name in [*columns[1:], "shape"])
        conflict = "" if new else f" ON CONFLICT (key) DO UPDATE SET {changes}"
        return f"INSERT INTO {self.path} ({', '.join(columns)}, shape) VALUES {values}{conflict}"

    def row(self, record: Record, data: bytes, size: int = 0) -> tuple[bytes, ...]:
        """Return a record's key, bytes and indexed values.

        :param size: how many bytes it has, if they are elsewhere.
        :raises StatusError: RESOURCE_EXHAUSTED if the record is too large.
        """
        size = size or len(data)
        if size > LARGEST_RECORD:
            raise StatusError(
                Code.RESOURCE_EXHAUSTED,
                f"a {self.name} of {size} bytes is too large for PostgreSQL, which takes "
                f"{LARGEST_RECORD}",
            )
        values = (column_value(getattr(record, field)) for field in self.fields)
        return (key_bytes(record.key), data, *values)

    def select(self, fields: Collection[str], *, keys_only: bool = False) -> str:
        """Return SQL: the records with these values, by key: the keys, bytes and parts.

        It also finds records whose writer had no index of a field: who asks looks at the values.

        :param keys_only: the bytes of those only.
        """
        conditions = [
            f"({quoted(f'i_{field}')} = ${number} OR {_unknown(field)})"
            for number, field in enumerate(fields, 1)
        ]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        data = "data, parts"
        if keys_only:
            unknown = " OR ".join(map(_unknown, fields)) or "false"
            data = f"CASE WHEN {unknown} THEN data END, CASE WHEN {unknown} THEN parts END"
        return f"SELECT key, {data} FROM {self.path}{where} ORDER BY key"

    def create(self) -> list[str]:
        """Return the SQL that makes it."""
        return [
            # The free room lets a row be replaced in its page, without new entries in the indexes.
            f"CREATE TABLE {self.path} (key bytea PRIMARY KEY, shape text[] NOT NULL,"
            " data bytea NOT NULL, parts bigint) WITH (fillfactor = 80,"
            " autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02)",
            # No attempt to compress floats.
            f"ALTER TABLE {self.path} ALTER COLUMN data SET STORAGE EXTERNAL",
            f"CREATE TRIGGER drop_parts AFTER UPDATE OR DELETE ON {self.path} FOR EACH ROW"
            f" WHEN (OLD.parts IS NOT NULL) EXECUTE FUNCTION {quoted(self.schema)}.drop_parts()",
        ]

    def add(self, fields: Iterable[str]) -> list[str]:
        """Return the SQL that adds columns for indexed fields."""
        statements = []
        for field in fields:
            column = quoted(f"i_{field}")
            statements += [
                f"ALTER TABLE {self.path} ADD COLUMN IF NOT EXISTS {column} bytea",
                f"CREATE INDEX ON {self.path} ({column})",
                # As good as empty: what a release without that index wrote.
                f"CREATE INDEX ON {self.path} (key) WHERE {_unknown(field)}",
            ]
        return statements

    @property
    def stale(self) -> str:
        """SQL: the next records after a key whose writer did not know all of the fields."""
        return (
            f"SELECT key, {self._bytes} AS data FROM {self.path}"
            f" WHERE NOT shape @> {_array(self.fields)}"
            " AND key > $1 ORDER BY key LIMIT 20"
        )

    @property
    def refresh(self) -> str:
        """SQL: set the indexed values of a record, if it still is what it was."""
        changes = [f"{quoted(f'i_{field}')} = ${n}" for n, field in enumerate(self.fields, 3)]
        changes.append(f"shape = {_array(self.fields)}")
        return f"UPDATE {self.path} SET {', '.join(changes)} WHERE key = $1 AND {self._bytes} = $2"


def after(query: str, arguments: int) -> str:
    """Return SQL whose arguments come after so many others."""
    return re.sub(r"\$(\d+)", lambda found: f"${int(found[1]) + arguments}", query)


def parts_of(
    number: int, pieces: Iterable[bytes | memoryview]
) -> Iterator[tuple[int, int, memoryview]]:
    """Yield the rows of the parts of a record."""
    views = (memoryview(piece) for piece in pieces)
    parts = (view[at : at + _PART] for view in views for at in range(0, len(view), _PART))
    for n, part in enumerate(parts):
        yield number, n, part


def table_of(schema: str, kind: type[Record], name: str | None = None) -> Table:
    """Return the table of a kind.

    :param name: its name, if it is known; else the one that it would get.
    """
    return Table(schema, name or table_name(kind.KIND), tuple(sorted(kind.INDEXES)))


def table_name(kind: str) -> str:
    """Return the name of the table of a kind; identifiers have 63 bytes at most."""
    if re.fullmatch(r"[a-z0-9_]{1,50}", kind):
        return f"r_{kind}"
    return f"r_{hashlib.sha256(kind.encode()).hexdigest()[:32]}"


def agrees(record: Record, equals: Mapping[str, Any]) -> bool:
    """Return whether a record has these values."""
    return all(getattr(record, field) == value for field, value in equals.items())


def _unknown(field: str) -> str:
    return f"NOT shape @> {_array([field])}"


def _array(fields: Iterable[str]) -> str:
    texts = ", ".join("'" + field.replace("'", "''") + "'" for field in fields)
    return f"ARRAY[{texts}]::text[]"
