"""The ``postgres`` storage: connections, each on a thread, and many transactions to a commit.

Transactions that wait are run together by the next connection that is free, and answered after the
commit that they share. Members on several hosts may use one database: a transaction of the database
is serializable, and is run again if another one has come between.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import asyncpg

from fcp_core.errors import UsageError
from fcp_core.storage.contract import Record, Storage, T, Transaction
from fcp_core.storage.upkeep import Upkeep
from fcp_postgres import faults
from fcp_postgres.jobs import Job, Jobs
from fcp_postgres.kinds import prepare_kind
from fcp_postgres.migrations import check_version, migrate
from fcp_postgres.session import Session
from fcp_postgres.settings import Settings
from fcp_postgres.tables import Table, quoted

logger = logging.getLogger("fcp_postgres")

#: The oldest server with all that is used here and still maintained.
OLDEST_SERVER = 14
#: How many seconds the end waits for what is under way.
STOPPING = 15.0


class PostgresStorage(Storage):
    """Keeps records in a PostgreSQL database.

    :param url: ``postgresql://user@host:port/database``, as the driver takes it.
    :param schema: the schema of the tables.
    :param migrate: bring the tables up to date at the start; else only check them.
    :param connections: how many there are at most.
    :param patience: how long a database that is gone is waited for, in seconds.
    :param timeout: how long one answer may take, in seconds.
    :param statement_cache: how many prepared statements a connection keeps.
    :raises UsageError: if *url* is no URL of a database.
    """

    durable = True
    shared = True

    def __init__(
        self,
        url: str,
        schema: str = "fcp",
        migrate: bool = True,
        connections: int = 4,
        patience: float = 10.0,
        timeout: float = 60.0,
        statement_cache: int = 100,
    ) -> None:
        self._settings = Settings(
            url, schema, faults.Place(url), patience, timeout, statement_cache
        )
        self._migrate = migrate
        self._connections = connections
        self._jobs = Jobs()
        self._tables: dict[tuple[str, tuple[str, ...]], Table] = {}
        self._threads: list[threading.Thread] = []

    async def start(self) -> None:
        """Connect, bring the tables up to date and start the threads.

        :raises UsageError: if it cannot; the message says what to mend.
        """
        place = self._settings.place
        try:
            connection = await self._first_connection()
            try:
                await self._prepare(connection)
            finally:
                await connection.close(timeout=5)
        except (*faults.LOST, asyncpg.PostgresError, ValueError) as error:
            raise UsageError(f"{place.explain(error)}.") from None
        self._jobs = Jobs()
        for number in range(self._connections):
            thread = threading.Thread(target=self._run, name=f"fcp-postgres-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    async def stop(self) -> None:
        """Finish what waits, and close the connections; a database that is gone is left."""
        threads, self._threads = self._threads, []
        self._jobs.close()
        end = time.monotonic() + STOPPING
        for thread in threads:
            await asyncio.to_thread(thread.join, max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            logger.error("%s does not answer; it is not waited for", self._settings.place.name)

    def upkeep(self) -> Upkeep:
        """Return what looks after the tables."""
        from fcp_postgres.upkeep import PostgresUpkeep

        return PostgresUpkeep(self._settings)

    async def transact(self, body: Callable[[Transaction], T]) -> T:
        """Run *body* on one of the threads; returns when its writes are on the server's disk.

        A database that is gone is waited for. If the connection is lost while a transaction is
        committed, the next one is asked what became of it.

        :raises StorageError: if the database cannot be used for longer than ``patience``; the
            message says so if the transaction may have been committed.
        :raises StatusError: RESOURCE_EXHAUSTED if a record is too large for it.
        """
        if not self._threads:
            raise RuntimeError("the storage is not started")
        job = Job(body)
        self._jobs.put(job)
        return await asyncio.wrap_future(job.future)

    def _run(self) -> None:
        session = Session(self._settings, self._tables, self._make_table)
        try:
            while batch := self._jobs.take():
                jobs = [job for job in batch if job.starts()]
                try:
                    session.run(jobs)
                except BaseException as error:  # A mistake of ours: nobody may wait for ever.
                    for job in jobs:
                        job.error = error
                for job in jobs:
                    job.settle()
                untidy = session.untidy and self._connections > 1
                self._jobs.done(comes_back=not untidy)
                if untidy:
                    session.tidy()
        finally:
            session.close()

    async def _make_table(self, connection: asyncpg.Connection[Any], kind: type[Record]) -> Table:
        return await prepare_kind(connection, self._settings.schema, kind)

    async def _first_connection(self) -> asyncpg.Connection[Any]:
        """Connect; a server that starts, or whose host does, is waited for."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._settings.patience
        told = False
        while True:
            try:
                return await self._settings.connect()
            except (*faults.LOST, asyncpg.PostgresError) as error:
                if not faults.is_worth_waiting(error) or loop.time() >= give_up:
                    raise
                if not told:
                    logger.warning("%s; trying again", self._settings.place.explain(error))
                told = True
            await asyncio.sleep(0.2)

    async def _prepare(self, connection: asyncpg.Connection[Any]) -> None:
        version = connection.get_server_version()
        if version.major < OLDEST_SERVER:
            raise UsageError(
                f"the storage ({self._settings.place.name}) is version {version.major}; "
                f"this release needs PostgreSQL {OLDEST_SERVER} or newer."
            )
        if self._migrate:
            for number in await migrate(connection, self._settings.schema):
                logger.info("the schema %s has version %d", self._settings.schema, number)
        await check_version(connection, self._settings.schema)
        # Whose connection is long gone asks for nothing any more.
        await connection.execute(
            f"DELETE FROM {quoted(self._settings.schema)}.commits"
            " WHERE at < now() - interval '1 day'"
        )
        for name, consequence in (
            ("fsync", "a crash of its host may lose and damage what was written"),
            ("full_page_writes", "a crash of its host may damage what was written"),
        ):
            if await connection.fetchval(f"SHOW {name}") == "off":
                logger.warning("%s = off in %s: %s", name, self._settings.place.name, consequence)
