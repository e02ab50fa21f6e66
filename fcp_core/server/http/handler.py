"""One connection of a client, its requests, and what the handlers of all kinds have in common.

A handler is given what Tornado's HTTP/1 connection says, which parses headers, frames bodies and
keeps connections alive. ``tornado.web`` stands between the two elsewhere; here it would cost more
than the calls themselves. A request goes through these steps:

* its header is read strictly: Tornado takes some that proxies frame otherwise (lines that end in a
  bare line feed, equal lengths given twice, chunks over HTTP/1.0), and no proxy may read another
  request than this server (RFC 9112, sections 2.2 to 7.1);
* the :class:`Connection` makes the handler, which admits the request (:meth:`Handler.admit`) and
  makes room for its body, or refuses it;
* the body comes: in pieces, or, if it is large and its length was announced, straight off the
  socket into the buffer that the service will get;
* ``finish``: :meth:`Handler.serve` answers, at once if it need not wait.

A refused request is answered at once, and a bounded rest of its body is then read and dropped, so
that a reset does not eat the answer (:mod:`fcp_core.server.http.refusals`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import sys
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
)
from tornado.iostream import IOStream, SSLIOStream

from fcp_core.errors import plugin_errors
from fcp_core.protocol.status import StatusError
from fcp_core.server.http import answers, refusals
from fcp_core.server.http.bodies import take_body, take_chunks, take_piece
from fcp_core.server.http.body import BodyReader
from fcp_core.server.http.context import Context
from fcp_core.server.http.rates import address_key, is_loopback
from fcp_core.server.http.request import PLAIN, Channel, Request

logger = logging.getLogger("fcp.server")

#: How nearly all answers begin.
_OK = (
    "HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Type: application/x-protobuf\r\n"
    "Content-Length: %d\r\n\r\n"
)

#: What a request is counted as whose client went away.
GONE = 499

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
#: A request's line and fields, with the empty line that ends them. One empty line in front is
#: allowed: some clients send one after a body.
_HEADER = re.compile(
    rb"(?:\r\n)?" + _TOKEN + rb" [\x21-\x7e\x80-\xff]+ HTTP/1\.([01])\r\n"
    rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)
#: A field of such a header.
_FIELD = re.compile(r"\n([^:\r]+):[\t ]*([^\r]*)")
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
    if len(framing) > 1:
        raise HTTPInputError("the length of the body is given more than once")
    for name, value in framing:
        value = value.rstrip(b"\t ")
        if len(name) == len(b"content-length"):
            if _LENGTH.fullmatch(value) is None:
                raise HTTPInputError("malformed Content-Length")
        elif value.lower() != b"chunked" or header[1] == b"0":
            raise HTTPInputError("the Transfer-Encoding is not chunked, or not for HTTP/1.0")


def parse_header(data: bytes) -> tuple[str, HTTPHeaders]:
    """Return the line and the fields of what was checked: Tornado would check each once more."""
    text, headers = data.decode("latin-1").lstrip("\r\n"), HTTPHeaders()
    line = text[: text.index("\r")]
    for name, value in _FIELD.findall(text):
        give = headers.add if name in headers else headers.__setitem__
        give(name, value.rstrip("\t "))
    return line if " /" in line[:9] else refusals.origin_form(line, headers), headers


async def read_header(
    read: Callable[[bytes, int | None], Awaitable[bytes]],
    regex: bytes,
    max_bytes: int | None = None,
) -> bytes:
    """Read a request's header by what the stream has for that, and check it."""
    data = await read(_TLS + regex, max_bytes)
    check_header(data)
    return data


