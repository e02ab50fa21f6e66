"""What durability costs with PostgreSQL on the same machine, compared with none.

A server of PostgreSQL is started as the tests do, but waits for its disk. Two servers of ours, in
processes of their own, are measured in turns: one stores contributions there before they are
answered (``durability = contribution``), one stores none (``round``).

    python benchmarks/bench_postgres.py [--quick]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from bench_durability import CONNECTIONS, waits
from bench_ingest import ELEMENTS, in_turns, noise, sessions, show, uploads
from goals import Goal, main
from http_load import Device
from serving import Server, running

_SOURCE = str(Path(__file__).parents[1] / "plugins" / "storage_postgres" / "src")
if _SOURCE not in sys.path:
    sys.path.append(_SOURCE)

from fcp_postgres.testing import PostgresServer  # noqa: E402


def serving(elements: int, place: str) -> AbstractContextManager[Server]:
    """Run a server.

    :param place: the URL of the database, or the file of a server that stores no contributions.
    """
    durable = place.startswith("postgresql:")
    if durable:
        options = {
            "plugins": "fcp_postgres.plugin",
            "storage": "postgres",
            "storage.postgres.url": place,
            "storage.postgres.schema": f"e{elements}",
        }
    else:
        options = {"storage": "sqlite", "storage.sqlite.path": place}
    durability = "contribution" if durable else "round"
    return running("fcp", elements, options=options, durability=durability, path=_SOURCE)


def compare(url: str, folder: Path, elements: int, quick: bool) -> list[Goal]:
    """Compare the two, for updates of so many floats."""
    name, limit, size = ("4 MB", 0.5, 64) if elements > 1 else ("4 B", 0.7, 300)
    body, _ = noise(elements)
    with ExitStack() as stack:
        places = (url, str(folder / f"{elements}.sqlite"))
        servers = [stack.enter_context(serving(elements, place)) for place in places]
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


if __name__ == "__main__":
    main(goals, __doc__)
