"""A run: so many virtual devices, so many of them at a time, against one server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import ssl
import time
from collections.abc import Callable

from fcp_core.bench.connections import Connections, Origin, Tally, split, too_many_files
from fcp_core.bench.devices import VirtualDevice, World
from fcp_core.bench.report import Recorder, Report
from fcp_core.bench.settings import Load
from fcp_core.errors import UsageError, reason

#: Files that a process needs besides its connections.
_OTHER_FILES = 64


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
    crowd = _Crowd(world, lambda: shared or Connections(tls, tally))
    cpu, began = time.process_time(), time.perf_counter()
    recorder.begin(began)
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(crowd.run(), load.time_limit)
        elapsed = time.perf_counter() - began
    finally:
        await crowd.stop()
        if shared is not None:
            shared.close()
        await asyncio.sleep(0)  # for what asyncio does about each that is closed
    if crowd.broken:
        raise crowd.broken[0]
    return recorder.report(
        clients=load.clients,
        seconds=elapsed,
        driver_cpu_seconds=time.process_time() - cpu,
        connections=tally.opened,
        bytes_received=tally.bytes_received,
    )


class _Crowd:
    """The devices of a run; each begins when it has a turn.

    :param connections: makes those of one device.
    """

    def __init__(self, world: World, connections: Callable[[], Connections]) -> None:
        self._world = world
        self._connections = connections
        self._devices: set[asyncio.Task[str]] = set()
        #: What ended the run.
        self.broken: list[BaseException] = []

    async def run(self) -> None:
        """Let all devices go through their sessions."""
        bodies = self._world.load.bodies
        for number in range(self._world.load.clients):
            await self._world.turns.acquire()
            if self.broken:
                break
            kind = number % len(bodies)
            device = VirtualDevice(self._world, self._connections(), bodies[kind])
            task = asyncio.get_running_loop().create_task(device.run())
            self._devices.add(task)
            task.add_done_callback(functools.partial(self._ended, kind))
        while self._devices:
            await asyncio.wait(set(self._devices))

    async def stop(self) -> None:
        """End the sessions that still go on."""
        devices = list(self._devices)
        for task in devices:
            task.cancel()
        await asyncio.gather(*devices, return_exceptions=True)

    def _ended(self, kind: int, task: asyncio.Task[str]) -> None:
        self._devices.discard(task)
        recorder = self._world.recorder
        if task.cancelled():
            recorder.outcome("not finished", kind, time.perf_counter())
        elif (error := task.exception()) is not None:
            self.broken.append(error)
        else:
            recorder.outcome(task.result(), kind, time.perf_counter())


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
        why = reason(error) or "it does not answer"
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
        raise UsageError(
            f"the certificates {load.ca_file} cannot be read: {reason(error)}."
        ) from None
