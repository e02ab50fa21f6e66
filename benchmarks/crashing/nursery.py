"""Starts servers by forking: what a start costs is what a server does, and not its imports.

A process of its own, without threads, has imported what ``fcp serve`` needs. For each line on its
standard input, JSON, it forks; the child becomes ``fcp`` with the arguments that the line says, and
its process id is printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

#: What a server imports when it starts, and not before.
_LATER = (
    "fcp_core.commands.serve",
    "fcp_core.server",
    "fcp_core.admin",
    "fcp_plugins.storage_sqlite",
    "fcp_plugins.plugin",
    "fcp_aggregators.plugin",
    "fcp_core.aggregation.local",
)


class Nursery:
    """The process that forks.

    :param environment: its, and that of all that it starts.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, arguments: list[str], folder: Path, log: Path) -> int:
        """Start ``fcp`` in a folder, with its output added to a file; return its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps({"arguments": arguments, "folder": str(folder), "log": str(log)})
        print(line, file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def __enter__(self) -> Nursery:
        """Return it."""
        return self

    def __exit__(self, *error: object) -> None:
        """End it; what it started must have been killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def is_alive(pid: int) -> bool:
    """Whether a process that a nursery started runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(pid: int) -> None:
    """Kill a process that a nursery started, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    while is_alive(pid):
        time.sleep(0.002)


def _become(arguments: list[str], folder: str, log: str) -> None:
    """Be ``fcp`` from now on."""
    from fcp_core.commands.main import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(folder)
    with open(os.devnull, "rb") as nothing, open(log, "ab") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv[:] = ["fcp", *arguments]
    main()


def _main() -> None:
    import importlib

    for name in _LATER:
        importlib.import_module(name)
    with contextlib.suppress(ImportError):  # it is needed by members only
        importlib.import_module("fcp_postgres.plugin")
    # Those that end are not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(**wanted)
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    _main()
