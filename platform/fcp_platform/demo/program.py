"""The program of the demonstration: federated averaging of a small network over the digits."""

from __future__ import annotations

import asyncio
import collections
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fcp_core.errors import UsageError
from fcp_platform.demo import data
from fcp_platform.demo.devices import EXAMPLES
from fcp_platform.demo.display import Board

POPULATION = "demo/digits"
HELD_OUT = 360


@dataclass(frozen=True)
class Settings:
    """What ``fcp demo`` was asked for.

    :param folder: where examples, program state and summaries go.
    :param contributions: how many contributions complete a round.
    :param processes: how many processes host the devices.
    :param aggregator: an aggregator plugin in place of the default; None keeps it.
    :param resume: whether to go on after the last round that *folder* has the state of.
    :param round_deadline: seconds after which a round fails.
    """

    folder: Path
    rounds: int = 10
    devices: int = 30
    contributions: int = 10
    processes: int = 2
    seed: int = 0
    aggregator: str | None = None
    resume: bool = False
    port: int = 0
    round_deadline: float = 120.0

    def check(self) -> None:
        """Refuse what cannot work.

        :raises UsageError: with the numbers that do not fit.
        """
        if not 1 <= self.contributions <= self.devices:
            raise UsageError(
                f"--contributions {self.contributions} must be between 1 and the number of devices "
                f"({self.devices})."
            )
        if not 1 <= self.processes <= self.devices:
            raise UsageError(
                f"--processes {self.processes} must be between 1 and the number of devices "
                f"({self.devices})."
            )


@dataclass
class Outcome:
    """What a run came to.

    :param held_out: how many digits the devices do not have.
    :param accuracy: on the held-out digits, after each round of this run.
    :param seconds: wall time of the phases and of the plans on the devices (added up), and
        processor time of the server's event loop.
    :param devices: what the client processes did, added up.
    """

    held_out: int = HELD_OUT
    accuracy: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    devices: dict[str, float] = field(default_factory=dict)


class Hosts:
    """The processes that host the devices.

    :param folders: one for each device, dealt to the processes in turn.
    """

    def __init__(self, folders: Sequence[Path], processes: int) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "fcp_platform.demo.devices", POPULATION]
                + [str(folder) for folder in folders[number::processes]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]

    def start(self, server: str) -> None:
        """Tell the processes where the server is."""
        for process in self._processes:
            assert process.stdin is not None  # asked for above
            process.stdin.write(f"{server}\n")
            process.stdin.flush()

    async def watch(self) -> None:
        """Return never, unless a process ends.

        :raises UsageError: if one does; its own message is on standard error.
        """
        while True:
            for process in self._processes:
                if process.poll() is not None:
                    raise UsageError(
                        f"a client process ended early, with status {process.returncode}."
                    )
            await asyncio.sleep(0.5)

    def stop(self) -> dict[str, float]:
        """End the processes and return what their devices did, added up."""
        total: collections.Counter[str] = collections.Counter()
        for process in self._processes:
            # Closing standard input is what asks them to end.
            output, _ = process.communicate()
            if output.strip():
                total.update(json.loads(output))
        return dict(total)


@contextmanager
def hosted(folders: Sequence[Path], processes: int, results: dict[str, float]) -> Iterator[Hosts]:
    """Start client processes, and end them whatever happens; *results* gets what they did."""
    hosts = Hosts(folders, processes)
    try:
        yield hosts
    finally:
        results.update(hosts.stop())


def run(settings: Settings, board: Board) -> Outcome:
    """Run the demonstration.

    :raises UsageError: for settings that do not fit, or nothing to resume.
    """
    settings.check()
    began = time.perf_counter()
    outcome = Outcome()
    state_folder = settings.folder / "state"
    if settings.resume:
        if not state_folder.is_dir():
            raise UsageError(
                f"there is no program state in {state_folder}; run without --resume first."
            )
    else:
        for name in ("state", "summaries", "devices"):
            shutil.rmtree(settings.folder / name, ignore_errors=True)
    folders = [settings.folder / "devices" / f"{n:02d}" for n in range(settings.devices)]
    with ExitStack() as stack:
        hosts = stack.enter_context(hosted(folders, settings.processes, outcome.devices))
        training, held_out = data.load(settings.seed, HELD_OUT)
        for folder, hand in zip(
            folders, data.deal(training, settings.devices, settings.seed), strict=True
        ):
            folder.mkdir(parents=True, exist_ok=True)
            data.write_examples(folder / EXAMPLES, hand)
        # Imported late: the client processes load TensorFlow at the same time.
        from fcp_platform.demo.training import Training

        training_program = Training(settings, board, held_out, outcome)
        outcome.seconds["start-up"] = time.perf_counter() - began
        asyncio.run(training_program.run(hosts))
    outcome.seconds["whole run"] = time.perf_counter() - began
    outcome.seconds["devices' plans"] = outcome.devices.get("computation_seconds", 0.0)
    outcome.seconds["server's event loop"] = board.server_seconds
    report = settings.folder / "outcome.json"
    report.write_text(json.dumps(asdict(outcome), indent=2) + "\n")
    return outcome
