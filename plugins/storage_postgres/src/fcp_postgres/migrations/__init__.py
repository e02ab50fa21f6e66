"""The migrations: numbered SQL files, each run once, in a transaction, while nobody else runs one.

A file begins with ``-- works with: N``: the release whose last migration is N can go on with the
tables as this file leaves them. So two releases may run side by side while members are restarted
one by one: first a release that adds, and only a later one that takes away.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import asyncpg

from fcp_core.errors import UsageError
from fcp_postgres.tables import quoted


@dataclass(frozen=True)
class Migration:
    """A change of the tables.

    :param version: its number; the first one is 1.
    :param works_with: the oldest release, by its last migration, that can work with its outcome.
    """

    version: int
    works_with: int
    sql: str


def read_migrations() -> tuple[Migration, ...]:
    """Return the migrations of this release, in order."""
    found = []
    for file in resources.files(__package__).iterdir():
        if file.name.endswith(".sql"):
            sql = file.read_text(encoding="utf-8")
            head = re.match(r"-- works with: (\d+)\n", sql)
            assert head is not None, f"{file.name} does not say what it works with"
            found.append(Migration(int(file.name[:4]), int(head[1]), sql))
    return tuple(sorted(found, key=lambda migration: migration.version))


#: Those of this release.
MIGRATIONS = read_migrations()


async def version_of(connection: asyncpg.Connection[Any], schema: str) -> tuple[int, int]:
    """Return the version of a schema, 0 if it has no tables, and the release it works with."""
    table = f"{quoted(schema)}.schema_version"
    if not await connection.fetchval("SELECT to_regclass($1)", table):
        return 0, 0
    row = await connection.fetchrow(
        f"SELECT version, works_with FROM {table} ORDER BY version DESC LIMIT 1"
    )
    return (0, 0) if row is None else (row[0], row[1])


async def migrate(
    connection: asyncpg.Connection[Any],
    schema: str,
    migrations: tuple[Migration, ...] = MIGRATIONS,
) -> list[int]:
    """Bring a schema up to date, and make it if there is none; return what was run."""
    done = []
    async with connection.transaction():
        # One that lasts as long as the transaction, since PgBouncer may give every transaction
        # another connection.
        await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_of(schema))
        version, _ = await version_of(connection, schema)
        if version == 0:
            # CREATE ... IF NOT EXISTS asks for the right even if it does exist.
            if not await connection.fetchval("SELECT to_regnamespace($1)", quoted(schema)):
                await connection.execute(f"CREATE SCHEMA {quoted(schema)}")
            await connection.execute(
                f"CREATE TABLE {quoted(schema)}.schema_version (version int PRIMARY KEY,"
                " works_with int NOT NULL, applied timestamptz NOT NULL DEFAULT now())"
            )
        await connection.execute(f"SET LOCAL search_path = {quoted(schema)}")
        for migration in migrations:
            if migration.version > version:
                await connection.execute(migration.sql)
                await connection.execute(
                    f"INSERT INTO {quoted(schema)}.schema_version VALUES ($1, $2)",
                    migration.version,
                    migration.works_with,
                )
                done.append(migration.version)
    return done


async def check_version(
    connection: asyncpg.Connection[Any],
    schema: str,
    migrations: tuple[Migration, ...] = MIGRATIONS,
) -> None:
    """Check that this release works with the tables as they are.

    :raises UsageError: if it does not; the message says which of them is older.
    """
    version, works_with = await version_of(connection, schema)
    ours = migrations[-1].version
    if version < ours:
        tables = f"has tables of version {version}" if version else "has no tables"
        raise UsageError(
            f"the schema {schema!r} of the storage postgres {tables}, and this release needs "
            f"{ours}: run 'fcp db migrate', or set migrate = yes in [fcp:storage.postgres]."
        )
    if works_with > ours:
        raise UsageError(
            f"the schema {schema!r} of the storage postgres was made by a newer release: its "
            f"tables are of version {version}, which works with releases of version {works_with} "
            f"and newer; this one is {ours}. Upgrade fcp-server-postgres."
        )


def lock_of(schema: str) -> int:
    """Return the number of the advisory lock that changes of a schema's tables take."""
    return int.from_bytes(b"fcp\0" + zlib.crc32(schema.encode()).to_bytes(4, "big"), "big")
