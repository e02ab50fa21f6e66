"""Gives each request its handler, and closes connections that are too slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from ssl import SSLError
from typing import Any, Protocol, cast
from urllib.parse import parse_qs

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import StreamClosedError

from fcp_core.server.http.framing import read_chunks

#: The most parameters of a query.
MAX_PARAMETERS = 100


class Closable(Protocol):
    """A stream that can be closed."""

    def close(self) -> None:
        """Close it."""


class RequestHandler(HTTPMessageDelegate):
    """Takes one request and answers it."""

    @property
    def answered(self) -> bool:
        """Whether an answer was begun."""
        raise NotImplementedError

    def end_answer(self) -> None:
        """Complete the answer."""
        raise NotImplementedError


class Watch:
    """Closes a connection whose client keeps the server waiting too long.

    One timer serves all requests of a connection: it is restarted only when it fires.
    """

    def __init__(self, stream: Closable) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def limit(self, seconds: float) -> None:
        """Close the connection after so many seconds, unless the limit is changed before."""
        self._deadline = deadline = self._loop.time() + seconds
        if self._timer is None or deadline < self._timer.when():
            self._set(deadline)

    def lift(self) -> None:
        """Remove the limit."""
        self._deadline = None

    def end(self) -> None:
        """Stop the timer."""
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._set(self._deadline)
        else:
            self._deadline = None
            self._stream.close()


class Request:
    """A request whose header has been received.

    :ivar path: as it was sent, escapes and all.
    :ivar began: when its header was complete, in seconds of ``time.perf_counter``.
    """

    __slots__ = ("began", "connection", "headers", "method", "path", "query", "uri", "watch")

    def __init__(
        self,
        start_line: RequestStartLine,
        headers: HTTPHeaders,
        connection: HTTP1Connection,
        watch: Watch,
    ) -> None:
        self.method = start_line.method
        self.uri = start_line.path
        self.path, _, self.query = self.uri.partition("?")
        self.headers = headers
        self.connection = connection
        self.watch = watch
        self.began = time.perf_counter()
        # RFC 9112, section 3.2: a server must refuse these, though nobody here asks for the host.
        host = headers.get("Host")
        if host is None and start_line.version != "HTTP/1.0":
            raise HTTPInputError("there is no Host header")
        if host is not None and "," in host:
            raise HTTPInputError("there are several Host headers")

    @property
    def address(self) -> str:
        """Where it came from."""
        return str(getattr(self.connection.context, "remote_ip", ""))

    @property
    def secure(self) -> bool:
        """Whether it came over TLS."""
        return getattr(self.connection.context, "protocol", "") == "https"

    @property
    def certificate(self) -> Mapping[str, Any] | None:
        """The client's verified certificate, as ``ssl`` gives it; None if there is none."""
        return cast("Mapping[str, Any] | None", self._certificate(binary=False))

    @property
    def certificate_bytes(self) -> bytes | None:
        """The client's verified certificate as DER; None if there is none."""
        return cast("bytes | None", self._certificate(binary=True))

    def _certificate(self, *, binary: bool) -> object:
        if not self.secure:
            return None
        try:
            return cast(Any, self.connection.stream).socket.getpeercert(binary) or None
        except SSLError:
            return None

    def parameters(self) -> dict[str, list[str]]:
        """Return the parameters of the query.

        :raises ValueError: if there are too many.
        """
        return parse_qs(
            self.query, keep_blank_values=True, errors="replace", max_num_fields=MAX_PARAMETERS
        )


class RequestDelegate(HTTPMessageDelegate):
    """Receives the header of a request, then passes everything to its handler."""

    def __init__(
        self,
        connection: HTTP1Connection,
        watch: Watch,
        find: Callable[[Request], RequestHandler],
    ) -> None:
        self._connection = connection
        self._watch = watch
        self._find = find
        self._handler: RequestHandler | None = None

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Make the handler."""
        self._watch.lift()
        line = cast(RequestStartLine, start_line)  # a server receives no other
        self._handler = self._find(Request(line, headers, self._connection, self._watch))
        admitted = self._handler.headers_received(start_line, headers)
        if "Transfer-Encoding" in headers:
            return self._take_chunks(self._handler, admitted, headers)
        return admitted

    async def _take_chunks(
        self, handler: RequestHandler, admitted: Awaitable[None] | None, headers: HTTPHeaders
    ) -> None:
        """Take a chunked body: the connection would answer a malformed one a second time."""
        if admitted is not None:
            await admitted
        stream = self._connection.stream
        if headers.pop("Expect", "").lower() == "100-continue" and not handler.answered:
            stream.write(b"HTTP/1.1 100 (Continue)\r\n\r\n")
        try:
            async for piece in read_chunks(stream):
                rest = handler.data_received(piece)
                if rest is not None:
                    await rest
        except HTTPInputError:
            if not handler.answered:
                raise
            handler.end_answer()  # before the body has ended, so the connection is closed
        except StreamClosedError:
            self._connection.detach()
            handler.on_connection_close()
        # Nothing is left to read.
        del headers["Transfer-Encoding"]

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Pass on a piece of the body."""
        assert self._handler is not None  # the header came first
        return self._handler.data_received(chunk)

    def finish(self) -> None:
        """Pass on that the body is complete."""
        assert self._handler is not None  # the header came first
        self._handler.finish()

    def on_connection_close(self) -> None:
        """Pass on that the connection broke."""
        if self._handler is not None:
            self._handler.on_connection_close()


class Router(HTTPServerConnectionDelegate):
    """Gives each request of each connection its handler, and closes connections that idle.

    :param find: makes the handler of a request.
    :param idle_timeout: how long a connection may take to send the next request's header.
    """

    def __init__(self, find: Callable[[Request], RequestHandler], idle_timeout: float) -> None:
        self._find = find
        self._idle_timeout = idle_timeout
        self._watches: dict[object, Watch] = {}

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        """Wait for the next request of a connection."""
        connection = cast(HTTP1Connection, request_conn)
        watch = self._watches.get(server_conn)
        if watch is None:
            watch = self._watches[server_conn] = Watch(connection.stream)
        watch.limit(self._idle_timeout)
        return RequestDelegate(connection, watch, self._find)

    def on_close(self, server_conn: object) -> None:
        """Stop the timer of a closed connection."""
        watch = self._watches.pop(server_conn, None)
        if watch is not None:
            watch.end()
