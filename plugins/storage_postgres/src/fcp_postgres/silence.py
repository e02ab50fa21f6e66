"""Tells a database that takes long from one that will not answer any more.

When a host vanishes, or a name comes to lead to another one, nobody says so on the connections that
are open: whoever waits on one waits as long as for the slowest statement. So whoever has waited for
a while asks by a new connection what has become of the old one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, TypeVar

import asyncpg

from fcp_postgres import faults
from fcp_postgres.settings import CONNECTING, Settings

T = TypeVar("T")

#: How long an answer is waited for before it is asked whether it is to come, in seconds; and how
#: long the server may have had nothing to do for us by then, since an answer may be on its way.
AFTER = 3.0

#: Another start is another server, or one that has forgotten us. One process of it is ours: if that
#: is gone or idle, what was asked or answered has got lost.
_GOES_ON = (
    "SELECT pg_postmaster_start_time() = $1 AND ($2 = 0 OR EXISTS (SELECT FROM pg_stat_activity"
    " WHERE pid = $2 AND NOT (coalesce(state, '') LIKE 'idle%'"
    " AND state_change < clock_timestamp() - make_interval(secs => $3))))"
)


class Watch:
    """Runs what waits for one connection, and ends that if nothing more will come of it.

    :param loop: which runs only while something is waited for.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._loop = loop
        self._connection: asyncpg.Connection[Any] | None = None
        self._since: datetime | None = None
        self._process = 0
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    async def connect(self) -> asyncpg.Connection[Any]:
        """Return a new connection; what is waited for from now on uses it."""
        connection = await self._settings.connect(self._settings.timeout)
        try:
            query = "SELECT pg_postmaster_start_time(), pg_backend_pid()"
            self._since, process = await connection.fetchrow(query)
        except BaseException:
            connection.terminate()
            raise
        # PgBouncer has another process work for us each time, and says that we had one of its own.
        self._process = process if process == connection.get_server_pid() else 0
        self._connection = connection
        return connection

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for something that uses the connection.

        :raises TimeoutError: if the connection was ended meanwhile.
        """
        self._ended = False
        late = self._loop.call_later(AFTER, self._begin)
        try:
            return self._loop.run_until_complete(work)
        except asyncpg.ConnectionDoesNotExistError:
            if self._ended:
                raise asyncio.TimeoutError from None
            raise
        finally:
            late.cancel()
            if self._task is not None:
                self._task.cancel()
                self._loop.run_until_complete(asyncio.wait([self._task]))
                self._task = None

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._look())

    async def _look(self) -> None:
        while True:
            connection = self._connection
            if connection and not (connection.is_closed() or await self._goes_on()):
                self._ended = True
                connection.terminate()
            await asyncio.sleep(AFTER)

    async def _goes_on(self) -> bool:
        try:
            other = await self._settings.connect(CONNECTING)
            try:
                return bool(await other.fetchval(_GOES_ON, self._since, self._process, AFTER))
            finally:
                await other.close(timeout=CONNECTING)
        except faults.LOST:
            return False
        except asyncpg.PostgresError:
            return True  # It is there, and has no room for one more, or starts.
