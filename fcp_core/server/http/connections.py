"""The connections of a server: how many there are, whose, and how long they may keep it waiting."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tornado.http1connection import HTTP1ConnectionParameters, HTTP1ServerConnection
from tornado.httputil import HTTPHeaders
from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

from fcp_core.server.http import refusals
from fcp_core.server.http.handler import Connection, Handler, MakeHandler, read_header
from fcp_core.server.http.limits import Limits
from fcp_core.server.http.rates import address_key, is_loopback
from fcp_core.server.http.request import Channel
from fcp_core.server.throttled_log import ThrottledLog

#: The longest pause between two looks at who keeps the server waiting, in seconds.
_PAUSE = 1.0


def without(prefix: str, makers: Sequence[tuple[str, MakeHandler]]) -> MakeHandler:
    """Return what makes the handlers of requests that begin with a prefix, as if they did not."""

    def make(connection: Channel, method: str, uri: str, headers: HTTPHeaders) -> Handler:
        uri = uri[len(prefix) :]
        maker = next(maker for begins, maker in makers if uri.startswith(begins))
        return maker(connection, method, uri, headers)

    return make


class BoundedHTTPServer(TCPServer):
    """Serves HTTP/1 with limits on its connections.

    :param make: makes the handlers of requests.
    :param limits: say, among other things, how long a connection may take to send the next header.
    :param hot: makes those of requests that begin so, in its place.
    :param prefix: a path that devices put before all others, and a proxy may leave on or take off.
    :param ssl_options: serve HTTPS with this context; None is plain HTTP.
    """

    def __init__(
        self,
        make: MakeHandler,
        limits: Limits,
        hot: Mapping[str, MakeHandler] | None = None,
        prefix: str = "",
        ssl_options: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(ssl_options=ssl_options)
        makers = (*(hot or {}).items(), ("", make))
        if prefix:
            makers = (*makers[:-1], (f"{prefix}/", without(prefix, makers)), makers[-1])
        self._makers = makers
        self._limits = limits
        self._throttled_log = ThrottledLog()
        self._parameters = HTTP1ConnectionParameters(
            # A header somewhat over our limit is answered with 431; a huge one ends the connection.
            max_header_size=4 * limits.max_header,
            max_body_size=sys.maxsize,  # handlers count themselves
        )
        self._connections: dict[Connection, HTTP1ServerConnection] = {}
        #: How many connections each address has.
        self._of_address: Counter[str] = Counter()
        waits = (limits.idle_timeout, limits.body_timeout, refusals.LINGER_TIME)
        self._pause = min(_PAUSE, min(waits) / 4)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._connections)

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Take a connection, or close it if there are too many."""
        key = address_key(str(address[0]))
        limits, reached = self._limits, ""
        if len(self._connections) >= limits.max_connections:
            reached = "max_connections"
        elif 0 < limits.max_connections_per_address <= self._of_address[key]:
            reached = "" if is_loopback(key) else "max_connections_per_address"
        if reached:
            most = getattr(limits, reached)
            self._throttled_log.warn(reached, f"there are {most} connections already ({reached})")
            stream.close()
            return
        # Tornado would switch it on and off for each request. What is written is sent.
        stream.set_nodelay(True)
        stream.set_nodelay = bool  # type: ignore[method-assign,assignment]
        # Tornado's connections use it for headers only.
        stream.read_until_regex = partial(read_header, stream.read_until_regex)  # type: ignore[method-assign]
        connection = self.connect(stream, str(address[0]))
        served = HTTP1ServerConnection(stream, self._parameters, connection)
        self._connections[connection] = served
        self._of_address[key] += 1
        served.start_serving(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._pause, self._look)

    def connect(self, stream: IOStream, address: str) -> Connection:
        """Return what takes the requests of a connection."""
        idle_timeout = self._limits.idle_timeout
        return Connection(stream, self._makers, address, idle_timeout, self._forget)

    def stop(self) -> None:
        """Take no connections any more; an open one is closed with its next request's answer."""
        super().stop()
        self._parameters.no_keep_alive = True

    async def close_all_connections(self) -> None:
        """Close all connections, and wait until they are."""
        while self._connections:
            await next(iter(self._connections.values())).close()

    def _forget(self, connection: Connection) -> None:
        """Forget a closed connection."""
        if self._connections.pop(connection, None) is None:
            return
        key = address_key(connection.address)
        self._of_address[key] -= 1
        if self._of_address[key] <= 0:
            del self._of_address[key]
        if not self._connections and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """Close the connections that keep the server waiting too long."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        late = [connection for connection in self._connections if connection.deadline <= now]
        for connection in late:
            connection.stream.close()
        self._timer = loop.call_later(self._pause, self._look) if self._connections else None
