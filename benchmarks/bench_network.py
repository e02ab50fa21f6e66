"""What a second and a third host bring to one population: members in network namespaces.

Three members share a PostgreSQL database; each has an address and a network of its own. One of them
owns the population: it assigns, decides what counts and stores it. Uploads go to all three. The
same devices contribute to one member, in the same run.

The clients take processors that members would have on hosts of their own, so what counts is the
members' own time: one member does 1 / s contributions a second on a processor, with s its processor
time for one, and three do 1 / m, with m the time of the one that has most to do. Uploads are placed
by what members had to do in the last seconds, so half as many of the same come first, unmeasured.

    python benchmarks/bench_network.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bench_members import (
    CONNECTIONS,
    TOKEN,
    WORKS,
    Work,
    environment_of,
    member,
    processor_time,
)
from goals import Goal
from network import Network, pump

from fcp_core.admin import AdminClient
from fcp_core.bench.run import run
from fcp_core.bench.settings import Load
from fcp_core.bench.task import BenchTask

POPULATION = "bench"
#: How much more three members shall do than one, if contributions are large.
LIMIT = 1.7


class Fronts:
    """Addresses of this host that lead to members: devices take no other one in plain HTTP."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def open(self, address: list[Any]) -> str:
        """Listen; *address* is to be filled in before anybody connects."""

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there = await asyncio.open_connection(*address)
            await asyncio.gather(_way(reader, there[1]), _way(there[0], writer))

        async def listen() -> int:
            server = await asyncio.start_server(connect, "localhost", 0, family=socket.AF_INET)
            return int(server.sockets[0].getsockname()[1])

        port = asyncio.run_coroutine_threadsafe(listen(), self._loop).result()
        return f"http://localhost:{port}/"

    def close(self) -> None:
        """Stop."""
        self._loop.call_soon_threadsafe(self._loop.stop)


async def _way(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        await pump(source, target)
    finally:
        target.close()


@dataclass(frozen=True)
class Member:
    """A member that runs.

    :param url: where devices of this host reach it.
    """

    url: str
    pid: int


@contextmanager
def members(count: int, network: Network, schema: str) -> Iterator[list[Member]]:
    """Start members, each in a namespace of its own."""
    environment, fronts = environment_of(network.url), Fronts()
    with ExitStack() as stack:
        stack.callback(fronts.close)
        found = []
        for _ in range(count):
            name, host = network.add()
            address: list[Any] = [host, 0]
            url = fronts.open(address)
            settings = [f"server.host={host}", f"server.member_address={host}:0"]
            settings += [f"server.external_url={url}"]
            within = ("ip", "netns", "exec", name)
            started = member(environment, schema, settings, within)
            address[1], pid = stack.enter_context(started)
            found.append(Member(url, pid))
        yield found


def measure(servers: list[Member], work: Work) -> tuple[float, list[float]]:
    """Return contributions a second, and each member's processor time for one, in seconds."""
    load = Load(work.clients, (b"",), CONNECTIONS, population=POPULATION, gzip=work.gzip)
    with AdminClient(servers[0].url, TOKEN) as client:
        # Until members know of each other what this work takes; it was another one before.
        run(client, replace(load, clients=work.clients // 2), BenchTask(work.elements))
        before = [processor_time(each.pid) for each in servers]
        report = run(client, load, BenchTask(work.elements))
        used = [processor_time(each.pid) for each in servers]
    if report.contributed != work.clients:
        raise RuntimeError(f"{report.contributed} of {work.clients} contributed: {report}")
    each = [(now - then) / work.clients for now, then in zip(used, before, strict=True)]
    return report.contributed / report.seconds, each


def figures(quick: bool) -> dict[tuple[int, str], tuple[float, list[float]]]:
    """Return what was measured, by the number of members and the work."""
    from fcp_postgres.testing import PostgresServer

    found = {}
    with PostgresServer({"fsync": "on"}) as database:
        network = Network(f"{database.folder}/.s.PGSQL.{database.port}")
        try:
            for count in (1, 3):
                with members(count, network, f"bench_{secrets.token_hex(4)}") as servers:
                    for work in WORKS:
                        clients = work.clients // 6 if quick else work.clients
                        given = replace(work, clients=clients)
                        found[count, work.name] = measure(servers, given)
        finally:
            network.close()
    return found


def gain(found: dict[tuple[int, str], tuple[float, list[float]]], work: Work) -> float:
    """Return how much more three members do than one, by the time of the busiest."""
    return sum(found[1, work.name][1]) / max(found[3, work.name][1])


def goals(quick: bool) -> list[Goal]:
    """Return what three members bring to one population; of small calls it has one owner."""
    found = figures(quick)
    return [
        Goal(
            "network",
            f"three members against one, one population, {work.name}, by CPU of the busiest",
            gain(found, work),
            LIMIT if work.elements > 1 else 0.9,
            at_most=False,
        )
        for work in WORKS
    ]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer contributions")
    found = figures(parser.parse_args().quick)
    print("| members | contributions | a second | ms of CPU each, by member | by CPU, times one |")
    print("|---|---|---|---|---|")
    for (count, name), (rate, cost) in found.items():
        work = next(work for work in WORKS if work.name == name)
        times = gain(found, work) if count > 1 else 1.0
        shown = " + ".join(f"{1000 * each:.2f}" for each in cost)
        print(f"| {count} | {name} | {rate:.1f} | {shown} | {times:.2f} |")


if __name__ == "__main__":
    main()
