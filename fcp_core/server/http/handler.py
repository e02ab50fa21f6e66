"""One HTTP request and its answer: what all handlers of this server have in common.

A handler is a delegate of Tornado's HTTP/1 connection, which parses headers, frames bodies and
keeps connections alive. ``tornado.web`` stands between the two elsewhere; here it would cost more
than the calls themselves. A request goes through these steps:

* ``headers_received``: the handler admits the request from its header alone (:meth:`Handler.admit`)
  and makes room for its body, or refuses it;
* the body comes: in pieces, or, if it is large and its length was announced, straight off the
  socket into the buffer that the service will get;
* ``finish``: :meth:`Handler.serve` runs in a task of its own and answers.

A refused request is answered at once; a bounded rest of its body is then read and dropped, so that
a reset does not eat the answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache, partial
from http.client import responses
from typing import Any, ClassVar

from tornado.httputil import (
    HTTPHeaders,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import StreamClosedError

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.body import BodyReader
from fcp_core.server.http.context import Context
from fcp_core.server.http.limits import InFlight, Limits, http_error
from fcp_core.server.http.rates import RateLimitError, address_key
from fcp_core.server.http.requests import Request, RequestHandler

logger = logging.getLogger("fcp.server")
_date = lru_cache(maxsize=2)(partial(formatdate, usegmt=True))

PROTOBUF = "application/x-protobuf"

#: How much of the body of a refused request is read before the connection is closed: a client
#: that is still sending may not look at an answer before.
LINGER = 1 << 20
#: How long that may take, in seconds.
LINGER_TIME = 5.0
#: What UNAVAILABLE and RESOURCE_EXHAUSTED tell a client to wait, in seconds.
RETRY_AFTER = 5
#: Answers from this size on are not copied behind their header.
WRITE_APART = 64 << 10
#: What a request is counted as whose client went away.
GONE = 499
_RETRY_CODES = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)


class Handler(RequestHandler):
    """Takes one request and answers it; errors as a serialized ``google.rpc.Status``.

    :ivar subject: what the log adds, such as the session id.
    :ivar body: the body, if the handler opened one.
    """

    #: What the log calls the request: never a path, because paths carry tokens.
    label = "request"
    #: Headers of every answer.
    answer_headers: ClassVar[Mapping[str, str]] = {"Content-Type": PROTOBUF}
    #: Whether requests count for the limits by address.
    throttled = True

    def __init__(self, context: Context, request: Request) -> None:
        self.context = context
        self.request = request
        self.connection = request.connection
        self.subject = ""
        self.body: BodyReader | None = None
        #: The status of the answer, once its header is written.
        self._status = 0
        self._over = False
        self._discard: int | None = None

    # What a handler says.

    def allowed(self) -> Sequence[str]:
        """Return the methods that the address has."""
        return ("GET", "HEAD")

    def admit(self) -> Awaitable[None] | None:
        """Decide, from the header alone, whether the request may go on, and open its body.

        :raises StatusError: if not; what is returned may raise it too.
        """
        if self.request.method not in self.allowed():
            raise self.refuse_method()
        return None

    async def serve(self) -> None:
        """Answer, now that the whole body has come.

        :raises StatusError: to answer that.
        """
        raise NotImplementedError

    def abandon(self) -> None:
        """Release what the request holds. May be repeated."""
        if self.body is not None:
            self.body.close()

    def describe(self, error: StatusError) -> tuple[bytes, dict[str, str]]:
        """Return an error as a body with its headers."""
        headers = {"Content-Type": PROTOBUF}
        if error.code in _RETRY_CODES:
            wait = error.wait if isinstance(error, RateLimitError) else RETRY_AFTER
            headers["Retry-After"] = str(wait)
        if error.http == 405:
            headers["Allow"] = ", ".join(self.allowed())
        return error.to_proto().SerializeToString(), headers

    def reply_to(self, error: StatusError) -> tuple[int, bytes, dict[str, str]]:
        """Return what an error is answered with: status, body and headers."""
        return (error.http, *self.describe(error))

    # What handlers use.

    def refuse_method(self) -> StatusError:
        """Return the error for a method that the address has not."""
        allowed = " and ".join(self.allowed())
        return http_error(405, f"{self.request.method} is not allowed here; {allowed} is")

    def parameters(self) -> dict[str, list[str]]:
        """Return the parameters of the query.

        :raises StatusError: INVALID_ARGUMENT if there are too many.
        """
        try:
            return self.request.parameters()
        except ValueError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"the query: {error}") from None

    def room(self) -> InFlight:
        """Return where the body is counted."""
        return self.context.in_flight

    def limits(self) -> Limits:
        """Return how large the body may be."""
        return self.context.limits

    def announced(self) -> int | None:
        """Return the announced size of the body; None if it comes in chunks."""
        headers = self.request.headers
        chunked = "Transfer-Encoding" in headers
        return None if chunked else int(headers.get("Content-Length", "0"))

    def open_body(self) -> None:
        """Make room for the announced body.

        :raises StatusError: as :class:`BodyReader`.
        """
        self.body = BodyReader(
            self.request.headers.get("Content-Encoding", ""),
            self.announced(),
            self.limits(),
            self.room(),
            self.context.executor,
            self.context.buffers,
        )

    def discard_body(self) -> None:
        """Drop the body as it comes, up to the size that a body may have."""
        if self.body is not None:
            self.body.close()
            self.body = None
        self._discard = self.context.limits.max_body

    def answer(
        self, body: bytes = b"", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the whole answer."""
        apart = len(body) >= WRITE_APART and self.request.method != "HEAD"
        self.begin_answer(len(body), status, headers, b"" if apart else body)
        if apart and not self._over:
            self.connection.write(body)
        self.end_answer()

    def begin_answer(
        self,
        length: int,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Send the header and what there is of the body.

        :param length: of the whole body, in bytes.
        :param headers: instead of, and in addition to, those of every answer.
        """
        if self._over:
            return
        self._status = status
        fields = HTTPHeaders({"Date": _date(int(time.time())), **self.answer_headers})
        fields["Content-Length"] = str(length)
        if headers:
            fields.update(headers)
        if status == 304:  # it has no body that these could describe
            del fields["Content-Length"]
            fields.pop("Content-Type", None)
        start = ResponseStartLine("HTTP/1.1", status, responses.get(status, "Unknown"))
        self.connection.write_headers(
            start, fields, None if self.request.method == "HEAD" else body
        )

    def end_answer(self) -> None:
        """Complete the answer, and count the request."""
        if not self._over:
            self.connection.finish()
            self._end(self._status)

    def answer_error(self, error: StatusError) -> None:
        """Send an error, or close the connection if an answer was begun."""
        if self._status:
            if not self._over:
                self.connection.close()
                self._end(GONE)
            return
        status, body, headers = self.reply_to(error)
        self.answer(body, status, headers)

    @property
    def answered(self) -> bool:
        """Whether an answer was begun."""
        return self._status != 0

    # What the connection tells.

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Admit the request; the connection waits for what is returned, then reads the body."""
        self.context.enter(self)
        if headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers:
            self.request.watch.limit(self.context.limits.idle_timeout)
        admitted = None
        try:
            if self.throttled and self.context.addresses.active:
                self.context.addresses.take(address_key(self.request.address))
            self._check_header()
            admitted = self.admit()
        except Exception as error:
            self._refuse(self._as_status(error))
            return None
        if admitted is None and (self.body is None or not self.body.direct):
            return None
        return self._go_on(admitted)

    async def _go_on(self, admitted: Awaitable[None] | None) -> None:
        """Wait for the admission, then take a large body straight off the socket."""
        try:
            if admitted is not None:
                await admitted
        except Exception as error:
            self._refuse(self._as_status(error))
            return
        headers = self.request.headers
        if self.body is None or not self.body.direct or self._over:
            return
        stream = self.connection.stream
        try:
            if headers.get("Expect") == "100-continue":
                # The connection would say so only later.
                del headers["Expect"]
                stream.write(b"HTTP/1.1 100 (Continue)\r\n\r\n")
            await self.body.receive_from(stream)
        except StreamClosedError:
            # A stream that broke here must not be read again: it holds on to our buffer.
            self.connection.detach()
            self.on_connection_close()
            return
        except Exception as error:
            self._refuse(self._as_status(error))
        # The connection reads as much of a body as the header says when this returns.
        headers["Content-Length"] = str(int(headers["Content-Length"]) - self.body.received)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body, or drop it if the request was refused."""
        if self._discard is None and self.body is None:
            self._discard = LINGER
        if self._discard is not None:
            self._discard -= len(chunk)
            if self._discard < 0:
                # A refused request has its answer; nobody asks for a body that is not read.
                if self._status:
                    self.end_answer()
                else:
                    self.connection.close()
            return None
        assert self.body is not None  # see above
        try:
            rest = self.body.receive(chunk)
        except StatusError as error:
            self._refuse(error)
            return None
        return None if rest is None else self._receive(rest)

    async def _receive(self, rest: Awaitable[None]) -> None:
        try:
            await rest
        except Exception as error:
            self._refuse(self._as_status(error))

    def finish(self) -> None:
        """Serve the request: its body is complete."""
        self.request.watch.lift()
        if self._status:
            self.end_answer()
        elif not self._over:
            self.connection.set_close_callback(self.on_connection_close)
            self.context.spawn(self._serve())

    async def _serve(self) -> None:
        try:
            await self.serve()
        except Exception as error:
            self.abandon()  # before the client, who may try again, hears of it
            self.answer_error(self._as_status(error))
        else:
            self.abandon()

    def on_connection_close(self) -> None:
        """Drop what was received; a service call in progress goes on."""
        self._end(GONE)
        self.abandon()

    # Inside.

    def _refuse(self, error: StatusError) -> None:
        """Answer before the body is there, then read a bounded rest of it and drop it."""
        if self._over:
            return
        logger.debug("%s %s refused: %s", self.label, self.subject, error)
        self.abandon()
        self._discard = LINGER
        self.request.watch.limit(LINGER_TIME)
        status, body, headers = self.reply_to(error)
        if int(self.request.headers.get("Content-Length", "0")) > LINGER:
            headers["Connection"] = "close"
        self.begin_answer(len(body), status, headers, body)
        if "Expect" in self.request.headers:
            self.end_answer()  # such a client sends no body once it has an answer

    def _as_status(self, error: Exception) -> StatusError:
        """Return the error to send; a fault of the server's own is logged and not described."""
        if isinstance(error, StatusError):
            logger.debug("%s %s: %s", self.label, self.subject, error)
            return error
        if isinstance(error, StreamClosedError):
            return StatusError(Code.CANCELLED, "the client went away")
        logger.error("%s %s failed", self.label, self.subject, exc_info=error)
        return StatusError(Code.INTERNAL, "the server failed; its log says why")

    def _check_header(self) -> None:
        """Refuse a header over the limit.

        :raises StatusError: HTTP 431.
        """
        size = len(self.request.uri)
        for name, value in self.request.headers.get_all():
            size += len(name) + len(value) + 4
        if size > self.context.limits.max_header:
            raise http_error(
                431,
                f"the request's header has {size} bytes; this server takes "
                f"{self.context.limits.max_header}",
            )

    def _end(self, status: int) -> None:
        """Count the request and log it, at debug level."""
        if self._over:
            return
        self._over = True
        self.context.leave(self)
        seconds = time.perf_counter() - self.request.began
        if self.context.metrics is not None:
            received = 0 if self.body is None else self.body.received
            self.context.metrics.request(self.label, status, seconds, received)
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