class Connection(HTTPServerConnectionDelegate, HTTPMessageDelegate):
    """One client's connection: each of its requests, one after another, gets a handler.

    :param makers: what makes handlers, by how what is asked for begins; the first counts.
    :param address: where it comes from.
    :param idle_timeout: how many seconds it may take to send the next request's header.
    :param on_end: called with it once it is closed.
    :ivar origin: the address that it counts for, or the network; empty: this machine.
    :ivar deadline: when it is closed, for keeping the server waiting, by the time of the loop.
    """

    #: What Tornado has of the request that comes.
    http: HTTP1Connection

    def __init__(
        self,
        stream: IOStream,
        makers: Sequence[tuple[str, MakeHandler]],
        address: str,
        idle_timeout: float,
        on_end: Callable[[Connection], None],
    ) -> None:
        self.stream, self.address = stream, address
        self.secure = isinstance(stream, SSLIOStream)
        key = address_key(address)
        self.origin = "" if is_loopback(key) else key
        self._makers, self._idle_timeout, self._on_end = makers, idle_timeout, on_end
        self.deadline = math.inf
        self._handler: Handler | None = None

    def start_request(self, server_conn: object, request_conn: object) -> HTTPMessageDelegate:
        """Wait for the next request's header."""
        self.http = cast(HTTP1Connection, request_conn)
        self.http._parse_headers = parse_header  # type: ignore[method-assign]
        self._handler = None
        self.limit(self._idle_timeout)
        return self

    def headers_received(self, start_line: Any, headers: HTTPHeaders) -> Awaitable[None] | None:
        """Make the handler, and have it admit the request."""
        self.deadline = math.inf
        line: RequestStartLine = start_line
        # RFC 9112, section 3.2: a server must refuse these, though nobody here asks for the host.
        host = headers.get("Host")
        if host is None and line.version != "HTTP/1.0":
            raise HTTPInputError("there is no Host header")
        if host is not None and "," in host:
            raise HTTPInputError("there are several Host headers")
        for begins, make in self._makers:
            if line.path.startswith(begins):
                self._handler = handler = make(self, line.method, line.path, headers)
                break
        handler.kept = (
            line.method == "POST"
            and line.version == "HTTP/1.1"
            and "Connection" not in headers
            and not handler.context.stopping
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
        self.deadline = math.inf
        self._handler.finish()

    def on_connection_close(self) -> None:
        """Pass on that the connection broke."""
        if self._handler is not None:
            self._handler.on_connection_close()

    def on_close(self, server_conn: object) -> None:
        """Be forgotten."""
        self._on_end(self)

    def limit(self, seconds: float) -> None:
        """Close the connection after so many seconds, unless the limit is changed before."""
        self.deadline = time.monotonic() + seconds


#: Makes the handler of a request: of its connection, its method, what is asked for, its headers.
MakeHandler = Callable[[Channel, str, str, HTTPHeaders], "Handler"]


class Handler(Request):
    """Takes one request and answers it; errors as a serialized ``google.rpc.Status``.

    :param connection: what it comes on.
    :param uri: what is asked for, as it was sent, escapes and all.
    """

    def __init__(
        self,
        context: Context,
        connection: Channel,
        method: str,
        uri: str,
        headers: HTTPHeaders,
    ) -> None:
        self.began = time.perf_counter()
        self.context = context
        self.method = method
        self.uri = uri
        self.path, _, self.query = uri.partition("?")
        self.headers = headers
        self.connection, self.http = connection, connection.http
        self.announced: int | None = None
        self.body: BodyReader | None = None
        #: A small body, which is neither counted nor compressed.
        self.small: bytearray | None = None
        #: Whether the connection goes on after a POST, and nothing need be said of that.
        self.kept = False
        #: The status of the answer, once its header is written.
        self.status = 0
        self.over = False
        #: How much more of the body is dropped; None: it is taken.
        self.dropping: int | None = None

    def abandon(self) -> None:
        """Release what the request holds. May be repeated."""
        if self.body is not None and not self.body.closed:
            self.body.close()

    #: Sends the header of an answer that is not sent whole.
    begin_answer = answers.begin

    def answer(
        self, body: bytes = b"", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the whole answer."""
        if status == 200 and headers is None and self.kept and self.answer_headers is PLAIN:
            if not self.over:
                # Tornado would check and join these headers for a tenth of a whole session's time.
                self.status = 200
                head = _OK % (answers.date(int(time.time())), len(body))
                self.http.write(head.encode("latin-1") + body)
                self.end_answer()
            return
        answers.whole(self, body, status, headers)

    def end_answer(self) -> None:
        """Complete the answer, and count the request."""
        if not self.over:
            self.connection.limit(self.context.limits.body_timeout)  # or until it is read
            self.http.finish()
            self.end(self.status)

    # What the connection tells.

    def begin(self) -> Awaitable[None] | None:
        """Admit the request; the connection waits for what is returned, then reads the body."""
        context, headers = self.context, self.headers
        context.busy.add(self)
        if "Transfer-Encoding" not in headers:
            self.announced = int(headers.get("Content-Length", "0"))
        if self.announced != 0:
            self.connection.limit(context.limits.idle_timeout)
        admitted = None
        try:
            if self.throttled and context.addresses.active:
                context.addresses.take(address_key(self.address))
            size = len(self.uri) + sum([len(k) + len(v) + 4 for k, v in headers.get_all()])
            if size > context.limits.max_header:
                raise refusals.long_header(size, context.limits.max_header)
            waits = self.admit()
            if waits is not None:
                admitted = run_now(waits)
        except Exception as error:
            refusals.refuse(self, refusals.as_status(self, error))
            return None
        if admitted is None and (self.body is None or not self.body.direct):
            return None
        return take_body(self, admitted)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body, or drop it if the request was refused."""
        if self.small is not None and self.dropping is None:
            self.small += chunk
            return None
        if self.body is None or self.dropping is not None:
            refusals.drop(self, chunk)
            return None
        try:
            rest = self.body.receive(chunk)
        except StatusError as error:
            refusals.refuse(self, error)
            return None
        return None if rest is None else take_piece(self, rest)

    def finish(self) -> None:
        """Serve the request: its body is complete."""
        if self.status:
            self.end_answer()
        elif not self.over:
            waits = run_now(self._serve())
            if waits is not None:
                self.http.set_close_callback(self.on_connection_close)
                self.context.serve(waits)

    async def _serve(self) -> None:
        try:
            await self.serve()
        except asyncio.CancelledError:
            refusals.fail(self, self.context.stopped())
        except plugin_errors(awaited=True) as error:
            refusals.fail(self, error)
        else:
            self.abandon()

    def on_connection_close(self) -> None:
        """Drop what was received; a service call in progress goes on."""
        self.end(GONE)
        self.abandon()

    def end(self, status: int) -> None:
        """Count the request and log it, at debug level."""
        if self.over:
            return
        self.over = True
        context = self.context
        context.busy.discard(self)
        if context.awaited:
            context.leave(self)
        if context.metrics is not None:
            small = len(self.small or ())
            received = small if self.body is None else self.body.received
            seconds = time.perf_counter() - self.began
            context.metrics.request(self.label, status, seconds, received)
        if logger.isEnabledFor(logging.DEBUG):
            refusals.log(self, status)


def run_now(work: Coroutine[Any, Any, None]) -> Awaitable[None] | None:
    """Run *work* until it waits; return what is left of it, or None if it has ended.

    Most calls need not wait, and a task of their own would cost them two turns of the loop. Before
    Python 3.12 it has no task until it waits: ``asyncio.current_task`` returns None.

    :raises BaseException: whatever *work* raises.
    """
    if sys.version_info >= (3, 12):
        eager = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        return eager.result() if eager.done() else eager
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
