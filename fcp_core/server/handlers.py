"""The handlers of the protocol's calls: parse, call one method of a service, map the answer."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import logging
import sys
from collections.abc import Awaitable, Mapping, Sequence
from http.client import responses
from types import TracebackType
from typing import Any, cast

from google.protobuf.message import DecodeError, Message
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, stream_request_body

from fcp_core.protocol import routes
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.body import BodyReader
from fcp_core.server.context import Context
from fcp_core.server.exposition import CONTENT_TYPE
from fcp_core.server.limits import http_error
from fcp_core.server.rates import RateLimitError, address_key

logger = logging.getLogger("fcp.server")

#: Where devices send their API key.
KEY_HEADER = "x-goog-api-key"

PROTOBUF = "application/x-protobuf"

#: Answers from this size on are compressed for a client that accepts it.
COMPRESS = 2 << 10
#: Answers from this size on are compressed in another thread.
COMPRESS_APART = 64 << 10
#: How much of the body of a refused request is read before the connection is closed: a client
#: that is still sending may not look at an answer before.
LINGER = 1 << 20
#: How long that may take, in seconds.
LINGER_TIME = 5.0
#: What UNAVAILABLE and RESOURCE_EXHAUSTED tell a client to wait, in seconds.
RETRY_AFTER = 5

#: What a request is counted as whose client went away.
GONE = 499

_RETRY_CODES = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)


class BaseHandler(RequestHandler):
    """Answers errors with a serialized ``google.rpc.Status``."""

    #: What the log calls the request: never a path, because paths carry tokens.
    label = "request"
    #: What the log adds, such as the session id.
    subject = ""
    #: Whether it was counted.
    accounted = False

    def initialize(self, context: Context) -> None:
        """Take what all handlers share."""
        self.context = context

    def set_default_headers(self) -> None:
        """Say nothing about the software."""
        self.clear_header("Server")
        self.set_header("Content-Type", PROTOBUF)

    def compute_etag(self) -> str | None:
        """Answers have no tag unless a handler sets one."""
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Never called for a handler without a streamed body."""
        return None

    def allowed(self) -> Sequence[str]:
        """Return the methods that the address has."""
        return ("GET", "HEAD")

    def refuse_method(self) -> StatusError:
        """Return the error for a method that the address has not."""
        allowed = self.allowed()
        self.set_header("Allow", ", ".join(allowed))
        return http_error(
            405, f"{self.request.method} is not allowed here; {' and '.join(allowed)} is"
        )

    def check_header(self) -> None:
        """Refuse a header over the limit.

        :raises StatusError: HTTP 431.
        """
        request = self.request
        size = len(request.uri or "") + sum(
            len(name) + len(value) + 4 for name, value in request.headers.get_all()
        )
        if size > self.context.limits.max_header:
            raise http_error(
                431,
                f"the request's header has {size} bytes; this server takes "
                f"{self.context.limits.max_header}",
            )

    def authenticate(self) -> str | None:
        """Return who sends the request.

        :raises StatusError: if a plugin refuses.
        """
        request = self.request
        headers = {name.lower(): value for name, value in request.headers.items()}
        principal = self.context.authenticate(
            method=request.method or "",
            path=request.path,
            headers=headers,
            peer=request.remote_ip or "",
            certificate=self.certificate(),
        )
        # A key that nobody knows has been refused; one that nobody checks counts as it is sent.
        self.context.keys.take(principal or _digest(headers.get(KEY_HEADER, "")))
        return principal

    def certificate(self) -> Mapping[str, Any] | None:
        """Return the client's verified certificate, if there is one."""
        if self.request.protocol != "https":
            return None
        certificate = self.request.get_ssl_certificate()
        return certificate if isinstance(certificate, dict) and certificate else None

    def throttle(self) -> None:
        """Refuse a request of an address that asks too often.

        :raises RateLimitError: if it does.
        """
        self.context.addresses.take(address_key(self.request.remote_ip or ""))

    def account(self, status: int) -> None:
        """Count the request and log it; quiet unless someone debugs."""
        if self.accounted:
            return
        self.accounted = True
        seconds = self.request.request_time()
        if self.context.metrics is not None:
            self.context.metrics.request(self.label, status, seconds, self.received())
        if logger.isEnabledFor(logging.DEBUG):
            about: dict[str, Any] = {"route": self.label, "status": status, "seconds": seconds}
            if self.subject:
                about["session_id"] = self.subject
            logger.debug(
                "%s %s -> %d in %.1f ms",
                self.label,
                self.subject,
                status,
                1000 * seconds,
                extra={"fcp": about},
            )

    def received(self) -> int:
        """Return how many bytes of the body came."""
        return 0

    def on_connection_close(self) -> None:
        """Count a request whose client went away before it was answered."""
        super().on_connection_close()
        self.account(GONE)

    def respond(self, error: StatusError) -> None:
        """Write an error, without finishing."""
        self.set_status(error.http, responses.get(error.http, error.code.name))
        self.set_header("Content-Type", PROTOBUF)
        if error.code in _RETRY_CODES:
            wait = error.wait if isinstance(error, RateLimitError) else RETRY_AFTER
            self.set_header("Retry-After", str(wait))
        body = error.to_proto().SerializeToString()
        self.set_header("Content-Length", str(len(body)))
        self.write(body)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer an exception; what is not an answer to a client leaks nothing."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if status_code == 405:
            try:
                error = self.refuse_method()
            except StatusError as malformed:  # so is the path
                error = malformed
        elif isinstance(error, HTTPError):
            error = http_error(status_code, responses.get(status_code, "refused"))
        elif not isinstance(error, StatusError):
            error = StatusError(Code.INTERNAL, "the server failed; its log says why")
        self.respond(error)

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log what is the server's fault, with its traceback."""
        if isinstance(value, (StatusError, HTTPError, StreamClosedError)):
            logger.debug("%s %s: %s", self.label, self.subject, value)
        else:
            logger.error("%s %s failed", self.label, self.subject, exc_info=(typ, value, tb))  # type: ignore[arg-type]


