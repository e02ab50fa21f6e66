"""How the database is reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import asyncpg

from fcp_postgres.faults import LOST, Place

#: The longest that a new connection may take, in seconds.
CONNECTING = 10.0
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
        """Return a new connection, to the first host of the URL that is what is asked for.

        The driver has one limit for all of them, which one that is silent would use up. The host
        that did it comes first the next time.

        :param timeout: how long an answer may take for which nothing else is said, in seconds.
        """
        hosts = list(self.place.hosts)
        for host in hosts:
            try:
                connection = await asyncpg.connect(
                    self.url,
                    **host,
                    timeout=min(self.timeout, CONNECTING / len(hosts)),
                    command_timeout=timeout,
                    statement_cache_size=self.statement_cache,
                    server_settings={"application_name": "fcp-server"},
                )
            except (*LOST, asyncpg.CannotConnectNowError):
                if host is hosts[-1]:
                    raise
            else:
                hosts.remove(host)
                self.place.hosts = [host, *hosts]
                return connection
        raise AssertionError
