"""Runs of virtual devices against ``fcp serve`` in a process of its own, for the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fcp_core.admin.client import AdminClient
from fcp_core.bench.load import allow_files
from fcp_core.bench.report import Report
from fcp_core.bench.run import run
from fcp_core.bench.server import OwnServer
from fcp_core.bench.settings import Load
from fcp_core.bench.task import BenchTask

#: What all servers here are set to.
SETTINGS = {"storage": "memory", "metrics": "yes"}


class Target:
    """A server that runs, and what is wanted of it."""

    def __init__(self, server: OwnServer, client: AdminClient) -> None:
        self._server = server
        self._client = client

    def load(
        self,
        clients: int,
        *,
        connections: int = 64,
        elements: int = 1,
        gzip: bool = False,
        broadcast: bool = False,
    ) -> Report:
        """Let devices contribute in one round.

        :raises RuntimeError: if not all of them did, or the result is not their sum.
        """
        load = Load(clients=clients, bodies=[b""], connections=connections, gzip=gzip)
        task = BenchTask(elements, broadcast=broadcast)
        report = run(self._client, load, task, server=self._server)
        if report.contributed < clients or report.task is None or report.task.exact is not True:
            raise RuntimeError(f"the round went wrong: {report.outcomes}, {report.task}")
        return report


@contextmanager
def own_server(most_connections: int = 64, **settings: str) -> Iterator[Target]:
    """Start a server, with further settings by name; ``__`` stands for a dot.

    :param most_connections: how many there may be at a time.
    """
    allow_files(most_connections)
    arguments = []
    for name, value in {**SETTINGS, **settings}.items():
        arguments += ["--set", f"{name.replace('__', '.')}={value}"]
    with OwnServer(arguments) as server, AdminClient(server.url, server.token) as client:
        yield Target(server, client)
