"""Real servers that are killed, and devices whose contributions can be told apart."""

from __future__ import annotations

import itertools
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client, make_query_result
from fcp_core.client.transport import RetryPolicy
from fcp_core.tasks.tables import Table
from fcp_core.tasks.taskfile import parse_task

TOKEN = "a-token-of-enough-characters"
POPULATION = "phones/all"
#: Each contribution brings a key of its own, so that the result says which are in it, how often.
TASK = """
[task]
population = "phones/all"
name = "launches"
goal_count = {goal}
[[query]]
collection_uri = "app:/launches"
[query.vectors]
app = "string"
launches = "int64"
[result]
group_by = ["app"]
sum = ["launches"]
"""
#: How long anything may take on a busy machine, in seconds.
WAIT = 180


def until(true, what):
    """Wait until something is so."""
    give_up = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < give_up, f"waited {WAIT} s for {what}"
        time.sleep(0.02)


class Host:
    """``fcp serve`` on one folder, which may be killed and started again at its port.

    :param options: of the configuration, as ``name=value``.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = [word for option in options for word in ("--set", option)]
        with socket.create_server(("localhost", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://localhost:{self.port}/"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder.parent / f"{folder.name}.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fcp_core"]
                + [*self.options, "serve", "--port", str(self.port)],
                cwd=self.folder,
                env={**os.environ, "FCP_ADMIN__TOKEN": TOKEN},
                stderr=log,
                stdout=log,
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(WAIT)

    def admin(self, patience: float = WAIT) -> AdminClient:
        return AdminClient(self.url, TOKEN, patience=patience)

    def ready(self) -> tuple[int, str]:
        """Ask ``/readyz``; (0, "") if nobody listens."""
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            with socket.create_connection(("localhost", self.port), 10) as connection:
                connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                reply = b"".join(iter(lambda: connection.recv(4096), b""))
        except OSError:
            return 0, ""
        head, _, body = reply.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, body.decode()

    def device(self, name: str) -> str:
        """Be a device once, whose key is *name*; return its outcome, or the error."""
        vectors = {"app": [name], "launches": np.array([1], np.int64)}
        store = CallableStore(lambda selector: (), query=lambda query: make_query_result(vectors))
        retry = RetryPolicy(attempts=1)
        try:
            with Client(
                self.url, POPULATION, stores={"app:/launches": store}, retry=retry, timeout=WAIT
            ) as client:
                return client.run_once().outcome.name
        except Exception as error:
            return f"{type(error).__name__}: {error}"


class Crowd:
    """Devices that contribute again and again, each time under another name."""

    def __init__(self, host: Host, count: int) -> None:
        self.host = host
        self.counted: list[str] = []
        self._stopped = threading.Event()
        self._names = itertools.count()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            name = f"try {next(self._names)}"
            outcome = self.host.device(name)
            if outcome == "CONTRIBUTED":
                self.counted.append(name)
            else:
                self._stopped.wait(0.1)  # more often, and they take the server's time to start

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(WAIT)
            assert not thread.is_alive()


@pytest.fixture
def make_host(tmp_path):
    hosts = []

    def make(*options, folder=None):
        if folder is None:
            folder = tmp_path / f"host{len(hosts)}"
            folder.mkdir()
        hosts.append(Host(folder, *options))
        return hosts[-1]

    yield make
    for host in hosts:
        host.kill()


@pytest.fixture(name="until")
def until_fixture():
    return until


@pytest.fixture
def make_crowd():
    """Start devices that contribute until they are stopped."""
    crowds = []

    def make(host, count):
        crowds.append(Crowd(host, count))
        return crowds[-1]

    yield make
    for crowd in crowds:
        crowd.stop()


@pytest.fixture
def spec():
    return lambda goal, **changes: parse_task(TASK.format(goal=goal)).to_spec().replace(**changes)


@pytest.fixture
def rows():
    """Read a result: how often each name is in it."""
    return lambda result: dict(Table.of(result).rows())


class Disk:
    """A folder whose disk can be filled: a small file system, or a limit where none is to be had.

    :ivar kind: ``tmpfs`` or ``limit``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "fcp-test", str(folder)]
        try:
            mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except OSError:
            mounted = False
        self.kind = "tmpfs" if mounted else "limit"

    def fill(self, process: subprocess.Popen[bytes]) -> None:
        if self.kind == "limit":
            # Files of the process cannot grow; the system says "too large" and not "full".
            size = (self.folder / "fcp.sqlite-wal").stat().st_size
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass

    def empty(self, process: subprocess.Popen[bytes]) -> None:
        if self.kind == "limit":
            limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
        else:
            (self.folder / "filler").unlink()

    def remove(self) -> None:
        if self.kind == "tmpfs":
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.remove()
