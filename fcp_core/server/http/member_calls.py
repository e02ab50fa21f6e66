"""HTTP calls to other members, on connections that stay open."""

from __future__ import annotations

import asyncio
import ssl
import sys
import weakref
from collections import defaultdict
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient

#: How long it may take to connect to a member, in seconds.
CONNECT_TIME = 2.0
#: How many connections to a member are kept while nothing goes over them.
KEPT = 64


class MemberCall(HTTPMessageDelegate):
    """One call to another member; its answer is read as it comes.

    :param url: where that is called.
    :param reused: whether its connection was used before, and may be one that is closed.
    """

    def __init__(
        self, connections: MemberConnections, url: str, stream: IOStream, *, reused: bool
    ) -> None:
        self._connections = connections
        self.url = url
        self._stream = stream
        self.reused = reused
        parameters = HTTP1ConnectionParameters(
            max_header_size=1 << 20, max_body_size=sys.maxsize, decompress=False
        )
        self._http = HTTP1Connection(stream, True, parameters)
        loop = asyncio.get_running_loop()
        #: Done once the other one takes the body, or has an answer.
        self.goes_on: asyncio.Future[None] = loop.create_future()
        #: The answer's status and header.
        self.head: asyncio.Future[tuple[int, HTTPHeaders]] = loop.create_future()
        self._piece: Callable[[bytes], Awaitable[None] | None] | None = None
        self._ready = asyncio.Event()
        self._body = bytearray()
        self._whole = False
        self._reading: asyncio.Task[None] | None = None

    def send(self, method: str, uri: str, headers: HTTPHeaders, body: bytes = b"") -> None:
        """Send a request's header, and what there is of its body."""
        self._http.write_headers(RequestStartLine(method, uri, "HTTP/1.1"), headers, body or None)
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body, and wait until the other one takes it.

        :raises StreamClosedError: if the connection breaks.
        """
        await self._http.write(piece)

    def end_body(self) -> None:
        """Say that the body is complete."""
        self._http.finish()

    async def relay(self, piece: Callable[[bytes], Awaitable[None] | None]) -> bool:
        """Pass the body of the answer on as it comes; return whether it is whole.

        :param piece: takes a piece, and may have the next one wait.
        """
        self._piece = piece
        self._ready.set()
        if self._reading is not None:
            await self._reading
        return self._whole

    async def body(self) -> bytes:
        """Return the body of the answer.

        :raises StreamClosedError: if the connection breaks.
        """
        if not await self.relay(self._body.extend):
            raise StreamClosedError
        return bytes(self._body)

    def close(self) -> None:
        """Give up."""
        self._http.close()
        self._stream.close()
        self._ready.set()

    # What Tornado's connection tells.

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Take the status and the header of the answer."""
        assert isinstance(start_line, ResponseStartLine)  # a client receives no other
        if not self.goes_on.done():
            self.goes_on.set_result(None)
        if start_line.code == 100:
            return None
        if not self.head.done():
            self.head.set_result((start_line.code, headers))
        return self._wait()

    async def _wait(self) -> None:
        await self._ready.wait()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Pass on a piece of the answer."""
        return None if self._piece is None else self._piece(chunk)

    def finish(self) -> None:
        """Note that the answer is complete."""
        self._whole = True

    def on_connection_close(self) -> None:
        """Fail."""
        self._fail()

    async def _read(self) -> None:
        try:
            whole = await self._http.read_response(self)
        except Exception:  # whatever is wrong with an answer, there is none
            whole = False
        if whole and self.head.done():
            closes = self.head.result()[1].get("Connection", "").lower() == "close"
            stream = self._http.detach()
            if closes or not self._whole:
                stream.close()
            else:
                self._connections.keep(self.url, stream)
        else:
            self._stream.close()
        self._fail()

    def _fail(self) -> None:
        for future in (self.goes_on, self.head):
            if not future.done():
                future.set_exception(StreamClosedError())
                future.exception()  # nobody may ask


class MemberConnections:
    """The connections to the other members.

    :param tls: for those that speak HTTPS.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._client = TCPClient()
        self._kept: defaultdict[str, list[IOStream]] = defaultdict(list)
        #: Those that may be in progress.
        self._calls: weakref.WeakSet[MemberCall] = weakref.WeakSet()

    async def open(self, url: str) -> MemberCall:
        """Begin a call to a member.

        :param url: where it is called.
        :raises OSError: if there is no connection to it; StreamClosedError is one.
        """
        kept = self._kept[url]
        while kept:
            stream = kept.pop()
            if not stream.closed():
                stream.set_close_callback(None)
                return self._begun(MemberCall(self, url, stream, reused=True))
        return self._begun(MemberCall(self, url, await self.connect(url), reused=False))

    def _begun(self, call: MemberCall) -> MemberCall:
        self._calls.add(call)
        return call

    async def connect(self, url: str) -> IOStream:
        """Connect to a member.

        :raises OSError: if there is no connection to it; StreamClosedError is one.
        """
        address = urlsplit(url)
        try:
            stream = await self._client.connect(
                address.hostname or "",
                address.port or 80,
                ssl_options=self._tls if address.scheme == "https" else None,
                timeout=CONNECT_TIME,
            )
        except asyncio.TimeoutError:  # which is another class before Python 3.11
            raise StreamClosedError from None
        stream.set_nodelay(True)
        return stream

    def keep(self, url: str, stream: IOStream) -> None:
        """Keep a connection for the next call."""
        kept = self._kept[url]
        if stream.closed() or len(kept) >= KEPT:
            stream.close()
            return
        kept.append(stream)
        # A closed one is noticed only while somebody listens.
        stream.set_close_callback(lambda: kept.remove(stream) if stream in kept else None)

    def hang_up(self, url: str) -> None:
        """Break the calls to a member that says nothing any more, and what is kept for others.

        A connection does not tell: whose host is lost, or cut off, is waited for without an end.
        """
        for stream in list(self._kept[url]):
            stream.close()
        for call in [call for call in self._calls if call.url == url]:
            call.close()

    def close(self) -> None:
        """Close all, and break the calls that are in progress."""
        for call in list(self._calls):
            call.close()
        for kept in self._kept.values():
            for stream in list(kept):
                stream.close()
        self._client.close()
