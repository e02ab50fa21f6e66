"""The connections of clients: one strict reading of each request's header, and a limit on waiting.

Tornado takes some headers that proxies frame otherwise (lines that end in a bare line feed, equal
lengths given twice, chunks over HTTP/1.0). So the bytes of a header are checked before Tornado
parses them: no proxy reads another request than this server. RFC 9112, sections 2.2 to 7.1.
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream

from fcp_core.server.http.bodies import take_chunks
from fcp_core.server.http.rates import address_key, is_loopback
from fcp_core.server.seldom import Seldom

if TYPE_CHECKING:
    from fcp_core.server.http.handler import Handler
    from fcp_core.server.http.limits import Limits

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
#: A request's line and fields, with the empty line that ends them. One empty line in front is
#: allowed: some clients send one after a body.
_HEADER = re.compile(
    rb"(?:\r\n)?" + _TOKEN + rb" [\x21-\x7e\x80-\xff]+ HTTP/1\.([01])\r\n"
    rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)
#: What says how long the body is.
_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding):[\t ]*([^\r]*)", re.IGNORECASE)
#: How a connection begins that is meant for HTTPS: there would be no end of a header to wait for.
_TLS = rb"\A\x16\x03|"
#: More bytes than these digits can say, no disk has.
_LENGTH = re.compile(rb"[0-9]{1,18}")


def check_header(data: bytes) -> None:
    """Check a request's line and fields, with the empty line that ends them.

    :raises HTTPInputError: unless all readers agree on where the request ends.
    """
    header = _HEADER.fullmatch(data)
    if header is None:
        raise HTTPInputError("malformed request line or header")
    framing = _FRAMING.findall(data)
    if not framing:
        return
    if len(framing) > 1:
        raise HTTPInputError("the length of the body is given more than once")
    name, value = framing[0]
    value = value.rstrip(b"\t ")
    if len(name) == len(b"content-length"):
        if _LENGTH.fullmatch(value) is None:
            raise HTTPInputError("malformed Content-Length")
    elif value.lower() != b"chunked" or header[1] == b"0":
        raise HTTPInputError("the Transfer-Encoding is not chunked, or not for HTTP/1.0")


class Connection(HTTPMessageDelegate):
    """One client's connection: each of its requests, one after another, gets a handler.

    It is closed if the client keeps the server waiting too long. One timer serves all requests: it
    is set again only when it fires.

    :param makers: what makes handlers, by how what is asked for begins; the first counts.
    :param address: where it comes from.
    :ivar origin: the address that it counts for, or the network; empty: this machine.
    """

    def __init__(
        self, stream: IOStream, makers: Sequence[tuple[str, MakeHandler]], address: str
    ) -> None:
        self._stream = stream
        key = address_key(address)
        self.origin = "" if is_loopback(key) else key
        self._makers = makers
        self._loop = asyncio.get_running_loop()
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: When it fires.
        self._due = math.inf
        self._handler: Handler | None = None
        #: What Tornado has of the request that comes.
        self.http: HTTP1Connection

    def next_request(self, http: HTTP1Connection, timeout: float) -> None:
        """Wait for the next request's header, for so many seconds."""
        self.http = http
        self._handler = None
        self._deadline = deadline = self._loop.time() + timeout
        if deadline < self._due:
            self._set(deadline)

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Make the handler, and have it admit the request."""
        self._deadline = None
        line = cast(RequestStartLine, start_line)  # a server receives no other
        # RFC 9112, section 3.2: a server must refuse these, though nobody here asks for the host.
        host = headers.get("Host")
        if host is None and line.version != "HTTP/1.0":
            raise HTTPInputError("there is no Host header")
        if host is not None and "," in host:
            raise HTTPInputError("there are several Host headers")
        uri = line.path
        for begins, make in self._makers:
            if uri.startswith(begins):
                self._handler = handler = make(self, line.method, uri, headers)
                break
        handler.kept = (
            line.method == "POST" and line.version == "HTTP/1.1" and "Connection" not in headers
        )
        admitted = handler.begin()
        if "Transfer-Encoding" in headers:
            return take_chunks(self.http, handler, admitted)
        return admitted

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Pass on a piece of the body."""
        assert self._handler is not None  # the header came first
        return self._handler.data_received(chunk)

    def finish(self) -> None:
        """Have the request served: its body is complete."""
        assert self._handler is not None  # the header came first
        self._deadline = None
        self._handler.finish()

    def on_connection_close(self) -> None:
        """Pass on that the connection broke."""
        if self._handler is not None:
            self._handler.on_connection_close()

    # The time that a client may take.

    def limit(self, seconds: float) -> None:
        """Close the connection after so many seconds, unless the limit is changed before."""
        self._deadline = deadline = self._loop.time() + seconds
        if deadline < self._due:
            self._set(deadline)

    def end(self) -> None:
        """Stop the timer."""
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._due = math.inf

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = when
        self._timer = self._loop.call_at(when, self._check)

    def _check(self) -> None:
        self._timer = None
        self._due = math.inf
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._set(self._deadline)
        else:
            self._deadline = None
            self._stream.close()


