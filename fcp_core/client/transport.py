"""HTTP as the protocol uses it: one request in, bytes or a status out.

Knows the rules that hold for every request (which addresses are allowed, headers, request
compression, what a response may carry, when to try again) and nothing of the messages.
"""

from __future__ import annotations

import contextlib
import gzip
import random
import re
import socket
import threading
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3
import urllib3.connection
import urllib3.connectionpool
from urllib3.exceptions import HTTPError, LocationValueError, ProtocolError, ReadTimeoutError

from fcp_core.client.interruption import Interruption
from fcp_core.protocol.status import Code, StatusError, code_from_http

_ENTRY_URI = re.compile(r"https://.+|http://localhost([:/].*)?", re.IGNORECASE | re.DOTALL)
_URI = re.compile(r"https://.+|http://localhost:.+", re.IGNORECASE | re.DOTALL)
_MAX_REDIRECTS = 5
#: Time for best-effort calls (cancel, abort) in seconds, whether or not the client was interrupted.
FAREWELL_SECONDS = 10.0
# Checkpoints of floats hardly shrink at any level; the fastest costs the device the least.
_GZIP_LEVEL = 1


@dataclass(frozen=True)
class RetryPolicy:
    """When a request answered UNAVAILABLE is sent again, within one session.

    :param attempts: how often it is sent at most; 1 never sends it again.
    :param delay: the base *d* of the wait, in seconds: 0.4 d + U[0.6, 1] d 1.3^attempt.
    """

    attempts: int = 3
    delay: float = 5.0

    def wait_before(self, attempt: int, rng: random.Random) -> float:
        """Return the seconds to wait before sending for the ``attempt + 1``-th time."""
        return 0.4 * self.delay + rng.uniform(0.6, 1.0) * self.delay * 1.3**attempt


@dataclass(frozen=True)
class Endpoint:
    """Where a call goes and which headers it carries: a ``ForwardingInfo``, resolved."""

    base: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def url(self, path: str, query: str = "?%24alt=proto") -> str:
        """Return the address of *path*, joined with exactly one slash."""
        return self.base.rstrip("/") + "/" + path.lstrip("/") + query


def path_variable(value: str, *, slashes: bool = False) -> str:
    """Return *value* as it stands in a path.

    :param slashes: for variables of several segments, whose slashes stay.
    :raises StatusError: INVALID_ARGUMENT if it is not ASCII.
    """
    if not value.isascii():
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{value!r} cannot stand in an address: only ASCII can"
        )
    return urllib.parse.quote(value, safe="-_.~/" if slashes else "-_.~")


def check_uri(uri: str, *, entry_point: bool = False) -> None:
    """Refuse an address that is neither HTTPS nor this machine.

    :raises StatusError: INVALID_ARGUMENT.
    """
    if not (_ENTRY_URI if entry_point else _URI).fullmatch(uri):
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"{uri!r} is not an allowed address: it must begin with https:// or http://localhost:",
        )


