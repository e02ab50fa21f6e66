"""What a second member brings: two servers that share a PostgreSQL database, against one.

Three servers are measured in turn, each with the database and the bytes of the others: one member
with two populations; two members with one each; one server of two processes with both. Devices are
told the address of their population's owner, so nothing is passed on.

Each process has the same number of devices at a time: a second one is started for more devices, and
what a contribution costs depends on how many share a commit and a turn of the loop.

On few processors the clients take what the servers could use, so what counts is the servers' own
time: two members on two processors do 2 / s2 where one does 1 / s1, with s the server's processor
time for a contribution.

With ``--together`` all devices are of one population, so that one of two members receives uploads
for the other, as one of two processes does.

    python benchmarks/bench_members.py [--quick] [--together]
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from goals import Goal

from fcp_core.admin import AdminClient
from fcp_core.bench.run import run
from fcp_core.bench.settings import Load
from fcp_core.bench.task import BenchTask

SOURCE = Path(__file__).resolve().parents[1] / "plugins" / "storage_postgres" / "src"
sys.path.insert(0, str(SOURCE))

TOKEN = secrets.token_hex(16)
#: How much more two members shall do than one.
LIMIT = 1.7
#: Devices at a time, for each process.
CONNECTIONS = 16
#: The servers by name: how many members, and processes of each.
SERVERS = {"one member": (1, 1), "two members": (2, 1), "one server of two processes": (1, 2)}


@dataclass(frozen=True)
class Work:
    """What devices do.

    :param elements: float32 in a contribution.
    :param clients: how many come, for each process.
    """

    name: str
    elements: int
    gzip: bool
    clients: int


WORKS = (
    Work("calls without bodies", 1, False, 3000),
    Work("4 MB", 1_000_000, False, 600),
    Work("4 MB gzip", 1_000_000, True, 240),
)


@contextmanager
def members(count: int, processes: int, url: str, schema: str) -> Iterator[list[tuple[str, int]]]:
    """Start members; give the address and the process of each."""
    environment = environment_of(url)
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            started = member(environment, schema, [f"server.processes={processes}"])
            port, pid = stack.enter_context(started)
            found.append((f"http://localhost:{port}/", pid))
        yield found


def environment_of(url: str) -> dict[str, str]:
    """Return the environment of the members of one server."""
    return {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "FCP_STORAGE_POSTGRES__URL": url,
        "FCP_TOKEN_KEYS": f"deployment {'1' * 32},01 {secrets.token_hex(32)}",
        "FCP_ADMIN__TOKEN": TOKEN,
    }


@contextmanager
def member(
    environment: Mapping[str, str], schema: str, settings: Sequence[str], within: Sequence[str] = ()
) -> Iterator[tuple[int, int]]:
    """Start a member; give its port and the id of its process.

    :param within: the command that runs it.
    """
    # So busy a machine may not answer in the usual time.
    usual = ("plugins=fcp_postgres.plugin", f"storage.postgres.schema={schema}")
    options = [word for each in (*usual, "lease_seconds=60s", *settings) for word in ("-s", each)]
    command = [*within, sys.executable, "-m", "fcp_core", *options, "serve", "--port", "0"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [*command, "--storage", "postgres"], env=environment, stdout=log, stderr=log
        ) as process,
    ):
        try:
            yield _port(process, log), process.pid
        finally:
            process.terminate()


def _port(process: subprocess.Popen[bytes], log: IO[str]) -> int:
    while True:
        log.seek(0)
        text = log.read()
        port = re.search(r"listening on port (\d+)", text)
        if port is not None:
            return int(port[1])
        if process.poll() is not None:
            raise RuntimeError(text)
        time.sleep(0.05)


def processor_time(pid: int) -> float:
    """Return the seconds that a process and its children have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return used + sum(processor_time(int(child)) for child in children)


def populations(servers: list[tuple[str, int]]) -> list[tuple[str, str]]:
    """Return two populations, of two members if there are two, each with its owner's address."""
    url = servers[0][0]
    by_pid = {pid: address for address, pid in servers}
    found: dict[int, list[tuple[str, str]]] = {pid: [] for pid in by_pid}
    with AdminClient(url, TOKEN) as client:
        for number in range(64):
            name = f"bench{number}"
            probe = client.submit(BenchTask(1).spec(name, "probe", 1, 600.0))
            client.cancel(probe.task_id, "it was only to have the population owned")
            leases = {lease.population: lease.pid for lease in client.members().leases}
            found[leases[name]].append((name, by_pid[leases[name]]))
            if all(len(names) >= 2 // len(servers) for names in found.values()):
                return [pair for names in found.values() for pair in names[: 2 // len(servers)]]
    raise RuntimeError("one member owns everything")


def measure(
    servers: list[tuple[str, int]], processes: int, work: Work, *, together: bool = False
) -> tuple[float, float]:
    """Return contributions a second, and the servers' processor time for one, in seconds.

    :param processes: how many there are of all servers.
    """
    task = BenchTask(work.elements)
    places = populations(servers)[: 1 if together else None]

    def devices(place: tuple[str, str]) -> int:
        name, url = place
        connections, clients = (n * processes // len(places) for n in (CONNECTIONS, work.clients))
        load = Load(clients, (), connections, population=name, gzip=work.gzip)
        with AdminClient(url, TOKEN) as client:
            report = run(client, replace(load, bodies=(b"",)), task)
        if report.contributed != clients:
            raise RuntimeError(f"{report.contributed} of {clients} contributed: {report}")
        return report.contributed

    before, began = sum(processor_time(pid) for _, pid in servers), time.perf_counter()
    with ThreadPoolExecutor(len(places)) as pool:
        done = sum(pool.map(devices, places))
    seconds = time.perf_counter() - began
    used = sum(processor_time(pid) for _, pid in servers) - before
    return done / seconds, used / done


def figures(quick: bool, *, together: bool = False) -> dict[tuple[str, str], tuple[float, float]]:
    """Return what was measured, by server and work."""
    from fcp_postgres.testing import PostgresServer

    found = {}
    with PostgresServer({"fsync": "on"}) as database:
        for server, (count, processes) in SERVERS.items():
            schema = f"bench_{secrets.token_hex(4)}"
            with members(count, processes, database.url, schema) as servers:
                for work in WORKS:
                    given = replace(work, clients=work.clients // 5) if quick else work
                    found[server, work.name] = measure(
                        servers, count * processes, given, together=together
                    )
    return found


def goals(quick: bool) -> list[Goal]:
    """Return what two members bring, by the servers' own time."""
    found = figures(quick)
    return [
        Goal(
            "members",
            f"two members against one, {work.name}, by server CPU",
            2 * found["one member", work.name][1] / found["two members", work.name][1],
            LIMIT,
            at_most=False,
        )
        for work in WORKS
    ]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer contributions")
    parser.add_argument("--together", action="store_true", help="all of one population")
    options = parser.parse_args()
    found = figures(options.quick, together=options.together)
    print(
        "| server | contributions | a second | ms of server CPU each | by CPU, times one member |"
    )
    print("|---|---|---|---|---|")
    for (server, work), (rate, cost) in found.items():
        gain = 2 * found["one member", work][1] / cost if server != "one member" else 1.0
        print(f"| {server} | {work} | {rate:.1f} | {1000 * cost:.2f} | {gain:.2f} |")


if __name__ == "__main__":
    main()
