"""A server of a run's own: ``fcp serve`` in a process beside it, and what that costs."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from typing_extensions import Self

from fcp_core.bench.report import ServerCost
from fcp_core.errors import UsageError

#: How long the server may take to start, and to stop, in seconds.
_START_TIME = 60.0
_STOP_TIME = 30.0
_BUCKET = re.compile(r'^fcp_loop_lag_seconds_bucket\{le="([^"]+)"\} (\d+)$', re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """What a server used so far.

    :param cpu_seconds: processor time; NaN if the system does not tell.
    :param now_mb: resident memory in MB (10⁶ bytes).
    :param peak_mb: the most that it ever had.
    """

    cpu_seconds: float
    now_mb: float
    peak_mb: float

    def cost_since(self, before: Usage, devices: int, lag: float | None) -> ServerCost:
        """Return what was used since another time, for so many devices.

        :param lag: the 99th percentile of the loop's lag in milliseconds, if it was measured.
        """
        cpu = self.cpu_seconds - before.cpu_seconds
        return ServerCost(
            cpu_seconds=cpu,
            cpu_ms_per_device=1000 * cpu / max(1, devices),
            idle_mb=before.now_mb,
            peak_mb=self.peak_mb,
            loop_lag_p99_ms=lag,
        )


def quantile_ms(counts: Mapping[float, int], share: float) -> float | None:
    """Return a quantile of a histogram in milliseconds: the upper bound of the bucket it is in.

    :param counts: how many values were up to each bound, in seconds; infinity is the last.
    :returns: None if there are no values.
    """
    total = max(counts.values(), default=0)
    if not total:
        return None
    return 1000 * min(bound for bound, count in counts.items() if count >= share * total)


class OwnServer:
    """Runs ``fcp serve`` on this machine until it is left; a context manager.

    :param arguments: what comes before ``serve`` on the command line: ``--config``, ``--set``.
    :param more: what comes after it.
    :raises UsageError: if the server does not start; the message is its own.
    """

    def __init__(self, arguments: list[str], more: list[str] | None = None) -> None:
        self._arguments = arguments
        self._more = more or []
        #: What the admin API asks for.
        self.token = secrets.token_hex(16)
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the server)

    @property
    def pid(self) -> int:
        """The process id of the server."""
        assert self._process is not None  # it runs
        return self._process.pid

    def __enter__(self) -> Self:
        """Start it, and wait until it takes requests."""
        port = _free_port()
        self.url = f"http://localhost:{port}/"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "fcp_core.commands.child", *self._arguments),
                *("serve", "--host", "localhost", "--port", str(port), *self._more),
            ],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "FCP_ADMIN__TOKEN": self.token},
        )
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Stop it."""
        self._end()

    def usage(self) -> Usage:
        """Return what it used until now, with the processes that it started."""
        pids = _with_children(self.pid)
        memory = [memory_of(pid) for pid in pids]
        return Usage(
            cpu_seconds=sum(map(cpu_seconds, pids)),
            now_mb=sum(now for now, _ in memory),
            peak_mb=sum(peak for _, peak in memory),
        )

    def lags(self) -> dict[float, int]:
        """Return how often the event loop was late by up to so many seconds; nothing if unknown."""
        try:
            with urllib.request.urlopen(f"{self.url}metrics", timeout=_STOP_TIME) as answer:
                text = answer.read().decode()
        except (OSError, urllib.error.URLError):
            return {}
        return {float(bound.replace("+", "")): int(n) for bound, n in _BUCKET.findall(text)}

    def _wait(self) -> None:
        assert self._process is not None  # made just before
        until = time.monotonic() + _START_TIME
        while self._process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"{self.url}readyz", timeout=1).close()
                return
            time.sleep(0.02)
        raise UsageError(f"the server did not start: {self._said() or 'it took too long'}")

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-2000:]

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None  # a pipe
        process.stdin.close()
        try:
            process.wait(_STOP_TIME)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._log.close()


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far; NaN where the system does not tell."""
    folder = Path(f"/proc/{pid}/task")
    try:
        # To the nanosecond, but only of threads that go on: ours do.
        return sum(
            int((task / "schedstat").read_text().split()[0]) / 1e9 for task in folder.iterdir()
        )
    except (OSError, IndexError, ValueError):
        return float("nan")


def memory_of(pid: int) -> tuple[float, float]:
    """Return a process's resident memory and the most that it had, in MB."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return float("nan"), float("nan")
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.MULTILINE))
    # Not ru_maxrss: that begins with the size of the process that started this one.
    return int(found.get("VmRSS", 0)) * 1024 / 1e6, int(found.get("VmHWM", 0)) * 1024 / 1e6


def _with_children(pid: int) -> list[int]:
    """Return a process and all that it started, as far as the system tells."""
    pids = [pid]
    for parent in pids:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                pids += map(int, file.read_text().split())
    return pids


def _free_port() -> int:
    """Return a port that is free now, for IPv4 and for IPv6 if there is that."""
    with contextlib.ExitStack() as held:
        first = held.enter_context(socket.socket(socket.AF_INET))
        first.bind(("127.0.0.1", 0))
        port: int = first.getsockname()[1]
        return port
