"""How the database is reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import asyncpg

from fcp_postgres.faults import Place


@dataclass(frozen=True)
class Settings:
    """How the database is reached.

    :param patience: how long to wait for a database that is gone, in seconds.
    :param timeout: how long one answer may take, in seconds.
    """

    url: str = field(repr=False)
    schema: str
    place: Place
    patience: float
    timeout: float
    statement_cache: int

    async def connect(self) -> asyncpg.Connection[Any]:
        """Return a new connection."""
        return await asyncpg.connect(
            self.url,
            timeout=min(self.timeout, 10.0),
            statement_cache_size=self.statement_cache,
            server_settings={"application_name": "fcp-server"},
        )
