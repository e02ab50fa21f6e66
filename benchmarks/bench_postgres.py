"""What durability costs with PostgreSQL on the same machine, compared with none.

A server of PostgreSQL is started as the tests do, but waits for its disk. Two servers of ours, in
processes of their own, are measured in turns: one stores contributions there before they are
answered (``durability = contribution``), one stores none (``round``).

    python benchmarks/bench_postgres.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench_durability import CONNECTIONS, waits
from bench_ingest import ELEMENTS, in_turns, noise, sessions, show, uploads
from goals import Goal
from http_load import Device, running

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server import Server as FCPServer
from fcp_core.server.own_process import serve_alone

_SOURCE = str(Path(__file__).parents[1] / "plugins" / "storage_postgres" / "src")
if _SOURCE not in sys.path:
    sys.path.append(_SOURCE)

from fcp_postgres.testing import PostgresServer  # noqa: E402


def serve(elements: int, place: str) -> None:
    """Serve a task that sums *elements* floats.

    :param place: the URL of the database, or the file of a server that stores no contributions.
    """
    overrides: dict[str, object] = {"plugins": "fcp_postgres.plugin", "storage": "postgres"}
    durable = place.startswith("postgresql:")
    if durable:
        overrides |= {"storage.postgres.url": place, "storage.postgres.schema": f"e{elements}"}
    else:
        overrides |= {"storage": "sqlite", "storage.sqlite.path": place}
    intrinsic = Intrinsic(
        "federated_sum",
        inputs=(TensorSpec("update", DataType.FLOAT, (elements,)),),
        outputs=(TensorSpec("total", DataType.FLOAT, (elements,)),),
    )
    configuration = configuration_to_proto([intrinsic]).SerializeToString()
    spec = TaskSpec(
        "p",
        "sum",
        b"plan",
        configuration,
        10**6,
        durability="contribution" if durable else "round",
    )

    async def main() -> None:
        plugins = Plugins.load(environ={}, overrides=overrides)
        server = FCPServer(plugins, populations=("p",))
        await server.start()
        await server.services.tasks.submit(spec)
        serve_alone()  # as fcp serve does
        print(server.url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.stop()

    asyncio.run(main())


def compare(url: str, folder: Path, elements: int, quick: bool) -> list[Goal]:
    """Compare the two, for updates of so many floats."""
    name, limit, size = ("4 MB", 0.5, 64) if elements > 1 else ("4 B", 0.7, 300)
    body, _ = noise(elements)
    start = [__file__, "--elements", str(elements), "--serve"]
    with ExitStack() as stack:
        places = (url, str(folder / f"{elements}.sqlite"))
        servers = [stack.enter_context(running(*start, place)) for place in places]
        devices = [[Device(server.url) for _ in range(CONNECTIONS)] for server in servers]
        way = uploads if elements > 1 else sessions
        ours, other = (
            way(server, each, body) for server, each in zip(servers, devices, strict=True)
        )
        found = in_turns(ours, other, size, 5 if quick else 9)
        show(f"{name}, PostgreSQL", CONNECTIONS, found, "round")
        alone = [statistics.median(waits(server, body, 10 if quick else 30)) for server in servers]
        print(f"{name}, alone: {alone[0]:.1f} ms, {alone[0] - alone[1]:.1f} ms more")
        for device in (device for each in devices for device in each):
            device.connection.close()
    what = f"contributions of {name}, {CONNECTIONS} connections, durability contribution vs round"
    lone = f"a device that comes alone, {name} update, waits longer"
    return [
        Goal("PostgreSQL", what, found.ratio, limit, at_most=False),
        Goal("PostgreSQL", lone, alone[0] - alone[1], 50.0, "ms"),
    ]


def goals(quick: bool) -> list[Goal]:
    """Measure everything.

    :param quick: fewer turns.
    """
    found = []
    with (
        PostgresServer({"fsync": "on", "max_wal_size": "4GB"}) as postgres,
        tempfile.TemporaryDirectory() as folder,  # Where PostgreSQL's files are too.
    ):
        for elements in (ELEMENTS, 1):
            found += compare(postgres.url, Path(folder), elements, quick)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--elements", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.elements, arguments.serve)
        return
    for goal in goals(arguments.quick):
        print("  ".join(goal.row()))


if __name__ == "__main__":
    main()
