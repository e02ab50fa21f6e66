"""HTTP/1.1 over kept connections: a request out, its answer in, with a pause in between if wanted.

A device makes half a dozen small requests a session. What a general HTTP library spends on each of
them was most of what a session of a small task cost the device (see docs/decisions.md); this knows
what the protocol needs and nothing else: no proxies, no cookies, no request body of unknown length.
"""

from __future__ import annotations

import contextlib
import functools
import re
import select
import socket
import ssl
import threading
import time
import urllib.parse
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fcp_core.errors import UsageError

#: Idle connections that are kept to one host.
_KEPT = 8
#: Bodies up to this size leave with their header, in one packet or a few.
_JOINED = 64 << 10
#: What is sent or received at once; the time limit is for each piece.
_PIECE = 256 << 10
_MAX_HEAD = 64 << 10
_MAX_LINE = 4 << 10

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)
_TARGET = re.compile(r"/[!-~]*")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\r\n\0]*")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n]*)?")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


class MalformedError(Exception):
    """An address or a header that cannot be sent."""


class BadAnswerError(Exception):
    """An answer that is not HTTP/1.1, or is cut short."""


class StaleError(Exception):
    """A kept connection ended before any of the answer came: the other side had closed it."""


@dataclass(frozen=True)
class Origin:
    """A host as it is connected to.

    :param name: as it stands in the header, with the port if that is not the scheme's.
    """

    secure: bool
    host: str
    port: int
    name: str


@dataclass(frozen=True)
class Answer:
    """What came back.

    :param headers: by name in lower case; several of one name are joined by commas.
    :param body: as it was sent, without the transfer coding.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def split_url(url: str) -> tuple[Origin, str]:
    """Return where a URL leads and what is asked for there.

    :raises MalformedError: if it is no absolute HTTP or HTTPS address, or names a user.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise MalformedError(f"{url!r} is not an HTTP address")
    scheme, authority, target = found.groups()
    if not target.startswith("/"):
        target = "/" + target
    if not _TARGET.fullmatch(target):
        target = urllib.parse.quote(target, safe="%/?:@!$&'()*+,;=~[]")
    return _origin(scheme.lower(), authority), target


@functools.lru_cache(maxsize=1024)
def _origin(scheme: str, authority: str) -> Origin:
    if "@" in authority:
        # What stands before it looks like a host and is none.
        raise MalformedError(f"{authority!r} names a user, which an address here may not")
    try:
        parts = urllib.parse.urlsplit(f"{scheme}://{authority}")
        host, port = parts.hostname, parts.port
        name = host or ""
        if not name.isascii():
            name = name.encode("idna").decode()
    except ValueError as error:
        raise MalformedError(f"{authority!r} is not a host: {error}") from error
    if not name or not _TARGET.fullmatch("/" + name):
        raise MalformedError(f"{authority!r} is not a host")
    usual = 443 if scheme == "https" else 80
    shown = f"[{name}]" if ":" in name else name
    if port not in (None, usual):
        shown += f":{port}"
    return Origin(scheme == "https", name, usual if port is None else port, shown)


