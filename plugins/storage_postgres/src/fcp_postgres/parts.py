"""Writes the bytes of large records, which are in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from fcp_postgres.tables import LARGE, Table, parts_of


async def in_parts(
    connection: asyncpg.Connection[Any],
    table: Table,
    rows: Sequence[tuple[bytes, ...]],
    patience: float,
) -> list[tuple[Any, ...]]:
    """Write the bytes of the large ones among records; return what is to be written of all.

    :param rows: of one table.
    :param patience: how long an answer may take, in seconds.
    """
    numbers: list[int | None] = [None] * len(rows)
    large = [place for place, row in enumerate(rows) if len(row[1]) > LARGE]
    if large:
        query = "SELECT nextval($1::text::regclass) FROM generate_series(1, $2)"
        found = await connection.fetch(query, table.part_ids, len(large), timeout=patience)
        parts: list[tuple[int, int, memoryview]] = []
        for place, (number,) in zip(large, found, strict=True):
            numbers[place] = number
            parts += parts_of(number, rows[place][1])
        await connection.copy_records_to_table(
            "parts",
            schema_name=table.schema,
            columns=("id", "n", "data"),
            records=parts,
            timeout=patience,
        )
    return [
        (key, data if number is None else b"", number, *rest)
        for number, (key, data, *rest) in zip(numbers, rows, strict=True)
    ]
