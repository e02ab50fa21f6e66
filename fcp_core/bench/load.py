"""A run: so many virtual devices, so many of them at a time, against one server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fcp_core.bench.connections import Connections, Origin, Tally, split, too_many_files
from fcp_core.bench.devices import VirtualDevice, World
from fcp_core.bench.report import Recorder, Report
from fcp_core.errors import UsageError

#: Files that a process needs besides its connections.
_OTHER_FILES = 64


@dataclass(frozen=True)
class Load:
    """What the virtual devices do.

    :param clients: how many there are; each goes through one session.
    :param bodies: the checkpoints that they contribute, in turn, as they are sent (gzipped if
        *gzip* is set).
    :param connections: how many of them talk at a time. One that waits to poll an operation, or to
        send a request again, does not talk.
    :param keep: whether a device takes over a connection that another does not need any more, as
        behind a proxy; otherwise each has connections of its own.
    :param population: the population that they belong to.
    :param task: the name of the task that they take; None: any.
    :param gzip: whether their requests are compressed, as the published client's are.
    :param api_key: sent with each request.
    :param ca_file: PEM certificates to trust instead of the system's.
    :param retries: how often a request is sent again that is answered 503 or 429.
    :param retry_delay: what they wait before that, in seconds, as the published client does.
    :param time_limit: seconds after which the run is ended.
    :param seed: of the random waits.
    """

    clients: int
    bodies: Sequence[bytes]
    connections: int = 64
    keep: bool = False
    population: str = "bench"
    task: str | None = None
    gzip: bool = False
    api_key: str = ""
    ca_file: str | os.PathLike[str] | None = None
    retries: int = 2
    retry_delay: float = 5.0
    time_limit: float = 600.0
    seed: int = 0

    @property
    def most_connections(self) -> int:
        """How many there may be: a device that waits keeps its own."""
        return min(self.connections, self.clients) if self.keep else self.clients

    def check(self) -> None:
        """Refuse what cannot be run.

        :raises UsageError: naming the field.
        """
        if self.clients < 1 or self.connections < 1:
            raise UsageError("there must be at least one client and one connection.")
        if not self.bodies:
            raise UsageError("the clients have nothing to contribute.")
        if self.time_limit <= 0 or self.retries < 0 or self.retry_delay < 0:
            raise UsageError("the time limit must be positive, retries and delays not negative.")
        if not (self.population.isascii() and self.api_key.isascii()):
            raise UsageError("the population's name and the API key must be ASCII.")


async def drive(url: str, load: Load) -> Report:
    """Let the virtual devices go through their sessions, and return what was measured.

    :param url: the server's address.
    :raises UsageError: if it cannot be reached, or the run needs more open files than are allowed.
    """
    load.check()
    try:
        origin, _ = split(url)
    except ValueError as error:
        raise UsageError(f"the server's address: {error}.") from None
    allow_files(min(load.connections, load.clients), load.most_connections)
    await _reach(url, origin)
    recorder = Recorder(len(load.bodies))
    tally = Tally()
    tls = _tls(load, origin)
    shared = Connections(tls, tally) if load.keep else None
    world = World(url, load, recorder, random.Random(load.seed))
    devices: set[asyncio.Task[str]] = set()
    broken: list[BaseException] = []

    def ended(kind: int, task: asyncio.Task[str]) -> None:
        devices.discard(task)
        if task.cancelled():
            recorder.outcome("not finished", kind, time.perf_counter())
        elif (error := task.exception()) is not None:
            broken.append(error)
        else:
            recorder.outcome(task.result(), kind, time.perf_counter())

    async def everybody() -> None:
        for number in range(load.clients):
            await world.turns.acquire()
            if broken:
                break
            kind = number % len(load.bodies)
            device = VirtualDevice(world, shared or Connections(tls, tally), load.bodies[kind])
            task = asyncio.get_running_loop().create_task(device.run())
            devices.add(task)
            task.add_done_callback(functools.partial(ended, kind))
        while devices:
            await asyncio.wait(set(devices))

    cpu, began = time.process_time(), time.perf_counter()
    recorder.begin(began)
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(everybody(), load.time_limit)
        elapsed = time.perf_counter() - began
    finally:
        for task in list(devices):
            task.cancel()
        await asyncio.gather(*devices, return_exceptions=True)
        if shared is not None:
            shared.close()
        await asyncio.sleep(0)  # for what asyncio does about each that is closed
    if broken:
        raise broken[0]
    return recorder.report(
        clients=load.clients,
        seconds=elapsed,
        driver_cpu_seconds=time.process_time() - cpu,
        connections=tally.opened,
        bytes_received=tally.bytes_received,
    )


def allow_files(connections: int, most: int = 0) -> None:
    """Let this process, and those that it starts, open a file for each connection.

    :param connections: how many there are certainly.
    :param most: how many there may be, which is allowed as far as the system lets us.
    :raises UsageError: if the system does not allow *connections*.
    """
    try:
        import resource
    except ImportError:  # a system without such limits
        return
    needed = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(needed, most + _OTHER_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY:
        if hard < needed:
            raise too_many_files(connections)
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _reach(url: str, origin: Origin) -> None:
    try:
        _, writer = await asyncio.wait_for(
            asyncio.open_connection(origin.host, origin.port), _REACH_TIME
        )
    except (OSError, asyncio.TimeoutError) as error:
        why = getattr(error, "strerror", None) or str(error) or "it does not answer"
        raise UsageError(f"the server {url} cannot be reached: {why}.") from None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


#: How long the server may take to accept a connection, in seconds.
_REACH_TIME = 10.0


def _tls(load: Load, origin: Origin) -> ssl.SSLContext | None:
    if not origin.secure:
        return None
    try:
        return ssl.create_default_context(
            cafile=None if load.ca_file is None else os.fspath(load.ca_file)
        )
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the certificates {load.ca_file} cannot be read: {error}.") from None
