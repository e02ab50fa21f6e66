"""Servers as processes that share a PostgreSQL database, what is in front of them, and devices.

Nothing here is a test: ``test_cluster`` and longer runs use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fcp_core.admin import AdminClient
from fcp_core.client import Outcome, RetryPolicy, SessionResult
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.testing.servers import make_device
from tests.members.shared import WAIT, sum_task, until

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-cluster"
#: For members whose leases are not to run out, on a machine that is busy with other things.
STEADY = ("-s", "lease_seconds=10s")
#: Devices of a fleet contribute so many int64 values, with as many devices in each.
WORDS, BITS = 256, 62


class Member:
    """``fcp serve`` as a process.

    :param command: what runs in front of it, such as ``ip netns exec NAME``.
    """

    def __init__(
        self,
        cluster: Cluster,
        *options: str,
        command: Sequence[str] = (),
        host: str = "localhost",
    ) -> None:
        self.host = host
        self._front: Balancer | None = None
        self.name = f"member-{len(cluster.members)}"
        self.log_file = cluster.folder / f"{self.name}.log"
        self._cluster = cluster
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *command,
                    *(sys.executable, "-m", "fcp_core", *cluster.settings, *options),
                    *("serve", "--port", "0", "--storage", "postgres"),
                ],
                cwd=cluster.folder,
                env=cluster.environment,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_file.read_text(errors="replace")

    def ready(self) -> Member:
        """Wait until it accepts requests."""
        until(lambda: self._port() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log
        if self.host != "localhost":
            # What carries a token in plain HTTP must be this host.
            self._front = Balancer()
            self._front.ports = [self.address]
        return self

    def close(self) -> None:
        """End it, if it has not ended."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()
        if self._front is not None:
            self._front.close()

    @property
    def port(self) -> int:
        """What it listens on."""
        return int(self._port()[1])

    @property
    def url(self) -> str:
        """Where it is reached itself."""
        return f"http://localhost:{self.port}/" if self._front is None else self._front.url

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.host, self.port

    def _port(self):
        return re.search(r"listening on port (\d+)", self.log)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout: float = WAIT) -> int:
        """Stop it, and wait."""
        self.process.terminate()
        return self.process.wait(timeout)

    def admin(self) -> AdminClient:
        """Return a client of its admin API."""
        return AdminClient(self.url, TOKEN)


class Balancer:
    """Passes connections on to the members that take them, by turns: one address for all."""

    def __init__(self) -> None:
        #: Where the members listen that get connections.
        self.ports: list[tuple[str, int]] = []
        self._turn = 0
        self._open: dict[tuple[str, int], list[asyncio.Task[None]]] = {}
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._connect, "localhost", 0, family=socket.AF_INET)
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://localhost:{self.port}/"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def cut(self, member: Member) -> None:
        """Give a member no connections any more, and break those that it has."""
        self.ports.remove(member.address)
        for way in self._open.pop(member.address, ()):
            self._loop.call_soon_threadsafe(way.cancel)

    def close(self) -> None:
        """Accept nothing any more, and close all connections."""

        async def close() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.05)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                ports = list(self.ports)
                self._turn += 1
                try:
                    port = ports[self._turn % len(ports)]
                    there = await asyncio.open_connection(*port)
                    if port in self.ports:
                        break
                    there[1].close()  # it was cut off meanwhile
                except (OSError, ZeroDivisionError):
                    await asyncio.sleep(0.02)
            # Either end's close is the other one's: what was on its way is lost.
            ways = [
                asyncio.create_task(_pump(*way)) for way in ((reader, there[1]), (there[0], writer))
            ]
            self._open.setdefault(port, []).extend(ways)
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                there[1].close()
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()


