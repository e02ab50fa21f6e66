"""A connection to a Dask cluster, on an event loop and a thread of its own.

Theory of operation. A job is ``(name of a function, bytes)``. It stays in this process until its
result is here, so that nothing of the cluster needs to last: a worker that dies has its jobs done
again by the scheduler; if it held a job's arguments, or if the scheduler itself went away, the job
is submitted again from here. What cannot be done there within the patience is done in this process.
Nothing waits on the server's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import dask
from distributed import Client, KilledWorker, LocalCluster, Security
from distributed.client import FutureCancelledError

from fcp_core.aggregation.engine import NotInstalledError, call_by_name
from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_dask.versions import distributions_of, mismatches

logger = logging.getLogger("fcp.services.dask")

#: Arguments up to this size go with the job through the scheduler; larger ones to a worker first.
_EMBEDDED = 1 << 20
#: How many workers may die with a job before it is given up, as Dask's scheduler has it.
_ATTEMPTS = 4
#: Seconds between two looks at a cluster that computes: has it any workers left?
_LOOK = 1.0
#: Seconds until another attempt to reach a scheduler.
_PAUSE = 0.2


class _UnableError(Exception):
    """The cluster has no worker, none that can do it, or no scheduler; the message says which."""


class _LostError(Exception):
    """What was submitted is gone. *blame* says whether the job may be the reason."""

    def __init__(self, blame: bool) -> None:
        super().__init__()
        self.blame = blame


@dataclass(frozen=True)
class Settings:
    """Which cluster, and how long it is waited for.

    :param address: of the scheduler; None: a cluster of this machine.
    :param workers: processes of a cluster of this machine.
    :param tls: arguments of Dask's ``Security``; empty: as Dask's own configuration says.
    :param patience: in seconds.
    """

    address: str | None
    workers: int
    tls: Mapping[str, str]
    patience: float

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Settings:
        """Read the options that the plugin declares.

        :raises UsageError: if they contradict each other.
        """
        address = options["address"] or dask.config.get("scheduler-address", None)
        names = ("tls_ca_file", "tls_client_cert", "tls_client_key")
        tls = {name: os.fspath(options[name]) for name in names if options[name] is not None}
        if tls and not (address or "").startswith("tls://"):
            raise UsageError(
                f"[fcp:engine.dask] {', '.join(tls)}: the address must begin with tls:// then, not "
                f"be {address or 'unset'}."
            )
        workers = options["workers"]
        if workers < 0:
            workers = os.cpu_count() or 1
        if not workers and address is None:
            raise UsageError("[fcp:engine.dask] workers: a cluster of this machine needs one.")
        return cls(address, workers, tls, options["patience"])


class Cluster:
    """Runs jobs on a cluster.

    :param here: runs a job in this process.
    """

    def __init__(self, settings: Settings, here: Callable[[str, bytes], Future[bytes]]) -> None:
        self._settings = settings
        self._here = here
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # Only the loop looks at these.
        self._tasks: set[asyncio.Task[bytes]] = set()
        self._client: Client | None = None
        self._local: LocalCluster | None = None
        self._lock = asyncio.Lock()
        self._stopping = False

    def start(self, needed: Iterable[object]) -> Awaitable[None]:
        """Start the thread, and connect; await what is returned.

        :param needed: functions whose distributions the workers must have.
        :raises UsageError: if no scheduler answers, or a worker has other versions.
        """
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_run_loop, args=(loop,), name="fcp-dask", daemon=True)
        thread.start()
        self._loop, self._thread = loop, thread
        return self._started(list(needed))

    def stop(self) -> Awaitable[None] | None:
        """Abort what is under way, and disconnect; await what is returned."""
        loop, self._loop = self._loop, None
        return None if loop is None else self._stopped(loop)

    def run(self, function: str, arguments: bytes) -> Future[bytes]:
        """Run a job; the future fails with ABORTED if the cluster is stopped before it is done."""
        loop = self._loop
        if loop is None:
            future: Future[bytes] = Future()
            future.set_exception(_aborted())
            return future
        return asyncio.run_coroutine_threadsafe(self._guarded(function, arguments), loop)

    # Beginning and end.

    async def _started(self, needed: list[object]) -> None:
        assert self._loop is not None  # it has just been made
        try:
            await self._on_loop(self._loop, self._begin(needed))
        except BaseException:
            stopped = self.stop()
            if stopped is not None:
                await stopped
            raise

    async def _stopped(self, loop: asyncio.AbstractEventLoop) -> None:
        thread = self._thread
        assert thread is not None
        await self._on_loop(loop, self._end())
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.get_running_loop().run_in_executor(None, thread.join)

    @staticmethod
    async def _on_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

    async def _begin(self, needed: list[object]) -> None:
        settings = self._settings
        logger.info("heavy work goes to %s", settings.address or "a Dask cluster of this machine")
        if settings.address is None:
            # Encrypted and with keys of its own: workers run what anybody may send them.
            self._local = await LocalCluster(
                n_workers=settings.workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                protocol="tls://",
                security=True,
                asynchronous=True,
            )
        try:
            client = await self._connected()
            same = distributions_of(needed)
            found = await client.get_versions(packages=same)
        except (_UnableError, OSError, ImportError) as error:
            raise UsageError(
                f"[fcp:engine.dask] address: {error}. Start one with 'dask scheduler', and its "
                "workers with 'dask worker ADDRESS'."
            ) from None
        workers = {name: about["packages"] for name, about in found["workers"].items()}
        problems = mismatches(found["client"]["packages"], workers, same)
        if problems:
            raise UsageError(
                "[fcp:engine.dask] the cluster's workers need the same packages as the server. "
                + "; ".join(problems)
                + "."
            )
        if workers:
            logger.info("the Dask cluster has %d workers", len(workers))
        else:
            logger.warning("the Dask cluster has no workers yet; heavy work waits for them")

    async def _end(self) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._client is not None:
            with contextlib.suppress(OSError):
                await self._client.close()
        if self._local is not None:
            await self._local.close()

    async def _connected(self) -> Client:
        """Return a client whose scheduler answers.

        :raises _UnableError: if none does within the patience.
        """
        async with self._lock:
            if self._client is not None and self._client.status == "running":
                return self._client
            if self._client is not None:
                # Its own attempts to come back end for good after some time.
                client, self._client = self._client, None
                await client.close()
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self._settings.patience
            while True:
                try:
                    self._client = await self._new_client(max(0.1, deadline - loop.time()))
                    return self._client
                except (OSError, asyncio.TimeoutError) as error:
                    if loop.time() + _PAUSE >= deadline:
                        raise self._no_scheduler(error) from None
                except Exception as error:
                    # Of the encryption or the versions, which time does not mend.
                    raise self._no_scheduler(error) from None
                await asyncio.sleep(_PAUSE)

    async def _new_client(self, timeout: float) -> Client:
        settings = self._settings
        client = Client(
            self._local if settings.address is None else settings.address,
            security=Security(require_encryption=True, **settings.tls) if settings.tls else None,
            timeout=timeout,
            asynchronous=True,
            set_as_default=False,
            name="fcp-server",
        )
        try:
            return await client
        except BaseException:
            await client.close()
            raise

    def _no_scheduler(self, error: Exception) -> _UnableError:
        reason = f"{type(error).__name__}: {error}"
        return _UnableError(
            f"no Dask scheduler answers at {self._settings.address} ({reason:.200})"
        )

    # Jobs.

    async def _guarded(self, function: str, arguments: bytes) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._stopping:
                raise _aborted()
            return await self._job(function, arguments)
        except asyncio.CancelledError:
            if self._stopping:
                raise _aborted() from None
            raise
        finally:
            self._tasks.discard(task)

    async def _job(self, function: str, arguments: bytes) -> bytes:
        """Have a job done, as often as it takes."""
        deaths = 0
        while True:
            try:
                client = await self._connected()
                return await self._attempt(client, function, arguments)
            except _UnableError as error:
                logger.warning("%s; the job %s runs in the server's own process", error, function)
                return await asyncio.wrap_future(self._here(function, arguments))
            except _LostError as lost:
                deaths += lost.blame
                if deaths == _ATTEMPTS:
                    raise _killed(function, "") from None
                logger.warning("the Dask cluster lost the job %s; it is submitted again", function)

    async def _attempt(self, client: Client, function: str, arguments: bytes) -> bytes:
        """Have a job done once, as long as the scheduler answers and has workers.

        :raises _LostError: if it must be submitted again.
        :raises _UnableError: if there is no worker, or no answer, for as long as the patience
            lasts. A scheduler that sleeps keeps its connections.
        """
        loop, patience = asyncio.get_running_loop(), self._settings.patience
        work = loop.create_task(self._submitted(client, function, arguments))
        last_seen = loop.time()
        try:
            while not (await asyncio.wait({work}, timeout=_LOOK))[0]:
                if client.status != "running":
                    last_seen = loop.time()
                    continue  # it cancels what it waits for
                try:
                    looking = client.scheduler.identity(n_workers=0)
                    about = await asyncio.wait_for(looking, patience)
                except asyncio.TimeoutError:
                    raise _UnableError(
                        f"the Dask scheduler has not answered for {patience:g} s"
                    ) from None
                except OSError as broken:
                    raise _broken(broken) from None
                if about["n_workers"]:
                    last_seen = loop.time()
                elif loop.time() - last_seen > patience:
                    raise _no_workers(patience)
        finally:
            work.cancel()
            await asyncio.wait({work})
        return work.result()

    async def _submitted(self, client: Client, function: str, arguments: bytes) -> bytes:
        """Submit a job, and return its result.

        :raises _LostError: if it must be submitted again.
        :raises _UnableError: if there is no worker, or it lacks what the job needs.
        """
        patience = self._settings.patience
        submitted, error = None, None
        try:
            try:
                await client.wait_for_workers(1, timeout=patience)
            except asyncio.TimeoutError:
                raise _no_workers(patience) from None
            given: Any = arguments
            if len(arguments) > _EMBEDDED:
                (given,) = await client.scatter([arguments], hash=False)
            submitted = client.submit(
                call_by_name, function, given, key=f"fcp-{uuid.uuid4().hex}", pure=False
            )
            error = await submitted.exception()
            if submitted.status == "finished":
                result: bytes = await submitted
                return result
        except FutureCancelledError:
            pass  # it was finished, and then its result died with a worker
        except (OSError, asyncio.TimeoutError) as broken:
            raise _broken(broken) from None
        finally:
            if submitted is not None and not submitted.done():
                with contextlib.suppress(OSError):
                    await client.cancel([submitted], force=True)
        if error is None:
            # Its arguments died with a worker, unless the scheduler went away.
            raise _LostError(blame=client.status == "running")
        if isinstance(error, KilledWorker):
            raise _killed(function, error.last_worker.address)
        if isinstance(error, NotInstalledError | ImportError):
            raise _UnableError(f"a Dask worker lacks what the server has: {error}")
        raise error


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _aborted() -> StatusError:
    return StatusError(Code.ABORTED, "the server has stopped")


def _broken(error: Exception) -> _LostError:
    # Of the connection: what a job raises comes as an outcome.
    logger.debug("the connection to the Dask cluster broke", exc_info=error)
    return _LostError(blame=False)


def _no_workers(patience: float) -> _UnableError:
    return _UnableError(f"the Dask cluster has had no worker for {patience:g} s")


def _killed(function: str, worker: str) -> StatusError:
    last = f"; the last one was {worker}" if worker else ""
    return StatusError(
        Code.INTERNAL,
        f"the job {function} was given up: {_ATTEMPTS} Dask workers died with it, most likely for "
        f"want of memory{last}. Their logs say more",
    )
