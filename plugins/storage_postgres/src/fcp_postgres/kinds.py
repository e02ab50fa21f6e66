"""Makes the table of a kind of record, and fills the columns of its indexes."""

from __future__ import annotations

import contextlib
from typing import Any

import asyncpg

from fcp_core.storage.codec import CodecError, decode
from fcp_core.storage.contract import Record
from fcp_postgres.migrations import lock_of
from fcp_postgres.tables import Table, quoted, table_of


async def prepare_kind(
    connection: asyncpg.Connection[Any], schema: str, kind: type[Record]
) -> Table:
    """Return the table of a kind, after making what is missing of it."""
    kinds = f"{quoted(schema)}.kinds"
    query = f"SELECT name, indexes FROM {kinds} WHERE kind = $1"
    row = await connection.fetchrow(query, kind.KIND)
    if row is None or not set(kind.INDEXES) <= set(row[1]):
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_of(schema))
            row = await connection.fetchrow(query, kind.KIND)
            table = table_of(schema, kind, None if row is None else row[0])
            known = set() if row is None else set(row[1])
            statements = table.create() if row is None else []
            statements += table.add(sorted(set(kind.INDEXES) - known))
            for statement in statements:
                await connection.execute(statement)
            await connection.execute(
                f"INSERT INTO {kinds} VALUES ($1, $2, $3)"
                " ON CONFLICT (kind) DO UPDATE SET indexes = excluded.indexes",
                kind.KIND,
                table.name,
                sorted(known | set(kind.INDEXES)),
            )
    table = table_of(schema, kind, None if row is None else row[0])
    await _refresh(connection, table, kind)
    return table


async def _refresh(connection: asyncpg.Connection[Any], table: Table, kind: type[Record]) -> None:
    """Fill the indexes of the records that a release without them wrote."""
    if not table.fields:
        return
    last = b""
    while rows := await connection.fetch(table.stale, last):
        last = rows[-1]["key"]
        async with connection.transaction():
            for row in rows:
                # What cannot be read is found without an index, and complained about then.
                with contextlib.suppress(CodecError):
                    record = decode(kind, row["data"])
                    await connection.execute(table.refresh, *table.row(record, row["data"]))
