"""Looks after the tables: what there is, whether it agrees, and upgrades."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from fcp_core.errors import UsageError
from fcp_core.storage.codec import CodecError, decode
from fcp_core.storage.integrity import kinds
from fcp_core.storage.upkeep import KindSize, StorageInfo, Upkeep
from fcp_postgres import faults
from fcp_postgres.kinds import prepare_kind
from fcp_postgres.migrations import MIGRATIONS, check_version, migrate, version_of
from fcp_postgres.settings import Settings
from fcp_postgres.tables import Table, quoted

#: How many records are fetched at a time; a record may be large.
_AT_A_TIME = 20


class PostgresUpkeep(Upkeep):
    """Looks after a schema; reads it beside servers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._schema = settings.schema

    async def info(self) -> StorageInfo:
        """Return what there is."""
        async with self._connected() as connection:
            version, _ = await version_of(connection, self._schema)
            sizes = []
            for kind in await self._kinds(connection) if version else ():
                path = Table(self._schema, kind["name"], ()).path
                parts = f"(SELECT count(*) FROM {quoted(self._schema)}.parts p, {path} t"
                parts += " WHERE p.id = t.parts) * 8192"
                if version == 1:  # It had none.
                    parts = "0"
                row = await connection.fetchrow(
                    f"SELECT count(*), pg_total_relation_size($1::text::regclass) + {parts}"
                    f" FROM {path}",
                    path,
                )
                sizes.append(KindSize(kind["kind"], row[0], row[1]))
            size = await connection.fetchval(
                "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
                " WHERE relkind = 'r' AND relnamespace = to_regnamespace($1)",
                quoted(self._schema),
            )
            now = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
        place = f"{self._settings.place.name}, schema {self._schema!r}"
        return StorageInfo(place, version, MIGRATIONS[-1].version, size, now, tuple(sizes))

    async def scan(self, only: str | None = None) -> AsyncIterator[tuple[str, str, bytes]]:
        """Iterate over the records."""
        async with (
            self._connected() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await check_version(connection, self._schema)
            for kind in await self._kinds(connection):
                if only in (None, kind["kind"]):
                    table = Table(self._schema, kind["name"], ())
                    async for row in connection.cursor(table.everything, prefetch=_AT_A_TIME):
                        yield kind["kind"], row["key"].decode(errors="replace"), row["data"]

    async def check(self) -> list[str]:
        """Check that the columns of the indexes have what is in the records."""
        problems: list[str] = []
        known = kinds()
        async with (
            self._connected() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await check_version(connection, self._schema)
            for row in await self._kinds(connection):
                if row["kind"] in known:
                    kind = known[row["kind"]]
                    # Another release may not have made all of the columns yet.
                    fields = tuple(sorted(set(kind.INDEXES) & set(row["indexes"])))
                    table = Table(self._schema, row["name"], fields)
                    async for found in connection.cursor(table.everything, prefetch=_AT_A_TIME):
                        # What cannot be read is found out elsewhere.
                        with contextlib.suppress(CodecError):
                            problems += _disagreements(kind, table, found)
            problems += await self._stray_parts(connection)
        return problems

    async def _stray_parts(self, connection: asyncpg.Connection[Any]) -> list[str]:
        """Look for parts of no record, and records without all of their parts."""
        schema, problems = quoted(self._schema), []
        used = "SELECT NULL::bigint"
        for kind in await self._kinds(connection):
            path = Table(self._schema, kind["name"], ()).path
            used += f" UNION ALL SELECT parts FROM {path} WHERE parts IS NOT NULL"
            lost = await connection.fetchval(
                f"SELECT count(*) FROM {path} t WHERE parts IS NOT NULL AND NOT EXISTS"
                f" (SELECT 1 FROM {schema}.parts p WHERE p.id = t.parts)"
            )
            if lost:
                problems.append(f"{lost} records of kind {kind['kind']!r} have lost their bytes")
        strays = await connection.fetchval(
            f"SELECT count(DISTINCT p.id) FROM {schema}.parts p LEFT JOIN ({used}) u (id)"
            " ON u.id = p.id WHERE u.id IS NULL"
        )
        if strays:
            problems.append(f"the parts of {strays} records belong to no record")
        return problems

    async def migrate(self) -> int:
        """Bring the schema up to date, and make the tables of all kinds."""
        async with self._connected() as connection:
            version, _ = await version_of(connection, self._schema)
            await migrate(connection, self._schema)
            # So that the servers' user needs no right to make any.
            for kind in kinds().values():
                await prepare_kind(connection, self._schema, kind)
        return version

    async def backup(self, target: Path) -> None:
        """Say how PostgreSQL does it.

        :raises UsageError: always.
        """
        schema = shlex.quote(self._schema)
        raise UsageError(
            f"PostgreSQL copies its databases by itself, while servers go on: "
            f"pg_dump --format=custom --schema={schema} --file={shlex.quote(str(target))} "
            f"{shlex.quote(self._settings.place.database)} (with --host and --username as in url); "
            "pg_restore brings it back. For a copy that loses nothing between two dumps use "
            "pg_basebackup with an archive of the WAL."
        )

    async def _kinds(self, connection: asyncpg.Connection[Any]) -> list[Any]:
        table = f"{quoted(self._schema)}.kinds"
        rows: list[Any] = await connection.fetch(
            f"SELECT kind, name, indexes FROM {table} ORDER BY kind"
        )
        return rows

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        try:
            connection = await self._settings.connect()
            try:
                yield connection
            finally:
                await connection.close(timeout=5)
        except (*faults.LOST, asyncpg.PostgresError, ValueError) as error:
            raise UsageError(f"{self._settings.place.explain(error)}.") from None


def _disagreements(kind: Any, table: Table, row: Any) -> list[str]:
    expected = table.row(decode(kind, row["data"]), row["data"])[2:]
    return [
        f"{kind.KIND} {row['key'].decode(errors='replace')!r} is indexed by another {field}"
        for field, value in zip(table.fields, expected, strict=True)
        if field in row["shape"] and row[f"i_{field}"] != value
    ]
