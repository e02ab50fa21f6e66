"""One connection on a thread of its own: runs bodies, commits, and finds out what became of it.

The driver is asynchronous and bodies are not. Each thread therefore has an event loop that runs
only while the thread waits for the database, so that a query costs no change of thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg

from fcp_core.storage.contract import ChangedError, Record, StorageError
from fcp_postgres import faults
from fcp_postgres.faults import Fault, Patience
from fcp_postgres.jobs import Job
from fcp_postgres.parts import Parts
from fcp_postgres.settings import Settings
from fcp_postgres.silence import Watch
from fcp_postgres.tables import Table, after, quoted
from fcp_postgres.transaction import ApartError, BufferedTransaction, Writes, Written

T = TypeVar("T")

#: What a body has read still holds when it commits. Tables are not read row by row where an index
#: does, since the server would take every change of them for a conflict. A transaction whose client
#: is gone ends by itself. An operator who turned synchronous_commit off elsewhere means other
#: programs: what is answered here is on disk.
_BEGIN = (
    "BEGIN ISOLATION LEVEL SERIALIZABLE; SET LOCAL enable_seqscan = off;"
    " SET LOCAL idle_in_transaction_session_timeout = {};"
    " SELECT set_config('synchronous_commit', 'on', true)"
    " WHERE current_setting('synchronous_commit') = 'off';"
)
#: Conflicts after which the transactions of a batch are run one by one.
_SPLIT_AFTER = 2
#: Conflicts after which others have to wait until this one has been committed.
_LOCK_AFTER = 5
#: So many records of one table are written in one statement with all else.
_FEW = 4
#: What a slow network carries in a second.
_BYTES_PER_SECOND = 1 << 20


class Unprepared(BaseException):  # A body must not take it for its own.
    """A kind has no table yet, or lacks the column of an index."""

    def __init__(self, kind: type[Record]) -> None:
        super().__init__(kind.KIND)
        self.kind = kind


@dataclass
class _Commit:
    """A transaction whose outcome is open.

    :param xact: its number at the server, which another one may have after a crash.
    :param process: the server's process that had it.
    :param number: which of the session's commits it is.
    """

    xact: str
    process: int
    number: int


@dataclass
class _Attempt:
    """What the attempts at a batch have come to."""

    patience: Patience
    conflicts: int = 0
    losses: int = 0


class Session:
    """A connection, used by one thread.

    :param tables: the tables by kind and indexes; all sessions of a storage share it.
    :param prepare: makes the table of a kind.
    """

    def __init__(
        self,
        settings: Settings,
        tables: dict[tuple[str, tuple[str, ...]], Table],
        prepare: Callable[[asyncpg.Connection[Any], type[Record]], Coroutine[Any, Any, Table]],
    ) -> None:
        self._settings = settings
        self._tables = tables
        self._prepare = prepare
        self._loop = asyncio.new_event_loop()
        self._watch = Watch(settings, self._loop)
        self._wait = self._watch.wait
        self._connection: asyncpg.Connection[Any] | None = None
        self._fault: Fault | None = None
        self._rng = random.Random()
        #: Names this session in the table of the last commits.
        self._name = secrets.token_hex(16)
        self._commits = 0
        self._last = f"{quoted(settings.schema)}.commits"
        self._parts = Parts(settings.schema)

    @property
    def untidy(self) -> bool:
        """Whether there is something to tidy up."""
        return self._parts.untidy

    def tidy(self) -> None:
        """Make the room of what is gone free, while other sessions go on."""
        try:
            self._wait(self._parts.tidy(self._use(), self._settings.timeout))
        except (*faults.LOST, asyncpg.PostgresError):
            self._drop()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._loop.run_until_complete(self._connection.close(timeout=5))
        self._drop()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def run(self, jobs: Sequence[Job]) -> None:
        """Run transactions together and commit; each job then has its result or its error."""
        if jobs:
            self._run(jobs, Patience(self._settings.patience))

    def _run(self, jobs: Sequence[Job], patience: Patience) -> None:
        attempt = _Attempt(patience)
        while True:
            try:
                try:
                    self._try(jobs, locked=attempt.conflicts >= _LOCK_AFTER)
                    patience.renew()
                    return
                except BaseException:
                    self._roll_back()
                    raise
            except (ApartError, ChangedError) as changed:
                if len(jobs) > 1:
                    self._run_apart(jobs, patience)
                else:
                    jobs[0].error = changed
                return
            except Unprepared as unprepared:
                error = self._try_prepare(unprepared.kind)
            except Fault as fault:
                error = fault.error
            except faults.LOST as lost:
                error = lost
            except asyncpg.PostgresError as refused:
                error = refused
            if error is not None and not self._go_on(jobs, attempt, error):
                return

    def _go_on(self, jobs: Sequence[Job], attempt: _Attempt, error: Exception) -> bool:
        """Return whether to try again after an error; if not, the jobs have theirs."""
        if isinstance(error, StorageError):
            for job in jobs:
                job.error = error
            return False
        if faults.is_gone(error):
            self._drop()
            over = attempt.patience.is_over()
            # The first loss may be that of a connection that had long been dead.
            if not over or not attempt.losses:
                attempt.losses += 1
                self._pause(attempt.losses)
                return True
        elif faults.is_conflict(error):
            attempt.conflicts += 1
            if len(jobs) > 1 and attempt.conflicts > _SPLIT_AFTER:
                self._run_apart(jobs, attempt.patience)
                return False
            if not attempt.patience.is_over():
                self._pause(attempt.conflicts)
                return True
        elif len(jobs) > 1:
            # Nothing was written; one that cannot be must not fail the others.
            self._run_apart(jobs, attempt.patience)
            return False
        for job in jobs:
            job.error = self._settings.place.storage_error(error)
        return False

    def _run_apart(self, jobs: Sequence[Job], patience: Patience) -> None:
        # They share their patience: if the database goes, not each of them has to wait for it.
        for job in jobs:
            self._run([job], patience)

    def _try(self, jobs: Sequence[Job], *, locked: bool) -> None:
        self._wait(self._connected())
        self._fault = None
        begin = _BEGIN.format(max(1, round(1000 * self._settings.idle)))
        self._execute(begin + (self._locks() if locked else ""))
        writes = Writes()
        for job in jobs:
            transaction = BufferedTransaction(self._query, self._table, writes)
            try:
                job.result, job.error = job.body(transaction), None
            except (Fault, Unprepared, ApartError):
                raise
            except BaseException as error:
                job.error = error
            else:
                writes.update(transaction.writes)
            if self._fault is not None:  # A body that catches everything has hidden it.
                raise self._fault
        if writes.by_kind:
            self._commit(self._write(writes))
        else:
            self._execute("COMMIT")

    def _write(self, writes: Writes) -> _Commit:
        """Write everything; what is little goes in one statement, which takes one way and back."""
        parts: list[str] = []
        arguments: list[Any] = []
        # What is written comes before what has to be there, whose index is read to delete it. Two
        # that read a page before either writes to it cannot both be committed.
        done: list[str] = []
        there: list[str] = []
        for kind, records in sorted(writes.by_kind.items()):
            rows: dict[tuple[Table, bool], list[Written]] = {}
            gone: dict[bool, list[bytes]] = {}
            table = self._any_table(kind)
            # In order of their keys, so that two transactions wait for each other in one direction.
            for key, written in sorted(records.items()):
                granted = (kind, key) in writes.granted
                if written is None:
                    gone.setdefault(granted, []).append(key)
                else:
                    rows.setdefault((written.table, granted), []).append(written)
            for granted, keys in gone.items():
                if granted:
                    there.append(f"(SELECT count(*) FROM w{len(parts)}) = {len(keys)}")
                arguments.append(keys)
                parts.append(f"{after(table.delete, len(arguments) - 1)} RETURNING key")
            for (table, new), values in rows.items():
                size = sum(written.size for written in values)
                patience = self._settings.timeout + size / _BYTES_PER_SECOND
                ready = self._wait(self._parts.write(self._use(), table, values, patience))
                if len(values) > _FEW:
                    query = table.upsert(new=new)
                    self._wait(self._use().executemany(query, ready, timeout=patience))
                    continue
                done.append(f"(SELECT count(*) FROM w{len(parts)}) = {len(ready)}")
                query = table.upsert(len(arguments), len(ready), new=new)
                parts.append(f"{query} RETURNING key")
                arguments += (value for row in ready for value in row)
        self._commits += 1
        first = "".join(f"w{number} AS ({part}), " for number, part in enumerate(parts))
        at = len(arguments)
        row = self._query(
            f"{'WITH ' if first else ''}{first.rstrip(', ')} "
            f"INSERT INTO {self._last} VALUES (${at + 1}, ${at + 2}, now())"
            " ON CONFLICT (session) DO UPDATE SET number = excluded.number, at = excluded.at"
            " RETURNING pg_current_xact_id()::text, pg_backend_pid(), "
            f"{' AND '.join(done + there if there else ['true'])}",
            *arguments,
            self._name,
            self._commits,
        )[0]
        if not row[2]:
            raise ChangedError("record", "")
        return _Commit(row[0], row[1], self._commits)

    def _commit(self, commit: _Commit) -> None:
        """Commit, and if the answer is lost find out whether it happened.

        :raises Exception: if it did not happen.
        """
        try:
            self._execute("COMMIT")
        except (*faults.LOST, asyncpg.PostgresError) as error:
            if faults.is_final(error):
                raise
            self._drop()
            if not self._was_committed(commit, error):
                raise

    def _was_committed(self, commit: _Commit, error: Exception) -> bool:
        attempt = _Attempt(Patience(self._settings.patience))
        while True:
            try:
                status = self._wait(self._status(commit))
                if status in ("committed", "aborted"):
                    return status == "committed"
            except (*faults.LOST, asyncpg.PostgresError) as again:
                self._drop()
                error = again
            if attempt.patience.is_over():
                reason = self._settings.place.explain(error)
                raise Fault(StorageError(f"{reason}; whether the write was kept is not known"))
            attempt.losses += 1
            self._pause(attempt.losses)

    async def _status(self, commit: _Commit) -> str:
        connection = await self._connected()
        # If the server has not noticed that its client is gone, it would wait for more.
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid = $1 AND backend_xid::text = ($2::numeric % 4294967296)::text"
            " AND state LIKE 'idle in transaction%'",
            commit.process,
            int(commit.xact),
        )
        try:
            status = await connection.fetchval("SELECT pg_xact_status($1::text::xid8)", commit.xact)
        except asyncpg.InvalidParameterValueError:
            # The number is still to come here: at a standby that had not got it, or after a crash.
            return "aborted"
        if status == "committed":
            last = await connection.fetchval(
                f"SELECT number FROM {self._last} WHERE session = $1", self._name
            )
            return "committed" if last == commit.number else "aborted"
        return str(status)

    # The connection.

    def _table(self, kind: type[Record]) -> Table:
        table = self._tables.get((kind.KIND, kind.INDEXES))
        if table is None:
            raise Unprepared(kind)
        return table

    def _any_table(self, kind: str) -> Table:
        return next(table for (name, _), table in self._tables.items() if name == kind)

    def _locks(self) -> str:
        paths = ", ".join(sorted({table.path for table in self._tables.values()}))
        return f"LOCK TABLE {paths} IN SHARE ROW EXCLUSIVE MODE"

    def _try_prepare(self, kind: type[Record]) -> Exception | None:
        async def prepare() -> Table:
            return await self._prepare(await self._connected(), kind)

        try:
            self._tables[kind.KIND, kind.INDEXES] = self._wait(prepare())
        except (*faults.LOST, asyncpg.PostgresError) as error:
            return error
        return None

    def _query(self, query: str, *arguments: Any) -> list[Any]:
        try:
            patience = self._settings.timeout
            return self._wait(self._use().fetch(query, *arguments, timeout=patience))
        except (*faults.LOST, asyncpg.PostgresError) as error:
            self._fault = Fault(error)
            raise self._fault from None

    def _execute(self, query: str) -> None:
        self._wait(self._use().execute(query, timeout=self._settings.timeout))

    def _use(self) -> asyncpg.Connection[Any]:
        if self._connection is None or self._connection.is_closed():
            raise ConnectionError("the connection was lost")
        return self._connection

    async def _connected(self) -> asyncpg.Connection[Any]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._watch.connect()
            self._parts = Parts(self._settings.schema)
        return self._connection

    def _roll_back(self) -> None:
        try:
            if self._use().is_in_transaction():
                self._execute("ROLLBACK")
        except (*faults.LOST, asyncpg.PostgresError):
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
            self._loop.run_until_complete(asyncio.sleep(0))

    def _pause(self, times: int) -> None:
        time.sleep(self._rng.random() * min(0.5, 0.005 * 2 ** min(times, 10)))