@stream_request_body
class BodyHandler(BaseHandler):
    """Admits a request before its body, and takes the body within the limits."""

    body: BodyReader | None = None
    _discard: int | None = None

    async def admit(self) -> None:
        """Decide, from the header alone, whether the request may go on.

        :raises StatusError: if not.
        """

    def received(self) -> int:
        """Return how many bytes of the body came and were wanted."""
        return 0 if self.body is None else self.body.received

    def abandon(self) -> None:
        """Clean up after a request whose body will not be used. May be called again."""
        if self.body is not None:
            self.body.close()

    async def prepare(self) -> None:
        """Admit the request and make room for its body."""
        self.context.enter()
        connection = cast(HTTP1Connection, self.request.connection)
        connection.set_max_body_size(sys.maxsize)  # the body reader counts
        connection.set_body_timeout(self.context.limits.idle_timeout)
        try:
            self.throttle()
            self.check_header()
            await self.admit()
        except StatusError as error:
            connection.set_body_timeout(LINGER_TIME)
            self.refuse(error)

    def open_body(self) -> None:
        """Make room for the announced body.

        :raises StatusError: as :class:`BodyReader`.
        """
        headers = self.request.headers
        announced = headers.get("Content-Length", "0")
        # Tornado itself refuses a length that is not a number.
        chunked = "Transfer-Encoding" in headers or not _is_number(announced)
        self.body = BodyReader(
            headers.get("Content-Encoding", ""),
            None if chunked else int(announced),
            self.context.limits,
            self.context.in_flight,
            self.context.executor,
        )

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body, or drop it if the request was refused."""
        if self._discard is not None:
            self._discard -= len(chunk)
            if self._discard < 0 and not self._finished:
                self.finish()
            return None
        if self.body is None:
            return None
        try:
            rest = self.body.receive(chunk)
        except StatusError as error:
            self.refuse(error)
            return None
        return None if rest is None else self._receive(rest)

    async def _receive(self, rest: Awaitable[None]) -> None:
        try:
            await rest
        except StatusError as error:
            self.refuse(error)

    def refuse(self, error: StatusError) -> None:
        """Answer before the body is there, then read a bounded rest of it and drop it."""
        logger.debug("%s %s refused: %s", self.label, self.subject, error)
        self.abandon()
        self._discard = LINGER
        self.respond(error)
        announced = self.request.headers.get("Content-Length", "0")
        if not _is_number(announced) or int(announced) > LINGER:
            self.set_header("Connection", "close")
        if "Expect" in self.request.headers:
            self.finish()  # such a client sends no body once it has an answer
        else:
            self.flush()

    def refused(self) -> bool:
        """Whether the request has its answer already; then there is nothing left to do."""
        if self._discard is None:
            return False
        if not self._finished:
            self.finish()
        return True

    def on_connection_close(self) -> None:
        """Drop what was received; a service call that has begun goes on."""
        super().on_connection_close()
        self.abandon()

    def on_finish(self) -> None:
        """Clean up whatever the request still holds."""
        self.abandon()


class RPCHandler(BodyHandler):
    """One call of the protocol, whichever: the routing table says which."""

    def allowed(self) -> Sequence[str]:
        """Return the verbs of the routes that match."""
        return routes.verbs(self.request.path)

    async def admit(self) -> None:
        """Authenticate, find the route, make room for the body."""
        self._caller = self.authenticate()
        verb, path = self.request.method or "", self.request.path
        found = routes.match(verb, path)
        if found is None:
            if self.allowed():
                raise self.refuse_method()
            raise StatusError(Code.NOT_FOUND, "there is no such route")
        self._route, self._variables = found
        self.label = self._route.name
        self.subject = self._variables.get("session_id", "")
        self._method = self.context.method(self._route)
        self.open_body()

    async def serve(self) -> None:
        """Parse, call, answer."""
        if self.refused():
            return
        assert self.body is not None  # made by admit, which did not refuse
        try:
            request = self._parse(await self.body.finish())
        finally:
            self.body.close()
        response = await self.context.call(self._method(request, self._caller))
        data = response.SerializeToString()
        if len(data) >= COMPRESS and _accepts_gzip(self.request.headers.get("Accept-Encoding", "")):
            data = await self._compress(data)
        self.set_header("Content-Length", str(len(data)))
        self.finish(data)

    get = head = post = put = patch = delete = options = serve

    def _parse(self, body: bytearray | memoryview) -> Message:
        request: Message = self._route.request_class()
        try:
            request.ParseFromString(bytes(body))
        except DecodeError:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the body is not a {request.DESCRIPTOR.full_name} (malformed protobuf, "
                f"{len(body)} bytes)",
            ) from None
        for name, value in self._variables.items():
            setattr(request, name, value)
        return request

    async def _compress(self, data: bytes) -> bytes:
        self.set_header("Content-Encoding", "gzip")
        self.set_header("Vary", "Accept-Encoding")
        if len(data) < COMPRESS_APART:
            return gzip.compress(data, 1)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.context.executor, gzip.compress, data, 1)


class HealthHandler(BaseHandler):
    """``/healthz``: the process answers. ``/readyz``: it takes requests."""

    label = "health"

    def get(self) -> None:
        """Answer 200, or 503 once the server was told to stop."""
        ready = self.request.path != "/readyz" or not self.context.stopping
        self.set_status(200 if ready else 503)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("ok\n" if ready else "stopping\n")

    head = get


class MetricsHandler(BaseHandler):
    """``/metrics``: what the server measures, as Prometheus reads it."""

    label = "metrics"

    def get(self) -> None:
        """Answer all metrics."""
        assert self.context.metrics is not None  # there is no such route without them
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(self.context.metrics.render())

    head = get


def log_request(handler: RequestHandler) -> None:
    """Count a request once it is answered; log it if someone debugs."""
    if isinstance(handler, BaseHandler):
        handler.account(handler.get_status())


def _is_number(text: str) -> bool:
    """Whether *text* is digits; a superscript three is one to Python, but to no other."""
    return text.isascii() and text.isdigit()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()


def _accepts_gzip(header: str) -> bool:
    for item in header.lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() in ("gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
