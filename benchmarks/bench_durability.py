"""What durability costs: contributions that are stored before they are answered, or not.

Two servers with an SQLite file each, in processes of their own, measured in turns: one with
``durability = contribution`` and one with ``round``. Both files lie in the working folder or in
``--folder``, which should be on a local disk.

Then the first one is given five times as many devices as it needs to be busy, and a memory for
uploads that they overflow. It turns devices away at check-in; none may get an error, it must go on
at its pace, and its memory must stay flat.

    python benchmarks/bench_durability.py [--quick] [--folder DIR]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from bench_ingest import ELEMENTS, in_turns, noise, sessions, show, uploads
from goals import Goal
from http_load import Device, Rate, measure
from serving import Server, running

CONNECTIONS = 16
#: How many times as many devices as it needs to be busy.
OVERLOAD = 5
#: For uploads, in the overload: fewer than so many devices bring.
MAX_IN_FLIGHT = 128 << 20


def serving(
    elements: int, durability: str, folder: str, max_in_flight: int = 1 << 30
) -> AbstractContextManager[Server]:
    """Run a server with a file in a folder."""
    options = {
        "storage": "sqlite",
        "max_in_flight": max_in_flight,
        "max_body": 8 << 20,
        "max_decompressed": 8 << 20,
        "storage.sqlite.path": str(Path(folder, f"{durability}.sqlite").absolute()),
    }
    return running("fcp", elements, options=options, durability=durability)


def waits(server: Server, body: bytes, count: int) -> list[float]:
    """Return how long a device that comes alone takes to contribute, in milliseconds."""
    device = Device(server.url)
    found = []
    for _ in range(count):
        task = device.assign()
        began = time.perf_counter()
        device.contribute(task, body)
        found.append(1000 * (time.perf_counter() - began))
    device.connection.close()
    return found


def compare(folder: Path, quick: bool) -> list[Goal]:
    """Compare the two, for updates of 4 MB and of 4 bytes."""
    goals = []
    turns = 5 if quick else 9
    for elements, size, limit in ((ELEMENTS, 64, 0.6), (1, 300, 0.7)):
        body, _ = noise(elements)
        with ExitStack() as stack:
            place = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
            servers = [
                stack.enter_context(serving(elements, durability, place))
                for durability in ("contribution", "round")
            ]
            devices = [[Device(server.url) for _ in range(CONNECTIONS)] for server in servers]
            way = uploads if elements > 1 else sessions
            ours, other = (
                way(server, each, body) for server, each in zip(servers, devices, strict=True)
            )
            found = in_turns(ours, other, size, turns)
            name = "4 MB" if elements > 1 else "4 B"
            show(f"{name}, contribution", CONNECTIONS, found, "round")
            what = "contributions of 4 MB" if elements > 1 else "sessions, 4 B updates"
            what += f", {CONNECTIONS} connections, durability contribution vs round"
            goals.append(Goal("durability", what, found.ratio, limit, at_most=False))
            alone = [waits(server, body, 10 if quick else 30) for server in servers]
            more = statistics.median(alone[0]) - statistics.median(alone[1])
            print(f"{name}, alone: {statistics.median(alone[0]):.1f} ms, {more:.1f} ms more")
            what = f"a device that comes alone, {name} update, waits longer"
            goals.append(Goal("durability", what, more, 50.0, "ms"))
            _close(devices)
    return goals


def overload(folder: Path, quick: bool) -> list[Goal]:
    """Compare a server with five times the devices with itself."""
    body, _ = noise(ELEMENTS)
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        server = stack.enter_context(serving(ELEMENTS, "contribution", place, MAX_IN_FLIGHT))
        devices = [Device(server.url) for _ in range(OVERLOAD * CONNECTIONS)]
        turned_away: Counter[str] = Counter()

        def session(device: Device) -> None:
            while not (checked_in := device.check_in()).session_id:
                turned_away["check-in"] += 1
                time.sleep(random.uniform(0.05, 0.1))
            answer = device.start(checked_in.session_id)
            if not answer.HasField("task_assignment"):
                turned_away["start"] += 1
                return session(device)
            # Whatever is not answered 200 from here on ends the benchmark.
            return device.contribute(answer.task_assignment, body)

        def steps(count: int) -> Callable[[int], Rate]:
            each = [lambda device=device: session(device) for device in devices[:count]]
            return lambda pieces: measure(server, each, pieces)

        size = 160 if quick else 320
        usual, many = steps(CONNECTIONS), steps(OVERLOAD * CONNECTIONS)
        usual(size)
        before = _peak(server)
        found = in_turns(many, usual, size, 3 if quick else 7)
        more = _peak(server) - before
        show("overload", OVERLOAD * CONNECTIONS, found, f"{CONNECTIONS} connections")
        print(f"turned away: {dict(turned_away)}; memory {before:.0f} MB, {more:.0f} MB more")
        _close([devices])
    what = f"contributions with {OVERLOAD} times the devices vs {CONNECTIONS} connections"
    return [
        Goal("overload", what, found.ratio, 0.9, at_most=False),
        Goal("overload", "memory that they cost", more, 1.5 * MAX_IN_FLIGHT / 2**20, "MB"),
    ]


def _peak(server: Server) -> float:
    """Return the most memory that a server had, in MB."""
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the system does not say how much memory a process had")


def _close(devices: Sequence[Sequence[Device]]) -> None:
    for each in devices:
        for device in each:
            device.connection.close()


def goals(quick: bool, folder: Path = Path()) -> list[Goal]:
    """Measure everything.

    :param quick: fewer turns.
    :param folder: where the files are put.
    """
    return [*compare(folder, quick), *overload(folder, quick)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path())
    arguments = parser.parse_args()
    for goal in goals(arguments.quick, arguments.folder):
        print("  ".join(goal.row()))


if __name__ == "__main__":
    main()
