"""HTTP as the protocol uses it: one request in, bytes or a status out.

Knows the rules that hold for every request (what a response may carry, redirects, when to try
again) and nothing of the messages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fcp_core.client.addresses import Endpoint, check_uri
from fcp_core.client.calls import unpack
from fcp_core.client.connections import (
    Answer,
    BadAnswerError,
    Connection,
    NoTLSError,
    Pool,
    StaleError,
    TooLargeError,
)
from fcp_core.client.interruption import Interruption
from fcp_core.client.limits import Limits, gunzip, too_large
from fcp_core.client.origins import split_url
from fcp_core.client.steps import Reply, Request
from fcp_core.protocol.compression import LOOKED_AT
from fcp_core.protocol.protos import google_rpc_status_pb2
from fcp_core.protocol.status import Code, StatusError, code_from_http

__all__ = ["Endpoint", "RetryPolicy", "Transport"]

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_CONNECT_SECONDS = 30.0
#: Time for each answer to a best-effort call in seconds, whether or not the client was interrupted.
FAREWELL_SECONDS = 10.0
#: Requests that are sent before the first of their answers is read.
_AT_ONCE = 8
#: An error's body that is longer is not looked at, and only the beginning of its message is shown.
_LONGEST_ERROR = 4096
_LONGEST_WORDS = 300


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
class Sent:
    """A request that was sent, and where its answer will come; or why it could not be sent.

    :param began: when it was, in seconds of ``time.monotonic``.
    """

    request: Request
    connection: Connection | StatusError
    began: float = 0.0


class Transport:
    """A pool of connections that speaks the protocol's dialect of HTTP. Thread-safe.

    :param ca_file: a PEM file of certificates to trust instead of the system's.
    :param certfile: a PEM certificate to show, with its key unless that is in *keyfile*.
    :param compress: whether answers may be gzip-encoded.
    :param timeout: seconds without any byte from the server before a request is given up.
    :param limits: of an answer in all; None: the usual ones.
    """

    def __init__(
        self,
        *,
        ca_file: str | None = None,
        certfile: str | None = None,
        keyfile: str | None = None,
        compress: bool = True,
        retry: RetryPolicy | None = None,
        timeout: float = 600.0,
        limits: Limits | None = None,
        interruption: Interruption | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.interruption = interruption or Interruption()
        #: How many bytes a second the last large body went with; None: there was none.
        self.upload_rate: float | None = None
        self.bytes_sent = 0
        self.bytes_received = 0
        self._lock = threading.Lock()
        self._retry = retry or RetryPolicy()
        self._rng = rng or random.Random()
        self._timeout = timeout
        self._limits = limits or Limits()
        self._pool = Pool(ca_file, certfile, keyfile)
        self._common = {
            "Accept-Encoding": "gzip" if compress else "identity",
            "User-Agent": "fcp-client",
        }

    def close(self) -> None:
        """Close every idle connection."""
        self._pool.close()

    def send(self, request: Request) -> Reply:
        """Send a request and return its answer.

        :raises StatusError: the response's status, or what went wrong on the way.
        """
        return self.finish(self.begin(request))

    def begin(self, request: Request) -> Sent:
        """Send a request; :meth:`finish` waits for its answer and raises what went wrong."""
        try:
            return self._begin(request)
        except StatusError as error:
            return Sent(request, error)

    def finish(self, sent: Sent, *, retried: bool = True) -> Reply:
        """Wait for the answer to a request; follow redirects, and send it again if that may help.

        :raises StatusError: the response's status, or what went wrong on the way.
        """
        request = sent.request
        attempts = self._retry.attempts if retried and not request.best_effort else 1
        for attempt in range(attempts):
            try:
                return self._follow(sent)
            except StatusError as error:
                if error.code is not Code.UNAVAILABLE or attempt + 1 >= attempts:
                    raise
            self.interruption.wait(self._retry.wait_before(attempt, self._rng))
            sent = self.begin(request)
        raise AssertionError("a retry policy allows one attempt at least")

    def download_all(
        self, uris: Sequence[str], check: Callable[[], None] = lambda: None
    ) -> list[bytes]:
        """Return resources that are not cached and not asked for again, some at a time.

        :param check: called before each lot; what it raises ends the download.
        :raises StatusError: of the first one that cannot be had; RESOURCE_EXHAUSTED if they are
            larger together than a single one may be.
        """
        contents: list[bytes] = []
        room = self._limits.content_bytes
        for start in range(0, len(uris), _AT_ONCE):
            check()
            some = uris[start : start + _AT_ONCE]
            for uri in some:
                check_uri(uri)
            under_way = [self.begin(Request("download", "GET", uri)) for uri in some]
            try:
                while under_way:
                    sent = under_way.pop(0)
                    reply = self.finish(sent, retried=False)
                    contents.append(unpack(sent.request.url, reply, room))
                    room -= len(contents[-1])
            finally:
                for sent in under_way:
                    self._drop(sent)
        return contents

    def _follow(self, sent: Sent) -> Reply:
        for left in reversed(range(_MAX_REDIRECTS + 1)):
            request = sent.request
            answer = self._answer(sent)
            target = answer.headers.get("location") if answer.status in _REDIRECTS else None
            if target is None:
                reply = _reply(answer, request.url, self._limits.content_bytes)
                with self._lock:
                    self.bytes_received += len(reply.body)
                return reply
            there = urllib.parse.urljoin(request.url, target)
            check_uri(there)
            if not left:
                break
            # The key is for the server that it was given for.
            same = urllib.parse.urlsplit(there).netloc == urllib.parse.urlsplit(request.url).netloc
            request = dataclasses.replace(
                request, url=there, headers=request.headers if same else {}
            )
            if answer.status not in (307, 308):
                request = dataclasses.replace(request, method="GET", body=None)
            sent = self.begin(request)
        raise StatusError(Code.UNKNOWN, f"{sent.request.url}: more than {_MAX_REDIRECTS} redirects")

    def _begin(self, request: Request, *, fresh: bool = False) -> Sent:
        """Send a request.

        :param fresh: not over a connection that was used before.
        :raises StatusError: if it cannot be sent.
        """
        if not request.best_effort:
            self.interruption.check()
        began = time.monotonic()
        url, body = request.url, request.body
        timeout = min(self._timeout, FAREWELL_SECONDS) if request.best_effort else self._timeout
        connection = None
        try:
            origin, target = split_url(url)
            connection = self._pool.take(
                origin, min(timeout, _CONNECT_SECONDS), fresh=fresh, exempt=request.best_effort
            )
            connection.send(
                request.method, target, {**self._common, **request.headers}, body, timeout
            )
        except NoTLSError as error:
            self.interruption.check()
            raise StatusError(Code.FAILED_PRECONDITION, f"{url}: {error}") from error
        except (ValueError, http.client.HTTPException, OSError) as error:
            if connection is not None:
                self._pool.drop(connection)
            if not request.best_effort:
                self.interruption.check()
            code = Code.UNAVAILABLE if isinstance(error, OSError) else Code.INVALID_ARGUMENT
            raise StatusError(code, f"{url}: {error}") from error
        with self._lock:
            self.bytes_sent += len(body or b"")
        return Sent(request, connection, began)

    def _answer(self, sent: Sent) -> Answer:
        """Wait for an answer; send the request again if a kept connection had ended."""
        try:
            return self._receive(sent)
        except StaleError:
            # Nothing was answered, and most probably nothing was read.
            return self._receive(self._begin(sent.request, fresh=True))

    def _receive(self, sent: Sent) -> Answer:
        """Wait for the answer to a request.

        :raises StaleError: if it went over a kept connection that was closed meanwhile.
        :raises StatusError: if there is none, or it is malformed.
        """
        connection, url = sent.connection, sent.request.url
        if isinstance(connection, StatusError):
            raise connection
        try:
            with contextlib.ExitStack() as stack:
                if not sent.request.best_effort:
                    stack.enter_context(self.interruption.unblocking(self._pool.shut_down))
                answer = connection.receive(self._limits.answer_bytes, self._limits.answer_seconds)
        except BaseException as error:
            self._pool.drop(connection)
            if not sent.request.best_effort:
                self.interruption.check()  # then it failed because we closed it
            if isinstance(error, TooLargeError):
                raise too_large(f"the answer of {url}", self._limits.answer_bytes) from error
            if isinstance(error, TimeoutError):
                raise StatusError(Code.DEADLINE_EXCEEDED, f"{url}: {error}") from error
            if isinstance(error, (BadAnswerError, http.client.HTTPException, OSError)):
                raise StatusError(
                    Code.UNAVAILABLE, f"{url}: {type(error).__name__}: {error}"
                ) from error
            raise
        self._pool.give_back(connection)
        body = sent.request.body or b""
        if len(body) >= LOOKED_AT:
            self.upload_rate = len(body) / max(1e-9, time.monotonic() - sent.began)
        return answer

    def _drop(self, sent: Sent) -> None:
        if isinstance(sent.connection, Connection):
            self._pool.drop(sent.connection)


def _words(answer: Answer) -> str:
    """Return what the body of an error says, as a clause: printable, and no longer than a line."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-protobuf" or len(answer.body) > _LONGEST_ERROR:
        return ""
    try:
        said = google_rpc_status_pb2.Status.FromString(answer.body).message
    except DecodeError:
        return ""
    shown = "".join(c if c.isprintable() else "?" for c in said[:_LONGEST_WORDS])
    return f": {shown}" if shown else ""


def _reply(answer: Answer, url: str, limit: int) -> Reply:
    code = code_from_http(answer.status)
    if code is not Code.OK:
        # The status alone counts; the body is words for whoever reads the log.
        raise StatusError(code, f"{url} answered HTTP {answer.status}{_words(answer)}")
    encoding = answer.headers.get("content-encoding", "").lower()
    if encoding not in ("", "identity", "gzip"):
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{url} answered with content encoding {encoding!r}, not gzip"
        )
    data = answer.body
    if encoding == "gzip" and data:  # an empty body that is said to be gzip is an empty body
        try:
            data = gunzip(data, f"the answer of {url}", limit)
        except StatusError as error:
            if error.code is Code.RESOURCE_EXHAUSTED:
                raise
            # It was spoiled on the way: another try may help.
            raise StatusError(Code.UNAVAILABLE, error.message) from error
    return Reply(data, answer.headers.get("content-type", ""))
