"""The processes that host the demonstration's devices, as its program sees them."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fcp_core.errors import UsageError
from fcp_platform.demo.settings import POPULATION


class Hosts:
    """The processes that host the devices.

    :param devices: what each device is given, such as its folder; dealt to the processes in turn.
    :param drop: the fraction of the devices that vanish while they contribute.
    :param command: what hosts them, as arguments of Python; by default the TensorFlow devices.
    """

    def __init__(
        self,
        devices: Sequence[Path | int],
        processes: int,
        drop: float = 0.0,
        *,
        command: Sequence[str] = (),
    ) -> None:
        # More plans at the same time than there are processors would only be slower.
        at_once = max(1, (os.cpu_count() or 1) // processes)
        tensorflow = ["-m", "fcp_platform.demo.devices", POPULATION, str(at_once), str(drop)]
        # Small networks: the threads of a numerical library would only get in the way.
        few = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} if command else {}
        self._processes = [
            subprocess.Popen(
                [sys.executable, *(command or tensorflow)]
                + [str(device) for device in devices[number::processes]],
                env={**os.environ, **few},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]
        self._total: collections.Counter[str] = collections.Counter()

    def start(self, server: str) -> None:
        """Tell the processes where the server is."""
        for process in self._processes:
            assert process.stdin is not None  # asked for above
            process.stdin.write(f"{server}\n")
            process.stdin.flush()

    def check(self) -> None:
        """Look whether all processes are there.

        :raises UsageError: if one has ended; its own message is on standard error.
        """
        for process in self._processes:
            if process.poll() is not None:
                raise UsageError(f"a client process ended early, with status {process.returncode}.")

    async def watch(self) -> None:
        """Return never, unless a process ends.

        :raises UsageError: if one does.
        """
        while True:
            self.check()
            await asyncio.sleep(0.5)

    def stop(self) -> dict[str, float]:
        """End the processes and return what their devices did, added up. May be repeated.

        Devices that are still at work when the server goes would say that they cannot reach it.
        """
        for process in self._processes:
            # Closing standard input is what asks them to end.
            if process.stdin is not None:
                process.stdin.close()
                process.stdin = None
        while self._processes:
            output, _ = self._processes[0].communicate()
            del self._processes[0]
            if output.strip():
                self._total.update(json.loads(output))
        return dict(self._total)


@contextmanager
def hosted(
    devices: Sequence[Path | int],
    processes: int,
    results: dict[str, float],
    drop: float = 0.0,
    *,
    command: Sequence[str] = (),
) -> Iterator[Hosts]:
    """Start client processes, and end them whatever happens; *results* gets what they did.

    The other arguments are those of :class:`Hosts`.
    """
    hosts = Hosts(devices, processes, drop, command=command)
    try:
        yield hosts
    finally:
        results.update(hosts.stop())
