"""Writes the bytes of large records, which are in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from fcp_postgres.tables import Table, parts_of, quoted
from fcp_postgres.transaction import Written

#: So many bytes are written before the room of those that are gone is looked for.
_UNTIDY = 64 << 20
#: So many numbers of records are drawn at a time.
_NUMBERS = 32


class Parts:
    """The parts of records, as one connection writes them.

    :param schema: that they are in.
    """

    def __init__(self, schema: str) -> None:
        self._schema = schema
        #: What no other record has. They hold as long as the connection: after a crash of the
        #: server, which may have forgotten that they were drawn, another one may get them.
        self._numbers: list[int] = []
        self._written = 0

    @property
    def untidy(self) -> bool:
        """Whether so many were written that as many may be gone."""
        return self._written > _UNTIDY

    async def write(
        self,
        connection: asyncpg.Connection[Any],
        table: Table,
        records: Sequence[Written],
        patience: float,
    ) -> list[tuple[Any, ...]]:
        """Write the bytes of the large ones among records; return what is to be written of all.

        :param records: of one table.
        :param patience: how long an answer may take, in seconds.
        """
        large = sum(1 for record in records if record.pieces)
        if large > len(self._numbers):
            query = "SELECT nextval($1::text::regclass) FROM generate_series(1, $2)"
            drawn = await connection.fetch(
                query, table.part_ids, max(large, _NUMBERS), timeout=patience
            )
            self._numbers = [number for (number,) in drawn]
        numbers = [self._numbers.pop() if record.pieces else None for record in records]
        if large:
            self._written += sum(record.size for record in records)
            await connection.copy_records_to_table(
                "parts",
                schema_name=table.schema,
                columns=("id", "n", "data"),
                records=[
                    part
                    for number, record in zip(numbers, records, strict=True)
                    if number is not None
                    for part in parts_of(number, record.pieces)
                ],
                timeout=patience,
            )
        return [
            (key, data, number, *rest)
            for number, (_, (key, data, *rest), _) in zip(numbers, records, strict=True)
        ]

    async def tidy(self, connection: asyncpg.Connection[Any], patience: float) -> None:
        """Make the room of parts that are gone free, if this user may.

        The server does so once a minute, and in a minute aggregates of some megabytes leave
        gigabytes behind, which it writes to its disk.
        """
        self._written = 0
        parts = f"{quoted(self._schema)}.parts"
        await connection.execute(f"VACUUM (SKIP_LOCKED, TRUNCATE off) {parts}", timeout=patience)
