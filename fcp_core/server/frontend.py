"""The HTTP front: listens, serves, drains. It knows services, and nothing about rounds."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from fcp_core.errors import UsageError
from fcp_core.server.context import Authenticate, Context
from fcp_core.server.handlers import HealthHandler, RPCHandler, log_request
from fcp_core.server.limits import Limits
from fcp_core.server.media import DOWNLOAD, UPLOAD, DownloadHandler, UploadHandler

if TYPE_CHECKING:
    from fcp_core.server.services import Services

logger = logging.getLogger("fcp.server")

#: How often a free port is looked for that is free on every address of the host.
_PORT_TRIES = 10
#: How long connections may take to end once everything was cancelled, in seconds.
_CLOSE_TIME = 5.0


def bind(
    host: str,
    port: int,
    *,
    family: socket.AddressFamily = socket.AF_UNSPEC,
    reuse_port: bool = False,
) -> list[socket.socket]:
    """Return listening sockets for every address of *host*, all on one port.

    :param host: a name or an address; ``""`` is every interface.
    :param port: 0 takes one that is free.
    :param reuse_port: let other processes listen on the same port.
    :raises UsageError: if that cannot be; the message says why.
    """
    for left in reversed(range(_PORT_TRIES)):
        try:
            return bind_sockets(port, address=host, family=family, reuse_port=reuse_port)
        except (OSError, ValueError) as error:
            # A port that is free on the first address may be taken on the second.
            if port == 0 and left and isinstance(error, OSError):
                continue
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"the server cannot listen on {host or 'every interface'}, port {port}: {reason}."
            ) from None
    raise AssertionError("the last try returns or raises")


class Frontend:
    """One HTTP server on sockets that are bound already.

    :param authenticate: called with each protocol request's method, path, headers and peer.
    :param tls: serve HTTPS with this context; None is plain HTTP.
    """

    def __init__(
        self,
        services: Services,
        authenticate: Authenticate,
        limits: Limits,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._sockets = list(sockets)
        self._tls = tls
        self._limits = limits
        self._context = Context(services, authenticate, limits)
        self._http: HTTPServer | None = None

    @property
    def in_flight(self) -> int:
        """The bytes of bodies that are being received."""
        return self._context.in_flight.held

    def start(self) -> None:
        """Accept connections, on the running event loop."""
        shared = {"context": self._context}
        application = Application(
            [
                (UPLOAD + ".*", UploadHandler, shared),
                (DOWNLOAD + ".*", DownloadHandler, shared),
                ("/healthz|/readyz", HealthHandler, shared),
                (".*", RPCHandler, shared),
            ],
            log_function=log_request,
        )
        self._http = HTTPServer(
            application,
            ssl_options=self._tls,
            # A header somewhat over our limit is answered with 431; a huge one ends the connection.
            max_header_size=4 * self._limits.max_header,
            # Handlers that take a body set their own limit.
            max_body_size=self._limits.max_header,
            idle_connection_timeout=self._limits.idle_timeout,
        )
        self._http.add_sockets(self._sockets)

    async def stop(self) -> None:
        """Stop accepting, let requests end within ``drain_timeout``, cut off the rest."""
        self._context.stopping = True
        if self._http is None:
            for listener in self._sockets:
                listener.close()
        else:
            self._http.stop()
            await self._settle(self._limits.drain_timeout)
            if self._context.requests:
                logger.warning(
                    "%d requests did not end within %g s and are cut off",
                    len(self._context.requests),
                    self._limits.drain_timeout,
                )
                self._context.cancel_calls()
                await self._settle(_CLOSE_TIME)
            try:
                await asyncio.wait_for(self._http.close_all_connections(), _CLOSE_TIME)
            except asyncio.TimeoutError:
                logger.error("connections did not close within %g s", _CLOSE_TIME)
            await self._settle(_CLOSE_TIME)
            self._http = None
        self._context.executor.shutdown(wait=False, cancel_futures=True)

    async def _settle(self, timeout: float) -> None:
        if self._context.requests:
            await asyncio.wait(set(self._context.requests), timeout=timeout)
