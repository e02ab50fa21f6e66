"""What durability costs: contributions that are stored before they are answered, or not.

Two servers with an SQLite file each, in processes of their own, measured in turns: one with
``durability = contribution`` and one with ``round``. Both files lie in the working folder or in
``--folder``, which should be on a local disk.

    python benchmarks/bench_durability.py [--quick] [--folder DIR]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench_ingest import ELEMENTS, in_turns, noise, sessions, show, uploads
from goals import Goal
from http_load import Device, Server, running

from fcp_core.rounds.specification import Durability

CONNECTIONS = 16


def serve(elements: int, durability: Durability, folder: Path) -> None:
    """Serve a task that sums *elements* floats."""
    import asyncio

    from fcp_core.aggregation.configuration import configuration_to_proto
    from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
    from fcp_core.plugins.manager import Plugins
    from fcp_core.rounds.tasks import TaskSpec
    from fcp_core.server import Server as FCPServer

    intrinsic = Intrinsic(
        "federated_sum",
        inputs=(TensorSpec("update", DataType.FLOAT, (elements,)),),
        outputs=(TensorSpec("total", DataType.FLOAT, (elements,)),),
    )
    configuration = configuration_to_proto([intrinsic]).SerializeToString()
    overrides = {"storage": "sqlite", "storage.sqlite.path": str(folder / f"{durability}.sqlite")}

    async def main() -> None:
        server = FCPServer(Plugins.load(environ={}, overrides=overrides))
        await server.start()
        spec = TaskSpec("p", "sum", b"plan", configuration, 10**6, durability=durability)
        await server.services.tasks.submit(spec)
        print(server.url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.stop()

    asyncio.run(main())


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
            start = [__file__, "--elements", str(elements), "--folder", place, "--serve"]
            servers = [
                stack.enter_context(running(*start, durability))
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


def _close(devices: Sequence[Sequence[Device]]) -> None:
    for each in devices:
        for device in each:
            device.connection.close()


def goals(quick: bool, folder: Path = Path()) -> list[Goal]:
    """Measure everything.

    :param quick: fewer turns.
    :param folder: where the files are put.
    """
    return compare(folder, quick)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--serve", choices=("contribution", "round"), help=argparse.SUPPRESS)
    parser.add_argument("--elements", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.elements, arguments.serve, arguments.folder)
        return
    for goal in goals(arguments.quick, arguments.folder):
        print("  ".join(goal.row()))


if __name__ == "__main__":
    main()
