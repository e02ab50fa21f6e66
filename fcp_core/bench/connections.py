"""HTTP/1.1 for many virtual devices in one process: little of it, and cheap.

A library's client costs about as much as the server that it measures. This one knows what a device
needs: one request at a time on a kept connection, ready-made bodies, and answers with a length, in
chunks, or up to the end of the connection.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ssl
from collections import deque
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from fcp_core.bench.answers import Answer, AnswerReader
from fcp_core.errors import UsageError


@dataclass(frozen=True)
class Origin:
    """Where connections go.

    :param header: the ``Host`` line, with its end.
    """

    host: str
    port: int
    secure: bool
    header: str

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(url: str) -> Origin:
        """Return the origin of an address.

        :param url: without a path, so that there are only a few.
        :raises ValueError: if it is none that a device could use.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http:// or https:// address")
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        return Origin(parts.hostname, port, secure, f"Host: {parts.netloc}\r\n")


class Connection(asyncio.Protocol):
    """A kept connection with one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._reader = AnswerReader()
        #: Whether another request can be sent.
        self.reusable = True
        self.bytes_received = 0

    async def exchange(self, head: bytes, body: bytes) -> Answer:
        """Send a request and return its answer.

        :raises ConnectionError: if the connection ends before the answer does.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._waiter = self._loop.create_future()
        if len(body) > _JOINED:
            self._transport.write(head)
            self._transport.write(body)
        else:
            self._transport.write(head + body)
        try:
            return await self._waiter
        except asyncio.CancelledError:
            self.reusable = False
            raise

    def close(self) -> None:
        """Close it."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: an answer without a length is complete now, any other is lost."""
        self.reusable = False
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        try:
            answer = self._reader.end()
        except ConnectionResetError as error:
            waiter.set_exception(error)
            return
        if answer is None:
            waiter.set_exception(ConnectionResetError("the server closed the connection"))
        else:
            waiter.set_result(answer)

    def data_received(self, data: bytes) -> None:
        """Take a piece of an answer."""
        self.bytes_received += len(data)
        try:
            answer = self._reader.feed(data)
        except ValueError as error:
            self._fail(error)
            return
        if answer is None:
            return
        if not self._reader.reusable:
            self.reusable = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)

    def _fail(self, error: Exception) -> None:
        self.reusable = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionError(str(error)))
        if self._transport is not None:
            self._transport.abort()


#: Bodies up to this size are sent in one piece with their header.
_JOINED = 16 << 10


@dataclass
class Tally:
    """What many :class:`Connections` did.

    :param opened: how many connections were made.
    :param bytes_received: how many bytes came, headers among them.
    """

    opened: int = 0
    bytes_received: int = 0


class Connections:
    """Kept connections by where they go; a new one is made if none is free.

    :param tls: for ``https://``.
    :param tally: where they are counted.
    """

    def __init__(self, tls: ssl.SSLContext | None, tally: Tally) -> None:
        self._tls = tls
        self._tally = tally
        self._free: dict[Origin, deque[Connection]] = {}
        self._all: set[Connection] = set()

    async def exchange(self, origin: Origin, head: bytes, body: bytes) -> Answer:
        """Send a request on a free connection and return its answer.

        A kept connection that the server closed in the meantime is replaced.

        :raises UsageError: if this process may not open so many files.
        :raises OSError: if the server cannot be reached or closes the connection.
        """
        while True:
            connection = self._take(origin)
            kept = connection is not None
            if connection is None:
                connection = await self._open(origin)
            try:
                answer = await connection.exchange(head, body)
            except ConnectionError:
                self._drop(connection)
                if kept:
                    continue
                raise
            except asyncio.CancelledError:
                self._drop(connection)
                raise
            if connection.reusable:
                self._free[origin].append(connection)
            else:
                self._drop(connection)
            return answer

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._all):
            self._drop(connection)

    def _take(self, origin: Origin) -> Connection | None:
        free = self._free.setdefault(origin, deque())
        while free:
            connection = free.pop()
            if connection.reusable:
                return connection
            self._drop(connection)
        return None

    async def _open(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                Connection, origin.host, origin.port, ssl=self._tls if origin.secure else None
            )
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise too_many_files(self._tally.opened) from None
            raise
        self._tally.opened += 1
        self._all.add(connection)
        return connection

    def _drop(self, connection: Connection) -> None:
        if connection in self._all:
            self._all.remove(connection)
            self._tally.bytes_received += connection.bytes_received
        connection.close()


def split(url: str) -> tuple[Origin, str]:
    """Return the origin of an address, and its path with the slash before it.

    :raises ValueError: as :meth:`Origin.of`.
    """
    at = url.find("/", 8)
    return (Origin.of(url), "") if at < 0 else (Origin.of(url[:at]), url[at:])


def too_many_files(connections: int) -> UsageError:
    """Return the error for a process that may not open one file for each connection."""
    return UsageError(
        f"this process may not open the files that {connections} connections need: allow more "
        "(ulimit -n), or use fewer (--connections; --keep if many devices wait)."
    )