class Cluster:
    """Members of one server, and a balancer in front of them.

    :param apart: whether devices are told each member's own address, not only the balancer's.
    """

    def __init__(
        self, folder: Path, url: str, schema: str, *, lease: float = 2.0, apart: bool = False
    ) -> None:
        self.folder = folder
        self.lease = lease
        self.members: list[Member] = []
        self.balancer = Balancer()
        self.settings = [
            "-s", "plugins=fcp_postgres.plugin",
            "-s", f"storage.postgres.schema={schema}",
            "-s", f"lease_seconds={lease}s",
            "-s", "retry_min=10ms", "-s", "retry_max=50ms", "-s", "polling_interval=20ms",
        ]  # fmt: skip
        keys = f"deployment {secrets.token_hex(16)},01 {secrets.token_hex(32)}"
        source = str(ROOT / "plugins" / "storage_postgres" / "src")
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((source, str(ROOT))),
            "FCP_STORAGE_POSTGRES__URL": url,
            "FCP_TOKEN_KEYS": keys,
            "FCP_ADMIN__TOKEN": TOKEN,
        }
        if not apart:
            self.environment["FCP_SERVER__EXTERNAL_URL"] = self.balancer.url

    def start(self, *options: str, **where: Any) -> Member:
        """Start a member, and have the balancer know it once it is ready."""
        member = Member(self, *options, **where)
        self.members.append(member)
        member.ready()
        self.balancer.ports.append(member.address)
        return member

    def owner(self, population: str) -> Member:
        """Wait until a population has an owner that lives; return it."""

        def find() -> Member | None:
            for member in self.members:
                if member.process.poll() is None:
                    with member.admin() as admin:
                        found = {lease.population: lease for lease in admin.members().leases}
                    lease = found.get(population)
                    pids = {each.process.pid: each for each in self.members}
                    return None if lease is None or not lease.pid else pids.get(lease.pid)
            return None

        return until(find)

    def close(self) -> None:
        """End everything."""
        self.balancer.close()
        for member in self.members:
            member.close()


def fleet_task(
    goal: int, population: str = "people", *, words: int = WORDS, **fields: Any
) -> TaskSpec:
    """Make a task for the devices of a fleet whose contributions have so many words."""
    return sum_task(goal, population, size=words, **fields)


class Fleet:
    """Devices, each with its own power of two: a sum tells who is in it, and how often.

    A device whose session failed before it had a task comes again, a moment later; one that failed
    with a task may be counted, so another one comes in its place. There are more than any test
    needs: :func:`fleet_task` makes the task for them.

    :param attempts: how often they send a request that finds nobody, or is answered 429 or 503.
    :param words: how many each contributes.
    :param options: of each device.
    :ivar accepted: the numbers of those that were told OK.
    :ivar failed: of those whose session failed, with its result.
    """

    def __init__(
        self,
        url: str,
        population: str = "people",
        *,
        threads: int = 6,
        attempts: int = 6,
        words: int = WORDS,
        **options: Any,
    ) -> None:
        self._words, self._options = words, options
        self._attempts = attempts
        self._url = url
        self._population = population
        self._lock = threading.Lock()
        self._next = 0
        self._stopped = threading.Event()
        self.accepted: list[int] = []
        self.failed: list[tuple[int, SessionResult]] = []
        self._pool = ThreadPoolExecutor(threads)
        self._work = [self._pool.submit(self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                number, self._next = self._next, self._next + 1
            self._contribute(number)

    def _contribute(self, number: int) -> None:
        value = np.zeros(self._words, np.int64)
        value[number // BITS] = 1 << number % BITS
        with make_device(
            self._url,
            {"v": value},
            population=self._population,
            retry=RetryPolicy(attempts=self._attempts, delay=0.05),
            **self._options,
        ) as device:
            pause = 0.02
            while not self._stopped.wait(pause):
                result = device.run_once()
                if result.outcome is Outcome.CONTRIBUTED:
                    with self._lock:
                        self.accepted.append(number)
                    return
                if result.outcome is Outcome.FAILED:
                    with self._lock:
                        self.failed.append((number, result))
                    pause = min(2 * pause, 1.0)
                    if result.tasks:  # it may be counted
                        self._stopped.wait(pause)
                        return

    def stop(self) -> None:
        """End all devices, and wait for them."""
        self._stopped.set()
        self._pool.shutdown()
        for work in self._work:
            work.result()

    def check(self, result: bytes, contributed: int, surplus: int = 0) -> None:
        """Check an aggregate: nobody twice, and nobody missing who was told that it counts."""
        total = open_checkpoint(result)["total"].tolist()
        counted = {
            BITS * word + bit
            for word, value in enumerate(total)
            for bit in range(64)
            if value >> bit & 1
        }
        assert len(counted) == contributed, (counted, contributed)
        missing = set(self.accepted) - counted
        # Who comes when nothing is needed any more is told OK, and counted as surplus.
        assert len(missing) <= surplus, (missing, surplus)
        assert counted <= set(self.accepted) | {number for number, _ in self.failed}
