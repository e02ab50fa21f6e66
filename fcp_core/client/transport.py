"""HTTP as the protocol uses it: one request in, bytes or a status out.

Knows the rules that hold for every request (which addresses are allowed, headers, request
compression, what a response may carry, when to try again) and nothing of the messages.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import random
import re
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fcp_core.client.cache import ResourceCache
from fcp_core.client.connection import (
    Answer,
    BadAnswerError,
    Connection,
    MalformedError,
    Pool,
    StaleError,
    request_head,
    split_url,
)
from fcp_core.client.interruption import Interruption
from fcp_core.protocol.status import Code, StatusError, code_from_http

_ENTRY_URI = re.compile(r"https://.+|http://localhost([:/].*)?", re.IGNORECASE | re.DOTALL)
_URI = re.compile(r"https://.+|http://localhost:.+", re.IGNORECASE | re.DOTALL)
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_CONNECT_SECONDS = 30.0
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


@dataclass(frozen=True)
class _UnderWay:
    """A request that was sent, and where its answer will come."""

    method: str
    url: str
    connection: Connection


class Transport:
    """A pool of connections that speaks the protocol's dialect of HTTP. Thread-safe.

    :param api_key: sent as ``x-goog-api-key`` with every protocol request, even if empty.
    :param ca_file: a PEM file of certificates to trust instead of the system's.
    :param certfile: a PEM certificate to show, with its key unless that is in *keyfile*.
    :param compress: whether request bodies are gzip-encoded (empty ones too), and answers may be.
    :param timeout: seconds without any byte from the server before a request is given up.
    """

    def __init__(
        self,
        *,
        api_key: str = "",
        ca_file: str | None = None,
        certfile: str | None = None,
        keyfile: str | None = None,
        compress: bool = True,
        retry: RetryPolicy | None = None,
        timeout: float = 600.0,
        interruption: Interruption | None = None,
        rng: random.Random | None = None,
        cache: ResourceCache | None = None,
    ) -> None:
        self.interruption = interruption or Interruption()
        self.cache = cache or ResourceCache(0)
        self.bytes_sent = 0
        self.bytes_received = 0
        self._lock = threading.Lock()
        self._api_key = api_key
        self.compress = compress
        self._retry = retry or RetryPolicy()
        self._rng = rng or random.Random()
        self._timeout = timeout
        self._pool = Pool(ca_file, certfile, keyfile)
        self._common = {
            "Accept-Encoding": "gzip" if compress else "identity",
            "User-Agent": "fcp-client",
        }

    def close(self) -> None:
        """Close every idle connection."""
        self._pool.close()

    def call(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        *,
        farewell: bool = False,
    ) -> bytes:
        """POST a protocol message and return the response's bytes.

        :param farewell: for cancel and abort: goes out although the client was interrupted, and
            is given up after ten seconds.
        :raises StatusError: the response's status, or what went wrong on the way.
        """
        headers, sent = self._outgoing(endpoint, body)
        _, data = self._with_retries("POST", endpoint.url(path), headers, sent, True, farewell)
        return data

    def tell(self, endpoint: Endpoint, path: str, body: bytes) -> Callable[[], None]:
        """POST a protocol message whose answer changes nothing. Failures change nothing either.

        :returns: to be called once other requests have gone out: waits for the answer.
        """
        headers, sent = self._outgoing(endpoint, body)
        url = endpoint.url(path)
        under_way: _UnderWay | None = None
        with contextlib.suppress(StatusError), self.interruption.unblocking(self._pool.shut_down):
            under_way = self._begin("POST", url, headers, sent)
        if under_way is None:
            return lambda: None
        return functools.partial(self._end_telling, under_way, headers, sent)

    def _end_telling(self, under_way: _UnderWay, headers: dict[str, str], sent: bytes) -> None:
        try:
            with self.interruption.unblocking(self._pool.shut_down):
                moved = _redirect(self._finish(under_way)) is not None
        except StaleError:
            moved = True
        except StatusError:
            # Dropped already, but for an interruption that came before.
            self._pool.drop(under_way.connection)
            return
        if moved:
            with contextlib.suppress(StatusError):
                self._follow(under_way.method, under_way.url, headers, sent, False)

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
        if self.compress:
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
            answer = self._send(method, url, headers, body, farewell)
            target = _redirect(answer)
            if target is None:
                content_type, data = _content(answer, url)
                with self._lock:
                    self.bytes_received += len(data)
                return content_type, data
            there = urllib.parse.urljoin(url, target)
            check_uri(there)
            if urllib.parse.urlsplit(there).netloc != urllib.parse.urlsplit(url).netloc:
                headers = {}  # the key is for the server that it was given for
            if answer.status not in (307, 308) and method != "GET":
                method, body = "GET", None
            url = there
        raise StatusError(Code.UNKNOWN, f"{url}: more than {_MAX_REDIRECTS} redirects")

    def _send(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, farewell: bool
    ) -> Answer:
        if farewell:
            with self._pool.exempt():
                deadline = time.monotonic() + FAREWELL_SECONDS
                return self._exchange(method, url, headers, body, deadline)
        with self.interruption.unblocking(self._pool.shut_down):
            try:
                return self._exchange(method, url, headers, body)
            except StatusError:
                self.interruption.check()  # then it failed because we closed it
                raise

    def _exchange(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None,
        deadline: float | None = None,
    ) -> Answer:
        under_way = self._begin(method, url, headers, body, deadline)
        try:
            return self._finish(under_way)
        except StaleError:
            # Nothing was answered, and most probably nothing was read.
            return self._finish(self._begin(method, url, headers, body, deadline, fresh=True))

    def _begin(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None,
        deadline: float | None = None,
        *,
        fresh: bool = False,
    ) -> _UnderWay:
        """Send a request; its answer is still to be waited for.

        :param deadline: by the monotonic clock, for this and the answer; None: there is none.
        :param fresh: not over a connection that was used before.
        :raises StatusError: if it cannot be sent.
        """
        try:
            origin, target = split_url(url)
            length = None if body is None else len(body)
            head = request_head(method, origin, target, {**self._common, **headers}, length)
        except MalformedError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"{url}: {error}") from error
        timeout = self._timeout
        if deadline is not None:
            timeout = min(timeout, FAREWELL_SECONDS)
        try:
            connection = self._pool.take(origin, min(timeout, _CONNECT_SECONDS), fresh=fresh)
        except OSError as error:
            raise StatusError(Code.UNAVAILABLE, f"{url}: {error}") from error
        try:
            connection.set_limit(timeout, deadline)
            connection.send(head, body or b"")
        except OSError as error:
            self._pool.drop(connection)
            raise StatusError(Code.UNAVAILABLE, f"{url}: {error}") from error
        with self._lock:
            self.bytes_sent += len(body or b"")
        return _UnderWay(method, url, connection)

    def _finish(self, under_way: _UnderWay) -> Answer:
        """Wait for the answer to a request.

        :raises StaleError: if it went over a kept connection that was closed meanwhile.
        :raises StatusError: if there is none, or it is malformed.
        """
        url, connection = under_way.url, under_way.connection
        try:
            answer = connection.receive(under_way.method)
        except BaseException as error:
            self._pool.drop(connection)
            if isinstance(error, TimeoutError):
                raise StatusError(Code.DEADLINE_EXCEEDED, f"{url}: {error}") from error
            if isinstance(error, (BadAnswerError, OSError)):
                raise StatusError(Code.UNAVAILABLE, f"{url}: {error}") from error
            raise
        self._pool.give_back(connection)
        return answer


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


def _redirect(answer: Answer) -> str | None:
    return answer.headers.get("location") if answer.status in _REDIRECTS else None


def _content(answer: Answer, url: str) -> tuple[str, bytes]:
    code = code_from_http(answer.status)
    if code is not Code.OK:
        # The body of an error is not read: the status alone counts.
        raise StatusError(code, f"{url} answered HTTP {answer.status}")
    encoding = answer.headers.get("content-encoding", "").lower()
    if encoding not in ("", "identity", "gzip"):
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{url} answered with content encoding {encoding!r}, not gzip"
        )
    data = answer.body
    if encoding == "gzip" and data:  # an empty body that is said to be gzip is an empty body
        try:
            data = gunzip(data, f"the answer of {url}")
        except StatusError as error:  # it was spoiled on the way: another try may help
            raise StatusError(Code.UNAVAILABLE, error.message) from error
    return answer.headers.get("content-type", ""), data
