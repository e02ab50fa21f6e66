"""The HTTP server: serves and drains. It knows services, and nothing about rounds."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tornado.httputil import HTTPHeaders

from fcp_core.admin.api import PREFIX
from fcp_core.server.http.admin import AdminHandler
from fcp_core.server.http.admin_auth import AdminCheck
from fcp_core.server.http.calls import RPCHandler, UploadHandler
from fcp_core.server.http.connections import BoundedHTTPServer
from fcp_core.server.http.context import Authenticate, Context
from fcp_core.server.http.downloads import DownloadHandler
from fcp_core.server.http.handler import Handler, MakeHandler
from fcp_core.server.http.limits import Limits
from fcp_core.server.http.links import LINKS, LinkHandler, dial
from fcp_core.server.http.metrics import ServerMetrics
from fcp_core.server.http.pages import HealthHandler, MetricsHandler, NothingHandler
from fcp_core.server.http.passing import DOWNLOAD, UPLOAD
from fcp_core.server.http.plugin_pages import PagesHandler, name_of
from fcp_core.server.http.request import Channel
from fcp_core.server.http.routed import from_members, routed
from fcp_core.server.http.shared_admin import OwnAdmin, SharedAdmin
from fcp_core.server.http.tls import MemberTLS
from fcp_core.server.logs import hide_addresses
from fcp_core.server.processes.link import Link
from fcp_core.server.processes.member_links import MemberLinks
from fcp_core.server.services.members import Members
from fcp_core.server.services.routing import Routes

if TYPE_CHECKING:
    from fcp_core.server.services import Services

logger = logging.getLogger("fcp.server")

#: How long connections may take to end once everything was cancelled, in seconds.
_CLOSE_TIME = 5.0


class Frontend:
    """One HTTP server on sockets that are bound already.

    :param authenticate: called with each protocol request's method, path, headers and peer; None:
        nobody says who sends one.
    :param tls: serve HTTPS with this context; None is plain HTTP.
    :param metrics: what is served at ``/metrics``; None: nothing.
    :param metrics_sockets: where that is served, in plain HTTP, and nowhere else; none: with
        everything else.
    :param metrics_apart: whether it is served by another process only.
    :param admin_check: who may use the admin API; None: there is none.
    :param threads: how many decompress at a time; None: as many as there are processors.
    :param members: know which populations are another member's; None: none is.
    :param member_sockets: where other members pass calls on.
    :param member_tls: what they are called with, and call; None is plain HTTP.
    :param pages: the names of the pages of plugins that are served, if there is an admin API.
    :param url: where devices reach the server; the path in it may stand before all others.
    :param links: to other members, for whom this one receives uploads; None: it does not.
    :param folder: where large bodies lie; None: in memory.
    """

    def __init__(
        self,
        services: Services,
        authenticate: Authenticate | None,
        limits: Limits,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None = None,
        metrics: ServerMetrics | None = None,
        metrics_sockets: Sequence[socket.socket] = (),
        metrics_apart: bool = False,
        admin_check: AdminCheck | None = None,
        threads: int | None = None,
        members: Routes | None = None,
        member_sockets: Sequence[socket.socket] = (),
        member_tls: MemberTLS | None = None,
        pages: Sequence[str] = (),
        url: str = "/",
        links: MemberLinks | None = None,
        folder: Path | None = None,
    ) -> None:
        self._prefix = urlsplit(url).path.rstrip("/")
        self._sockets = list(sockets)
        self._member_sockets = list(member_sockets)
        self._tls = tls
        self._limits = limits
        self._context = Context(
            services,
            authenticate,
            limits,
            metrics,
            threads,
            secure=tls is not None,
            members=members,
            member_tls=None if member_tls is None else member_tls.client,
            folder=folder,
        )
        self._links = links
        self._member_tls = None if member_tls is None else member_tls.server.context
        #: What answers admin calls for all members; None: this server's does.
        self.shared_admin: SharedAdmin | None = None
        #: What answers those that other members pass on, or ask; None as before.
        self._own_admin: OwnAdmin | None = None
        if isinstance(members, Members):
            self._own_admin = OwnAdmin(services.admin, members)
            self.shared_admin = SharedAdmin(
                services.admin, members, self._context.member_connections
            )
        self._metrics = metrics
        self._metrics_sockets = list(metrics_sockets)
        self._metrics_here = metrics is not None and not (metrics_sockets or metrics_apart)
        self._http: BoundedHTTPServer | None = None
        self._metrics_http: BoundedHTTPServer | None = None
        self._member_http: BoundedHTTPServer | None = None
        self._check = admin_check
        self._pages = tuple(pages)

    async def dial(self, url: str, member_id: str, link: Link) -> None:
        """Open a connection to another member for a link.

        :raises OSError: if there is none.
        """
        members, links = self._context.members, self._links
        assert members is not None  # only members dial
        assert links is not None
        keys = lambda: members.table.secrets  # noqa: E731
        await dial(self._context.member_connections, keys, links.spawn, url, member_id, link)

    def hang_up(self, url: str) -> None:
        """Break the calls to a member that says nothing any more."""
        self._context.member_connections.hang_up(url)

    def room(self) -> int:
        """Return how many bytes of uploads there is room for."""
        return self._context.uploads.room()

    @property
    def has_admin(self) -> bool:
        """Whether there is an admin API."""
        return self._check is not None

    @property
    def in_flight(self) -> int:
        """The bytes of bodies that are being received."""
        return self._context.in_flight.held + self._context.calls.held

    def start(self) -> None:
        """Accept connections, on the running event loop."""
        hide_addresses()
        make: MakeHandler = self._make
        hot: dict[str, MakeHandler] = {
            "/v1/": partial(RPCHandler, self._context),
            UPLOAD: partial(UploadHandler, self._context),
            DOWNLOAD: partial(DownloadHandler, self._context),
        }
        if self._member_sockets:
            makers: dict[str, MakeHandler] = {**hot, PREFIX: self._make_admin}
            if self._links is not None:
                makers[LINKS] = partial(LinkHandler, self._links, self._context)
            self._member_http = BoundedHTTPServer(
                from_members(self._context, {**makers, "": make}),
                self._limits,
                ssl_options=self._member_tls,
            )
            self._member_http.add_sockets(self._member_sockets)
        if self._context.members is not None:
            linked = {} if self._links is None else {UPLOAD: self._links.at}
            hot = {
                begins: routed(self._context, maker, linked=linked.get(begins))
                for begins, maker in hot.items()
            }
            make = routed(self._context, make)
        self._http = BoundedHTTPServer(make, self._limits, hot, self._prefix, self._tls)
        self._http.add_sockets(self._sockets)
        if self._metrics_sockets:
            self._metrics_http = BoundedHTTPServer(self._make_metrics, self._limits)
            self._metrics_http.add_sockets(self._metrics_sockets)
        if self._metrics is not None:
            front = self._http
            self._metrics.watch(lambda: self.in_flight, lambda: front.connections)

    def _make(self, connection: Channel, method: str, uri: str, headers: HTTPHeaders) -> Handler:
        """Make the handler of what no device asks for."""
        path, request = uri.partition("?")[0], (connection, method, uri, headers)
        context = self._context
        if path in ("/healthz", "/readyz"):
            return HealthHandler(context, *request)
        if path == "/metrics" and self._metrics_here:
            return MetricsHandler(context, *request)
        if self._check is not None and (path == PREFIX or path.startswith(f"{PREFIX}/")):
            admin: Any = self.shared_admin or context.services.admin
            return AdminHandler(context, admin, self._check, *request)
        name = name_of(path, self._pages)
        if self._check is not None and name is not None:
            return PagesHandler(context, context.services.pages, self._check, name, *request)
        return RPCHandler(context, *request)

    def _make_admin(
        self, connection: Channel, method: str, uri: str, headers: HTTPHeaders
    ) -> Handler:
        """Make the handler of an admin call that another member passed on, or asks."""
        admin: Any = self._own_admin or self._context.services.admin
        request = (connection, method, uri, headers)
        return AdminHandler(self._context, admin, self._check, *request)

    def _make_metrics(
        self, connection: Channel, method: str, uri: str, headers: HTTPHeaders
    ) -> Handler:
        """Make the handler of a request where there is nothing but metrics."""
        kind = MetricsHandler if uri.partition("?")[0] == "/metrics" else NothingHandler
        return kind(self._context, connection, method, uri, headers)

    async def announce_stop(self, seconds: float = 0.0) -> None:
        """Go on for a while, with ``/readyz`` saying that this will end.

        :param seconds: how long; ``drain_notice`` if that is longer, ``drain_timeout`` at most.
        """
        self._context.stopping = True
        if self._http is not None:
            limits = self._limits
            await asyncio.sleep(min(max(seconds, limits.drain_notice), limits.drain_timeout))

    async def stop(self) -> None:
        """Stop accepting, let requests end within ``drain_timeout``, then close the rest."""
        self._context.stopping = True
        if self._metrics is not None:
            self._metrics.stop()
        if self._http is None:
            for listener in (*self._sockets, *self._metrics_sockets, *self._member_sockets):
                listener.close()
        else:
            self._http.stop()
            if self._check is not None:
                self._context.services.admin.release()
            if not await self._context.settle(self._limits.drain_timeout):
                logger.warning(
                    "some requests did not end within %g s and are cut off",
                    self._limits.drain_timeout,
                )
                self._context.cancel_calls()
                await self._context.settle(_CLOSE_TIME)
            try:
                await asyncio.wait_for(self._http.close_all_connections(), _CLOSE_TIME)
            except asyncio.TimeoutError:
                logger.error("connections did not close within %g s", _CLOSE_TIME)
            await self._context.settle(_CLOSE_TIME)
            self._http = None
        for server in (self._metrics_http, self._member_http):
            if server is not None:
                server.stop()
                await server.close_all_connections()
        self._metrics_http = self._member_http = None
        self._context.member_connections.close()
        for executor in (self._context.executor, self._context.inflating):
            executor.shutdown(wait=False, cancel_futures=True)
        self._context.buffers.close()
