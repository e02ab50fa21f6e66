"""How the database is reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import asyncpg

from fcp_postgres.faults import Place

#: The longest that the database waits for the next statement of a transaction, in seconds.
_IDLE = 5.0


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

    @property
    def idle(self) -> float:
        """How long the database waits for us in the middle of a transaction, in seconds.

        Whoever sleeps then, or is cut off, has locks, and all who want the same rows wait too.
        """
        return min(self.timeout, _IDLE)

    async def connect(self, timeout: float | None = None) -> asyncpg.Connection[Any]:
        """Return a new connection.

        :param timeout: how long an answer may take for which nothing else is said, in seconds.
        """
        return await asyncpg.connect(
            self.url,
            timeout=min(self.timeout, 10.0),
            command_timeout=timeout,
            statement_cache_size=self.statement_cache,
            server_settings={"application_name": "fcp-server"},
        )
