"""Kept connections: ``http.client``'s, of which one sends a request before another's answer came.

What the standard library does not check is checked here: that an address names no user, and that a
length is one.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fcp_core.client.origins import Origin
from fcp_core.errors import UsageError
from fcp_core.protocol.joining import read_in_place

#: Idle connections that are kept to one host.
_KEPT = 8
#: What is sent or received at once; the time limit is for each piece.
_PIECE = 256 << 10
#: Up to this size there is room for a body as soon as its length is known.
_IN_PLACE = 64 << 20
#: How long the other side may take for each step of TLS's handshake.
_HANDSHAKE_SECONDS = 10.0


class TooLargeError(Exception):
    """An answer is larger than the device takes."""


class StaleError(Exception):
    """A kept connection ended before any of the answer came: the other side had closed it."""


class BadAnswerError(Exception):
    """An answer whose length is none, or that is cut short."""


class NoTLSError(Exception):
    """The other side does not speak TLS, or nothing that is trusted here; trying again is idle."""


@dataclass(frozen=True)
class Answer:
    """What came back.

    :param body: as it was sent, without the transfer coding.
    """

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class _Incoming(io.RawIOBase):
    """The bytes of answers as they come, header and framing too, counted and timed.

    Stands for the socket where the standard library would make a file of it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._room = 0
        self._end = 0.0

    def begin(self, room: int, seconds: float) -> None:
        """Allow an answer so many bytes and so much time."""
        self._room = room
        self._end = time.monotonic() + seconds

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a file of an answer."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, and wait for at least one byte.

        :raises TooLargeError: if there was more than the answer may have.
        :raises TimeoutError: if it takes too long.
        """
        left = self._end - time.monotonic()
        timeout = self._sock.gettimeout()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        if timeout is None or left < timeout:
            self._sock.settimeout(left)
        count = self._sock.recv_into(buffer)
        self._room -= count
        if self._room < 0:
            raise TooLargeError
        return count

    def close(self) -> None:
        """Leave the socket open: whoever owns it closes it."""


class _Requests(http.client.HTTPConnection):
    """Keeps a request's header, so that it can be sent in one piece with a body."""

    head = b""

    def send(self, data: Any) -> None:
        """Keep what would be sent."""
        self.head = data