class _Connections:
    """The open sockets, so that an interruption can end what waits on them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
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

    def add(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)
            late = self._down and not getattr(self._thread, "exempt", False)
        if late:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def discard(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(sock)

    def shut_down(self) -> None:
        with self._lock:
            self._down = True
            sockets = list(self._sockets)
        for sock in sockets:
            try:
                # The plain socket's own method: the TLS one would drop the TLS state under a
                # thread that is reading.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                continue  # closed in the meantime, which is what was wanted


def _tracked(
    base: type[urllib3.connection.HTTPConnection], connections: _Connections
) -> type[urllib3.connection.HTTPConnection]:
    class Connection(base):  # type: ignore[misc, valid-type]
        def connect(self) -> None:
            super().connect()
            connections.add(self.sock)

        def close(self) -> None:
            if self.sock is not None:
                connections.discard(self.sock)
            super().close()

    return Connection


class Transport:
    """A pool of connections that speaks the protocol's dialect of HTTP. Thread-safe.

    :param api_key: sent as ``x-goog-api-key`` with every protocol request, even if empty.
    :param ca_file: a PEM file of certificates to trust instead of the system's.
    :param compress: whether request bodies are gzip-encoded (empty ones too).
    :param timeout: seconds without any byte from the server before a request is given up.
    """

    def __init__(
        self,
        *,
        api_key: str = "",
        ca_file: str | None = None,
        compress: bool = True,
        retry: RetryPolicy | None = None,
        timeout: float = 600.0,
        interruption: Interruption | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.interruption = interruption or Interruption()
        self.bytes_sent = 0
        self.bytes_received = 0
        self._lock = threading.Lock()
        self._api_key = api_key
        self._compress = compress
        self._retry = retry or RetryPolicy()
        self._rng = rng or random.Random()
        self._timeout = urllib3.Timeout(connect=min(timeout, 30.0), read=timeout)
        self._connections = _Connections()
        options: dict[str, Any] = {"maxsize": 8, "cert_reqs": "CERT_REQUIRED"}
        if ca_file is not None:
            options["ca_certs"] = ca_file
        self._pools = urllib3.PoolManager(num_pools=16, **options)
        connections = self._connections

        class HTTPPool(urllib3.connectionpool.HTTPConnectionPool):
            ConnectionCls = _tracked(urllib3.connection.HTTPConnection, connections)

        class HTTPSPool(urllib3.connectionpool.HTTPSConnectionPool):
            ConnectionCls = _tracked(  # type: ignore[assignment]
                urllib3.connection.HTTPSConnection, connections
            )

        self._pools.pool_classes_by_scheme = {"http": HTTPPool, "https": HTTPSPool}

    def close(self) -> None:
        """Close every idle connection."""
        self._pools.clear()

    def call(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        *,
        retried: bool = True,
        farewell: bool = False,
    ) -> bytes:
        """POST a protocol message and return the response's bytes.

        :param retried: whether an UNAVAILABLE answer is tried again.
        :param farewell: for cancel and abort: goes out although the client was interrupted, and
            is given up after ten seconds.
        :raises StatusError: the response's status, or what went wrong on the way.
        """
        headers, sent = self._outgoing(endpoint, body)
        _, data = self._with_retries("POST", endpoint.url(path), headers, sent, retried, farewell)
        return data

    def upload(self, endpoint: Endpoint, resource_name: str, body: bytes) -> int:
        """POST raw bytes to a byte-stream resource and return how many went over the wire."""
        path = f"upload/v1/media/{path_variable(resource_name, slashes=True)}"
        headers, sent = self._outgoing(endpoint, body)
        self._with_retries(
            "POST", endpoint.url(path, "?upload_protocol=raw"), headers, sent, True, False
        )
        return len(sent)

    def get_operation(self, endpoint: Endpoint, path: str) -> bytes:
        """GET a protocol resource (an operation)."""
        _, data = self._with_retries(
            "GET", endpoint.url(path), self._headers(endpoint), None, True, False
        )
        return data

    def cancel(self, endpoint: Endpoint, path: str) -> None:
        """POST the empty, uncompressed body of a cancellation."""
        self._with_retries("POST", endpoint.url(path), self._headers(endpoint), b"", False, True)

    def download(self, uri: str, *, retried: bool = True) -> bytes:
        """GET a resource by its URI; undo the ``+gzip`` of its content type.

        :raises StatusError: the response's status; INVALID_ARGUMENT for a URI that is not allowed
            or data that are not gzip although they are said to be.
        """
        check_uri(uri)
        content_type, data = self._with_retries("GET", uri, {}, None, retried, False)
        return gunzip(data, uri) if content_type.lower().endswith("+gzip") else data

    def _headers(self, endpoint: Endpoint) -> dict[str, str]:
        return {**endpoint.headers, "x-goog-api-key": self._api_key}

    def _outgoing(self, endpoint: Endpoint, body: bytes) -> tuple[dict[str, str], bytes]:
        headers = self._headers(endpoint)
        if body:
            headers["Content-Type"] = "application/x-protobuf"
        if self._compress:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, _GZIP_LEVEL, mtime=0)
        return headers, body

    def _with_retries(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None,
        retried: bool,
        farewell: bool,
    ) -> tuple[str, bytes]:
        attempt = 0
        while True:
            try:
                return self._follow(method, url, headers, body, farewell)
            except StatusError as error:
                attempt += 1
                if (
                    error.code is not Code.UNAVAILABLE
                    or not retried
                    or farewell
                    or attempt >= self._retry.attempts
                ):
                    raise
            self.interruption.wait(self._retry.wait_before(attempt - 1, self._rng))

    def _follow(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, farewell: bool
    ) -> tuple[str, bytes]:
        for _ in range(_MAX_REDIRECTS):
            response = self._send(method, url, headers, body, farewell)
            target = response.get_redirect_location()
            if not target:
                return _content(response, url)
            there = urllib.parse.urljoin(url, target)
            check_uri(there)
            if urllib.parse.urlsplit(there).netloc != urllib.parse.urlsplit(url).netloc:
                headers = {}  # the key is for the server that it was given for
            if response.status not in (307, 308) and method != "GET":
                method, body = "GET", None
            url = there
        raise StatusError(Code.UNKNOWN, f"{url}: more than {_MAX_REDIRECTS} redirects")

    def _send(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, farewell: bool
    ) -> urllib3.BaseHTTPResponse:
        sent = {"Accept-Encoding": "gzip", "User-Agent": "fcp-client", **headers}
        if farewell:
            with self._connections.exempt():
                timeout = urllib3.Timeout(total=FAREWELL_SECONDS)
                return self._exchange(method, url, sent, body, timeout)
        with self.interruption.unblocking(self._connections.shut_down):
            try:
                return self._exchange(method, url, sent, body, self._timeout)
            except StatusError:
                self.interruption.check()  # then it failed because we closed it
                raise

    def _exchange(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None,
        timeout: urllib3.Timeout,
        stale: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        try:
            response = self._pools.urlopen(
                method,
                url,
                body=body,
                headers=headers,
                redirect=False,
                retries=False,
                timeout=timeout,
            )
        except ProtocolError as error:
            # A kept connection that the server closed in the same instant: nothing was answered.
            if stale and isinstance(error.args[-1], ConnectionError):
                return self._exchange(method, url, headers, body, timeout, stale=False)
            raise StatusError(Code.UNAVAILABLE, f"{url}: {error}") from error
        except ReadTimeoutError as error:
            raise StatusError(Code.DEADLINE_EXCEEDED, f"{url}: {error}") from error
        except LocationValueError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"{url}: {error}") from error
        except (HTTPError, OSError) as error:
            raise StatusError(Code.UNAVAILABLE, f"{url}: {error}") from error
        with self._lock:
            self.bytes_sent += len(body or b"")
            self.bytes_received += len(response.data)
        return response


def gunzip(data: bytes, what: str) -> bytes:
    """Return the content of gzip *data*.

    :raises StatusError: INVALID_ARGUMENT, naming *what*, if they are not gzip or are cut short.
    """
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{what} was announced as gzip and is not: {error}"
        ) from error


def _content(response: urllib3.BaseHTTPResponse, url: str) -> tuple[str, bytes]:
    code = code_from_http(response.status)
    if code is not Code.OK:
        # The body of an error is not read: the status alone counts.
        raise StatusError(code, f"{url} answered HTTP {response.status}")
    encoding = response.headers.get("Content-Encoding", "").lower()
    if encoding not in ("", "identity", "gzip"):
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{url} answered with content encoding {encoding!r}, not gzip"
        )
    return response.headers.get("Content-Type", ""), response.data
