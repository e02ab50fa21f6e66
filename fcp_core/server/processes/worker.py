"""A worker process: receives requests and accumulates uploads; another process decides.

It is a fresh interpreter, started by the process that decides with one socket between the two. It
ends when that socket closes, as it does when that process dies; signals to the whole
group (a terminal's interrupt, a service manager's stop) are left to that process.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
from contextlib import suppress
from typing import Any, cast

import msgspec

from fcp_core.aggregation.engine import Engine, start_engine, stop_engine
from fcp_core.errors import UsageError
from fcp_core.plugins.config import Config
from fcp_core.plugins.manager import Plugins
from fcp_core.plugins.settings import ServerSettings
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import SystemClock
from fcp_core.server.http.admin_auth import AdminCheck
from fcp_core.server.http.frontend import Frontend
from fcp_core.server.http.limits import Limits
from fcp_core.server.http.listeners import bind
from fcp_core.server.http.tls import MemberTLS, ServerTLS
from fcp_core.server.logs import configure_logging
from fcp_core.server.own_process import serve_alone
from fcp_core.server.processes.folds import PROMPT, WorkerFolds
from fcp_core.server.processes.link import Link
from fcp_core.server.processes.remote_services import (
    RemoteMembers,
    RemoteServices,
    WorkerMetrics,
)
from fcp_core.server.processes.worker_process import BEAT, WorkerSettings
from fcp_core.server.services import Services

logger = logging.getLogger("fcp.server")

#: For how many seconds the process that decides may say nothing at least: it says so each second.
_PATIENCE = 3 * BEAT


class Worker:
    """An HTTP server, an engine, and the link to the process that decides."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.link = Link(
            {"start": self._start, "drain": self._drain, "measures": self._measures},
            self.ended.set,
            prompt=PROMPT,
        )
        #: Whether requests may be under way.
        self.serves = False
        self._watching: asyncio.Task[None] | None = None
        self._frontend: Frontend | None = None
        self._plugins: Plugins | None = None
        self._engine: Engine | None = None
        self._metrics: WorkerMetrics | None = None
        self._tls: ServerTLS | None = None
        self._member_tls: MemberTLS | None = None

    async def _start(self, settings: Any) -> None:
        """Listen.

        :raises StatusError: FAILED_PRECONDITION with what an operator can mend.
        """
        try:
            await self._begin(msgspec.convert(settings, WorkerSettings))
        except UsageError as error:
            raise StatusError(Code.FAILED_PRECONDITION, str(error)) from None

    async def _begin(self, settings: WorkerSettings) -> None:
        if settings.processors:
            os.sched_setaffinity(0, settings.processors)
        self._plugins = plugins = Plugins.load(**settings.recipe)
        config = plugins.config
        server_settings = ServerSettings.from_config(config)
        configure_logging(settings.log_levels.pop(""), server_settings.log_format)
        for name, level in settings.log_levels.items():
            logging.getLogger(name).setLevel(level)
        self._read_certificates(settings, server_settings, config)
        self._engine = engine = plugins.make_engine()
        folds = WorkerFolds(engine)
        self.link.serve(reload=self._reload, **folds.calls())
        if server_settings.metrics:
            self._metrics = WorkerMetrics(SystemClock(), self.link)
        await plugins.startup()
        await start_engine(engine)
        sockets = bind(
            settings.host,
            settings.port,
            family=socket.AddressFamily(settings.family),
            reuse_port=True,
        )
        members = await self._join(settings.lease_seconds)
        self._frontend = Frontend(
            cast(Services, RemoteServices(self.link, folds)),
            plugins.authenticate if plugins.authenticates else None,
            Limits.from_config(config),
            sockets,
            None if self._tls is None else self._tls.context,
            metrics=self._metrics,
            metrics_apart=settings.metrics_apart,
            admin_check=AdminCheck.from_config(config),
            threads=settings.threads,
            members=members,
            member_tls=self._member_tls,
            pages=config.get("pages"),
            url=settings.url,
        )
        self._frontend.start()
        if members is not None:
            self.link.serve(hang_up=self._hang_up)
        self._watch(members)
        self.serves = True
        serve_alone()
        logger.info("process %d of the server (pid %d) is ready", settings.number, os.getpid())

    def _read_certificates(
        self, settings: WorkerSettings, server_settings: ServerSettings, config: Config
    ) -> None:
        self._member_tls = MemberTLS.from_config(config)
        if settings.certfile is not None:
            self._tls = ServerTLS(
                settings.certfile,
                settings.keyfile,
                server_settings.client_ca,
                required=server_settings.certificate_required,
            )

    async def _join(self, lease_seconds: float | None) -> RemoteMembers | None:
        """Learn which populations are other members', if there are some."""
        if lease_seconds is None:
            return None
        members = RemoteMembers(self.link, SystemClock(), lease_seconds)
        self.link.serve(use_table=members.use)
        await members.look()
        return members

    async def _reload(self) -> None:
        """Read the certificate again; the process that decides says if it cannot be used."""
        with suppress(UsageError):
            for tls in (self._tls, self._member_tls):
                if tls is not None:
                    tls.reload()

    def _watch(self, members: RemoteMembers | None) -> None:
        """Say that this process lives, and watch the one that decides.

        If that sleeps for as long as a lease, another member has what was its, and answers. If
        there is none, its answer is waited for.
        """
        patience = math.inf if members is None else max(members.seconds, _PATIENCE)
        self._watching = asyncio.get_running_loop().create_task(
            self.link.watch(BEAT, patience, self.link.give_up)
        )

    async def _hang_up(self, url: str) -> None:
        """Break the calls to a member that says nothing any more."""
        assert self._frontend is not None  # it asked for this
        self._frontend.hang_up(url)

    async def _drain(self) -> None:
        """Stop accepting, and wait for the requests in progress."""
        if self._frontend is not None:
            await self._frontend.announce_stop()
            await self._frontend.stop()
        self.serves = False

    async def _measures(self) -> Any:
        """Return the metrics of this process."""
        return {} if self._metrics is None else self._metrics.dump()

    async def close(self) -> None:
        """Close the server, the engine and the link."""
        self.link.close()
        if self._watching is not None:
            self._watching.cancel()
        await self._drain()
        if self._engine is not None:
            await stop_engine(self._engine)
        if self._plugins is not None:
            await self._plugins.shutdown()


def main(descriptor: int) -> None:
    """Run until the process that decides closes the link.

    :param descriptor: of the socket to it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_run(socket.socket(fileno=descriptor)))


async def _run(connection: socket.socket) -> None:
    worker = Worker()
    await asyncio.get_running_loop().create_unix_connection(lambda: worker.link, sock=connection)
    await worker.ended.wait()
    if worker.serves:
        logger.error("the process of the server that decides is gone; this one ends, too")
        os._exit(1)  # nothing that is under way can come to an end
    await worker.close()