class Connection:
    """One socket. Requests on it follow each other; the answer to one is read before the next.

    :param sock: connected.
    """

    def __init__(self, origin: Origin, sock: socket.socket) -> None:
        self.origin = origin
        self.sock = sock
        #: Whether another request may follow.
        self.reusable = True
        self._used = False
        self._http = _Requests(origin.host, origin.port)
        self._incoming: Any = _Incoming(sock)
        self._http.sock = self._incoming
        self._http.auto_open = 0

    def dropped(self) -> bool:
        """Whether the other side has closed it, or sent what nobody asked for."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
    ) -> None:
        """Send a request.

        A connection that breaks is not an error yet: a server that refuses a request may answer
        and close before it has read all.

        :param timeout: for each piece of it and of the answer, in seconds.
        :raises ValueError: if a header cannot be sent.
        :raises TimeoutError: if the other side does not take it.
        """
        if self.sock.gettimeout() != timeout:  # setting it costs a system call
            self.sock.settimeout(timeout)
        connection = self._http
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", self.origin.name)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        head, small = connection.head, len(body or b"") <= _PIECE
        try:
            self.sock.sendall(head + (body or b"") if small else head)
            if body is not None and not small:
                view = memoryview(body)
                for start in range(0, len(view), _PIECE):
                    self.sock.sendall(view[start : start + _PIECE])
        except TimeoutError:
            raise
        except OSError:
            self.reusable = False

    def receive(self, room: int, seconds: float) -> Answer:
        """Wait for the answer to a request.

        :param room: how many bytes it may have, all told.
        :param seconds: how long it may take.
        :raises TooLargeError: if it has more.
        :raises StaleError: if the connection served a request before, and ended without an answer.
        :raises BadAnswerError: if the answer's length is none, or it is cut short.
        :raises http.client.HTTPException: if it is malformed in another way.
        :raises TimeoutError: if it does not come.
        :raises OSError: if the connection breaks.
        """
        self._incoming.begin(room, seconds)
        try:
            response = self._http.getresponse()
        except ConnectionError:
            if self._used:
                raise StaleError from None
            raise
        self._used = True
        with response:
            self._check_length(response)
            body = self._body(response)
            if response.will_close or response.status < 200:
                self.reusable = False
        return Answer(response.status, response.headers, body)

    @staticmethod
    def _check_length(response: http.client.HTTPResponse) -> None:
        """Refuse an answer whose end cannot be told from a connection that broke.

        :raises BadAnswerError: if it is one.
        """
        lengths = set(response.headers.get_all("content-length", ()))
        if len(lengths) > 1 or not all(x.isascii() and x.isdigit() for x in lengths):
            raise BadAnswerError("its length is not one number")
        ends = "close" in response.headers.get("connection", "").lower() or response.version < 11
        if response.length is None and not response.chunked and not ends:
            raise BadAnswerError("it has no length, or is cut short")

    @staticmethod
    def _body(response: http.client.HTTPResponse) -> bytes:
        length = response.length
        if length is not None and length <= _PIECE:
            return response.read()
        if length is not None and length <= _IN_PLACE:
            found = read_in_place(response.readinto, length, _PIECE)
        else:
            body = io.BytesIO()  # a list of tiny chunks would take many times their size
            while piece := response.read1(_PIECE):
                body.write(piece)
            found = body.getvalue()
        if response.length:
            raise BadAnswerError("it is cut short")
        return found


class Pool:
    """Connections, kept for the next request to the same host. Thread-safe.

    :param ca_file: a PEM file of certificates to trust instead of the system's.
    :param certfile: a PEM certificate to show, with its key unless that is in *keyfile*.
    :raises UsageError: if that cannot be used.
    """

    def __init__(
        self,
        ca_file: str | None = None,
        certfile: str | None = None,
        keyfile: str | None = None,
    ) -> None:
        self._ca_file = ca_file
        self._certificate = None if certfile is None else (certfile, keyfile)
        if certfile is not None or ca_file is not None:
            self._context  # noqa: B018 (otherwise it is made when it is asked for)
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[Connection]] = {}
        # A pool that nobody closed closes its connections when it goes.
        weakref.finalize(self, _close_idle, self._idle)
        self._sockets: set[socket.socket] = set()
        self._down = False

    def take(
        self, origin: Origin, timeout: float, *, fresh: bool = False, exempt: bool = False
    ) -> Connection:
        """Return a connection, one that is kept or a new one.

        :param timeout: for connecting, in seconds.
        :param fresh: connect in any case.
        :param exempt: although the others were shut down, or are while it is in use.
        :raises OSError: if the host cannot be reached.
        :raises NoTLSError: if it does not speak TLS, or its certificate is not trusted.
        """
        while not fresh:
            with self._lock:
                kept = self._idle.get(origin)
                connection = kept.pop() if kept else None
                if connection is None:
                    break
                self._watch(connection.sock, exempt)
            if not connection.dropped():
                return connection
            self.drop(connection)
        return self._connect(origin, timeout, exempt)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection if another request may follow, else close it."""
        if connection.reusable:
            with self._lock:
                kept = self._idle.setdefault(connection.origin, [])
                if len(kept) < _KEPT:
                    kept.append(connection)
                    return
        self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        with self._lock:
            self._sockets.discard(connection.sock)
        connection.sock.close()

    def close(self) -> None:
        """Close every idle connection."""
        with self._lock:
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in idle:
            self.drop(connection)

    def shut_down(self) -> None:
        """Cut off whatever waits on a connection, now and later, but what is exempt."""
        with self._lock:
            self._down = True
            for sock in self._sockets:
                _cut(sock)

    def _watch(self, sock: socket.socket, exempt: bool) -> None:
        """Have a socket cut off or not when the others are. The lock is held."""
        if exempt:
            self._sockets.discard(sock)
        else:
            self._sockets.add(sock)

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        # A mistake of the device's owner is not a server that cannot be reached.
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:
            raise UsageError(
                f"the certificates to trust, {self._ca_file}, cannot be used: {error}."
            ) from None
        if self._certificate is not None:
            try:
                context.load_cert_chain(*self._certificate)
            except OSError as error:
                raise UsageError(
                    f"the client certificate {self._certificate[0]} cannot be used: {error}."
                ) from None
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _connect(self, origin: Origin, timeout: float, exempt: bool) -> Connection:
        # As bytes, which the socket module takes as they are: text it would encode with a codec
        # that takes longer to load than the connection to be made.
        address: Any = (origin.host.encode(), origin.port)
        sock = socket.create_connection(address, timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if origin.secure:
                sock = self._secured(sock, origin, timeout)
        except BaseException:
            sock.close()
            raise
        with self._lock:
            self._watch(sock, exempt)
            late = self._down and not exempt
        if late:
            _cut(sock)
        return Connection(origin, sock)

    def _secured(self, sock: socket.socket, origin: Origin, timeout: float) -> ssl.SSLSocket:
        """Return a socket after TLS's handshake.

        :raises NoTLSError: if the other side cannot be talked to so.
        :raises OSError: if the connection breaks.
        """
        sock.settimeout(min(timeout, _HANDSHAKE_SECONDS))
        try:
            return self._context.wrap_socket(sock, server_hostname=origin.host)
        except TimeoutError:
            problem = "no answer to TLS's handshake; is it a server that speaks plain http?"
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise
        except ssl.SSLCertVerificationError as error:
            problem = f"its certificate is not trusted: {error.verify_message}"
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            problem = f"no TLS with it ({reason}); is it a server that speaks plain http?"
        raise NoTLSError(problem)


def _close_idle(idle: dict[Origin, list[Connection]]) -> None:
    for kept in idle.values():
        for connection in kept:
            connection.sock.close()


def _cut(sock: socket.socket) -> None:
    # It may have been closed in the meantime, which is what was wanted.
    with contextlib.suppress(OSError):
        # The plain socket's own method: the TLS one would drop the TLS state under a thread that
        # is reading.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