def request_head(
    method: str, origin: Origin, target: str, headers: Mapping[str, str], length: int | None
) -> bytes:
    """Return a request's header as bytes.

    :param length: of the body; None: there is none.
    :raises MalformedError: if a header of *headers* cannot be sent.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {origin.name}"]
    for name, value in headers.items():
        line = f"{name}: {value}"
        if not _HEADER.fullmatch(line):
            raise MalformedError(f"the header {name!r} cannot be sent")
        lines.append(line)
    if length is not None:
        lines.append(f"Content-Length: {length}")
    try:
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    except UnicodeEncodeError as error:
        raise MalformedError(f"a header cannot be sent: {error}") from error


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
        self._rest = b""
        self._deadline: float | None = None

    def set_limit(self, seconds: float, deadline: float | None = None) -> None:
        """Bound how long sending or receiving a piece may take.

        :param deadline: by the monotonic clock, for everything together; None: there is none.
        """
        self._deadline = deadline
        if self.sock.gettimeout() != seconds:
            self.sock.settimeout(seconds)

    def dropped(self) -> bool:
        """Whether the other side has closed it, or sent what nobody asked for."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, head: bytes, body: bytes) -> None:
        """Send a request.

        A connection that breaks is not an error yet: a server that refuses a request may answer
        and close before it has read all.

        :raises TimeoutError: if the other side does not take it.
        """
        try:
            if len(body) <= _JOINED:
                self._send(head + body if body else head)
                return
            view = memoryview(body)
            self._send(head + bytes(view[:_JOINED]))
            for start in range(_JOINED, len(view), _PIECE):
                self._send(view[start : start + _PIECE])
        except TimeoutError:
            raise
        except OSError:
            self.reusable = False

    def receive(self, method: str) -> Answer:
        """Wait for the answer to a request.

        :raises StaleError: if the connection served a request before, and ended without an answer.
        :raises BadAnswerError: if the answer is malformed or cut short.
        :raises TimeoutError: if it does not come.
        :raises OSError: if the connection breaks.
        """
        status, headers, persistent = self._head()
        while status < 200:
            if status == 101:
                raise BadAnswerError("it changes to another protocol, unasked")
            status, headers, persistent = self._head()
        self._used = True
        if not persistent:
            self.reusable = False
        body = b"" if status in (204, 304) or method == "HEAD" else self._body(headers)
        if self._rest:
            self.reusable = False
        return Answer(status, headers, body)

    def _send(self, data: bytes | memoryview) -> None:
        self._watch()
        self.sock.sendall(data)

    def _receive(self, most: int = _PIECE) -> bytes:
        self._watch()
        return self.sock.recv(most)

    def _watch(self) -> None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self.sock.settimeout(left)

    def _head(self) -> tuple[int, dict[str, str], bool]:
        """Return status, headers, and whether the connection stays open."""
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _MAX_HEAD:
                raise BadAnswerError("its header is too long")
            try:
                piece = self._receive(_JOINED)
            except ConnectionError:
                if self._used and not data:
                    raise StaleError from None
                raise
            if not piece:
                if self._used and not data:
                    raise StaleError
                raise BadAnswerError("the connection ended before the answer")
            data += piece
        self._rest = data[end + 4 :]
        first, *lines = data[:end].split(b"\r\n")
        found = _STATUS.fullmatch(first)
        if found is None:
            raise BadAnswerError(f"it begins with {first[:40]!r}")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise BadAnswerError(f"it has the header line {line[:40]!r}")
            name, value = name.lower(), value.strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        connection = headers.get("connection", "").lower()
        persistent = "keep-alive" in connection if found[1] == b"0" else "close" not in connection
        return int(found[2]), headers, persistent

    def _body(self, headers: Mapping[str, str]) -> bytes:
        coding = headers.get("transfer-encoding")
        if coding is not None:
            if coding.lower() != "chunked":
                raise BadAnswerError(f"it has the transfer coding {coding!r}")
            return b"".join(self._chunks())
        length = headers.get("content-length")
        if length is None:
            self.reusable = False
            pieces = [self._rest]
            while pieces[-1] or len(pieces) == 1:
                pieces.append(self._receive())
            self._rest = b""
            return b"".join(pieces)
        # Several lengths that agree are one.
        length, *others = {part.strip() for part in length.split(",")}
        if others or not (length.isascii() and length.isdigit()) or len(length) > 15:
            raise BadAnswerError(f"it has the length {headers['content-length']!r}")
        return self._exactly(int(length))

    def _chunks(self) -> Iterator[bytes]:
        while True:
            found = _SIZE.fullmatch(self._line())
            if found is None:
                raise BadAnswerError("it has a chunk without a size")
            size = int(found[1], 16)
            if size == 0:
                break
            yield self._exactly(size)
            if self._line():
                raise BadAnswerError("it has a chunk of another size than announced")
        left = _MAX_HEAD
        while trailer := self._line():
            left -= len(trailer)
            if left < 0:
                raise BadAnswerError("its trailer is too long")

    def _line(self) -> bytes:
        while (end := self._rest.find(b"\r\n")) < 0:
            if len(self._rest) > _MAX_LINE:
                raise BadAnswerError("it has a line that is too long")
            self._rest += self._some(_JOINED)
        line, self._rest = self._rest[:end], self._rest[end + 2 :]
        return line

    def _exactly(self, size: int) -> bytes:
        if len(self._rest) >= size:
            body, self._rest = self._rest[:size], self._rest[size:]
            return body
        pieces = [self._rest]
        left = size - len(self._rest)
        self._rest = b""
        while left:
            pieces.append(self._some(min(left, _PIECE)))
            left -= len(pieces[-1])
        return b"".join(pieces)

    def _some(self, most: int) -> bytes:
        piece = self._receive(most)
        if not piece:
            raise BadAnswerError("it is cut short")
        return piece


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
        if certfile is not None:
            # A mistake of the device's owner is not a server that cannot be reached.
            try:
                self._context  # noqa: B018 (it is made when it is asked for)
            except OSError as error:
                raise UsageError(
                    f"the client certificate {certfile} cannot be used: {error}."
                ) from None
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[Connection]] = {}
        # A pool that nobody closed closes its connections when it goes.
        weakref.finalize(self, _close_idle, self._idle)
        self._sockets: set[socket.socket] = set()
        self._down = False
        self._thread = threading.local()

    @contextlib.contextmanager
    def exempt(self) -> Iterator[None]:
        """Let this thread connect although the others were shut down."""
        self._thread.exempt = True
        try:
            yield
        finally:
            self._thread.exempt = False

    def take(self, origin: Origin, timeout: float, *, fresh: bool = False) -> Connection:
        """Return a connection, one that is kept or a new one.

        :param timeout: for connecting, in seconds.
        :param fresh: connect in any case.
        :raises OSError: if the host cannot be reached, or its certificate not be trusted.
        """
        while not fresh:
            with self._lock:
                kept = self._idle.get(origin)
                connection = kept.pop() if kept else None
            if connection is None:
                break
            if not connection.dropped():
                return connection
            self.drop(connection)
        return self._connect(origin, timeout)

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
        """Cut off whatever waits on a connection, now and later."""
        with self._lock:
            self._down = True
            sockets = list(self._sockets)
        for sock in sockets:
            _cut(sock)

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._ca_file)
        if self._certificate is not None:
            context.load_cert_chain(*self._certificate)
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _connect(self, origin: Origin, timeout: float) -> Connection:
        # As bytes, which the socket module takes as they are: text it would encode with a codec
        # that takes longer to load than the connection to be made.
        address: Any = (origin.host.encode(), origin.port)
        sock = socket.create_connection(address, timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if origin.secure:
                sock = self._context.wrap_socket(sock, server_hostname=origin.host)
        except BaseException:
            sock.close()
            raise
        with self._lock:
            self._sockets.add(sock)
            late = self._down and not getattr(self._thread, "exempt", False)
        if late:
            _cut(sock)
        return Connection(origin, sock)


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