#: Makes the handler of a request: of its connection, its method, what is asked for, its headers.
MakeHandler = Callable[[Connection, str, str, HTTPHeaders], "Handler"]


def without(prefix: str, makers: Sequence[tuple[str, MakeHandler]]) -> MakeHandler:
    """Return what makes the handlers of requests that begin with a prefix, as if they did not."""

    def make(connection: Connection, method: str, uri: str, headers: HTTPHeaders) -> Handler:
        uri = uri[len(prefix) :]
        maker = next(maker for begins, maker in makers if uri.startswith(begins))
        return maker(connection, method, uri, headers)

    return make


class Router(HTTPServerConnectionDelegate):
    """Knows the connections of a server.

    :param make: makes the handlers of requests.
    :param hot: makes those of requests that begin so, in its place.
    :param idle_timeout: how long a connection may take to send the next request's header.
    :param prefix: a path that devices put before all others, and a proxy may leave on or take off.
    """

    def __init__(
        self,
        make: MakeHandler,
        idle_timeout: float,
        hot: Mapping[str, MakeHandler] | None = None,
        prefix: str = "",
    ) -> None:
        makers = (*(hot or {}).items(), ("", make))
        if prefix:
            makers = (*makers[:-1], (f"{prefix}/", without(prefix, makers)), makers[-1])
        self._makers = makers
        self._idle_timeout = idle_timeout
        self._connections: dict[object, Connection] = {}

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        """Wait for the next request of a connection."""
        http = cast(HTTP1Connection, request_conn)
        connection = self._connections.get(server_conn)
        if connection is None:
            address = str(getattr(http.context, "remote_ip", ""))
            connection = Connection(http.stream, self._makers, address)
            self._connections[server_conn] = connection
        connection.next_request(http, self._idle_timeout)
        return connection

    def on_close(self, server_conn: object) -> None:
        """Stop the timer of a closed connection."""
        connection = self._connections.pop(server_conn, None)
        if connection is not None:
            connection.end()


class BoundedHTTPServer(HTTPServer):
    """Tornado's server with limits on its connections."""

    connections = 0

    def initialize(  # type: ignore[override]
        self, router: Router, limits: Limits, **options: Any
    ) -> None:
        """Leave the time limit of headers to the router."""
        super().initialize(router, **options)
        self.router = router
        self.conn_params.header_timeout = None
        self._limits = limits
        self._seldom = Seldom()
        #: How many connections each address has.
        self._of_address: Counter[str] = Counter()

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        """Take a connection, or close it if there are too many."""
        key = address_key(str(address[0]))
        limits, reached = self._limits, ""
        if self.connections >= limits.max_connections:
            reached = "max_connections"
        elif 0 < limits.max_connections_per_address <= self._of_address[key]:
            reached = "" if is_loopback(key) else "max_connections_per_address"
        if reached:
            most = getattr(limits, reached)
            self._seldom.warn(reached, f"there are {most} connections already ({reached})")
            stream.close()
            return
        self.connections += 1
        self._of_address[key] += 1
        check_headers_of(stream)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        """Forget a closed connection."""
        self.connections -= 1
        key = address_key(server_conn.context.remote_ip)  # type: ignore[attr-defined]
        self._of_address[key] -= 1
        if self._of_address[key] <= 0:
            del self._of_address[key]
        self.router.on_close(server_conn)
        super().on_close(server_conn)


def check_headers_of(stream: IOStream) -> None:
    """Have the headers of all requests on a connection checked, before anybody parses them."""
    read = stream.read_until_regex  # which Tornado's connections use for headers only

    async def read_header(regex: bytes, max_bytes: int | None = None) -> bytes:
        data = await read(_TLS + regex, max_bytes)
        check_header(data)
        return data

    stream.read_until_regex = read_header  # type: ignore[method-assign]


if sys.version_info >= (3, 12):

    def run_now(work: Coroutine[Any, Any, None]) -> Awaitable[None] | None:
        """Run *work* until it waits; return what is left of it, or None if it has ended.

        Most calls need not wait, and a task of their own would cost them two turns of the loop.

        :raises BaseException: whatever *work* raises.
        """
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        return task.result() if task.done() else task

else:

    def run_now(work: Coroutine[Any, Any, None]) -> Awaitable[None] | None:
        """Run *work* until it waits; return what is left of it, or None if it has ended.

        Until then it has no task: ``asyncio.current_task`` returns None.

        :raises BaseException: whatever *work* raises.
        """
        task = asyncio.current_task()
        if task is not None:
            loop = task.get_loop()
            asyncio.tasks._leave_task(loop, task)
        try:
            waited = work.send(None)
        except StopIteration:
            return None
        finally:
            if task is not None:
                asyncio.tasks._enter_task(loop, task)
        return _rest(work, waited)


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], waited: Any) -> Generator[Any, Any, None]:
    """Go on with what was begun and waits."""
    try:
        while True:
            try:
                result = yield waited
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:
                waited = work.throw(error)
            else:
                waited = work.send(result)
    except StopIteration:
        return
