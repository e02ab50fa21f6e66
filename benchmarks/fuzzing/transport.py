"""How a fuzzer's requests reach a server: over a socket, or past it.

:class:`Direct` gives a request to the server's handlers without a socket, which is many times
faster; :func:`send_raw` writes bytes to a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tornado.httputil import HTTPHeaders, HTTPInputError, RequestStartLine

from fcp_core.bench.answers import Answer, AnswerReader
from fcp_core.server.http.connections import BoundedHTTPServer


@dataclass(frozen=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def raw(self) -> bytes:
        """Return it as it goes over a socket."""
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"Content-Length: {len(self.body)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + self.body


class Direct:
    """Gives requests to handlers as Tornado's connections do, but without a connection.

    :param server: makes what takes a connection's requests.
    :param patience: seconds after which a request without an answer is an error.
    """

    def __init__(self, server: BoundedHTTPServer, patience: float = 30.0) -> None:
        self._server = server
        self._patience = patience

    async def send(self, request: Request, pieces: int = 1) -> Answer:
        """Return the answer to a request.

        :param pieces: in how many pieces the body comes.
        :raises asyncio.TimeoutError: if there is none in time.
        """
        try:
            return await asyncio.wait_for(self._send(request, pieces), self._patience)
        except HTTPInputError:  # Tornado's connection answers these by itself
            return Answer(400, b"")

    async def _send(self, request: Request, pieces: int) -> Answer:
        return await self._exchange(request, pieces, _Connection(request.body))

    async def _exchange(self, request: Request, pieces: int, connection: _Connection) -> Answer:
        stream: Any = connection.stream
        taken = self._server.connect(stream, "203.0.113.7")
        delegate = taken.start_request(connection, connection)
        headers = HTTPHeaders({"Host": "localhost"})
        for name, value in request.headers:
            headers.add(name, value)
        headers["Content-Length"] = str(len(request.body))
        line = RequestStartLine(request.method, request.path, "HTTP/1.1")
        await _settle(delegate.headers_received(line, headers))
        # What a handler has read itself, it does not get again.
        body = connection.stream.left[: int(headers["Content-Length"])]
        step = max(1, -(-len(body) // pieces))
        for start in range(0, len(body), step):
            if connection.done.done():
                break
            await _settle(delegate.data_received(bytes(body[start : start + step])))
        if not connection.done.done():
            delegate.finish()
        await connection.done
        return Answer(connection.status, bytes(connection.body))


class _Stream:
    """Stands for the stream of a connection, all of whose bytes have come."""

    def __init__(self, body: bytes) -> None:
        self.left = memoryview(body)

    async def read_into(self, buffer: memoryview, partial: bool = False) -> int:
        """Fill a buffer."""
        buffer[:] = self.left[: len(buffer)]
        self.left = self.left[len(buffer) :]
        return len(buffer)

    def write(self, data: bytes) -> None:
        """Take what tells a client to go on."""

    def close(self) -> None:
        """Never is slow."""


class _Connection:
    """Stands for a connection to one handler."""

    def __init__(self, body: bytes) -> None:
        self.stream = _Stream(body)
        self.status = 0
        self.body = bytearray()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Never closes."""

    def write_headers(
        self, start_line: Any, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> asyncio.Future[None]:
        """Take the answer's status and what comes with it."""
        self.status = start_line.code
        return self.write(chunk or b"")

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Take a part of the answer, which begins with its header if that was not given apart."""
        if not self.status:
            head, _, chunk = chunk.partition(b"\r\n\r\n")
            self.status = int(head.split()[1])
        self.body += chunk
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        written.set_result(None)
        return written

    def finish(self) -> None:
        """Take the end of the answer."""
        if not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        """Take the end of the connection."""
        self.finish()


async def _settle(result: Any) -> None:
    if result is not None:
        await result


async def send_raw(port: int, data: bytes, patience: float = 30.0) -> list[int]:
    """Write bytes to a server and close; return the status of each answer.

    :raises asyncio.TimeoutError: if the server does not close in time.
    """
    reader, writer = await asyncio.open_connection("localhost", port)
    try:
        writer.write(data)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), patience)
    except ConnectionError:
        answer = b""
    finally:
        writer.close()
    answers = AnswerReader()
    statuses = []
    try:
        found = answers.feed(answer)
        while found is not None:
            statuses.append(found.status)
            found = answers.feed(b"")
        last = answers.end()
    except (ValueError, ConnectionError):  # cut short: what came before counts
        return statuses
    return statuses if last is None else [*statuses, last.status]
