"""One HTTP request and its answer: what all handlers have in common, and that of calls.

A handler is given what Tornado's HTTP/1 connection says, which parses headers, frames bodies and
keeps connections alive. ``tornado.web`` stands between the two elsewhere; here it would cost more
than the calls themselves. A request goes through these steps:

* ``begin``: the handler admits the request from its header alone (:meth:`Handler.admit`) and makes
  room for its body, or refuses it;
* the body comes: in pieces, or, if it is large and its length was announced, straight off the
  socket into the buffer that the service will get;
* ``finish``: :meth:`Handler.serve` answers, at once if it need not wait.

A refused request is answered at once, and a bounded rest of its body is then read and dropped, so
that a reset does not eat the answer (:mod:`fcp_core.server.http.refusals`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from google.protobuf.message import DecodeError, Message
from tornado.httputil import HTTPHeaders

from fcp_core.protocol import routes
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tokens import label
from fcp_core.server.http import answers, refusals
from fcp_core.server.http.bodies import take_body, take_piece
from fcp_core.server.http.connections import Connection, run_now
from fcp_core.server.http.identify import identify
from fcp_core.server.http.limits import Limits, limits_of_call
from fcp_core.server.http.rates import address_key
from fcp_core.server.reached import HOST
from fcp_core.server.services.eligibility import ADDRESS

if TYPE_CHECKING:
    from fcp_core.server.http.body import BodyReader, InFlight
    from fcp_core.server.http.context import Context
    from fcp_core.server.http.passing import Passed

logger = logging.getLogger("fcp.server")

PROTOBUF = "application/x-protobuf"
_PLAIN: Mapping[str, str] = {"Content-Type": PROTOBUF}
#: How nearly all answers begin.
_OK = (
    "HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Type: application/x-protobuf\r\n"
    "Content-Length: %d\r\n\r\n"
)

#: The queries that devices send.
_QUERIES = frozenset({"", "%24alt=proto", "$alt=proto", "alt=proto"})

#: Answers from this size on are not copied behind their header.
WRITE_APART = 64 << 10
#: What a request is counted as whose client went away.
GONE = 499


class Handler:
    """Takes one request and answers it; errors as a serialized ``google.rpc.Status``.

    :param connection: what it comes on.
    :param uri: what is asked for, as it was sent, escapes and all.
    :ivar path: the part of it before the query.
    :ivar http: Tornado's connection, for the answer.
    :ivar began: when the header was complete, in seconds of ``time.perf_counter``.
    :ivar announced: the size that the body is said to have; None if it comes in chunks.
    :ivar body: the body, if the handler opened one.
    """

    #: What the log calls the request: never a path, because paths carry tokens.
    label = "request"
    #: Headers of every answer.
    answer_headers: ClassVar[Mapping[str, str]] = _PLAIN
    #: Who sent it first, if another member passed it on.
    passed: Passed | None = None
    #: Whether requests count for the limits by address.
    throttled = True
    #: Whether the log says, now and then, why such a request was refused.
    of_device = False

    def __init__(
        self,
        context: Context,
        connection: Connection,
        method: str,
        uri: str,
        headers: HTTPHeaders,
    ) -> None:
        self.began = time.perf_counter()
        self.context = context
        self.method = method
        self.uri = uri
        self.path, _, self.query = uri.partition("?")
        self.headers = headers
        self.connection = connection
        self.http = connection.http
        self.announced: int | None = None
        self.body: BodyReader | None = None
        #: A small body, which is neither counted nor compressed.
        self.small: bytearray | None = None
        #: Whether the connection goes on after a POST, and nothing need be said of that.
        self.kept = False
        #: The status of the answer, once its header is written.
        self.status = 0
        self.over = False
        #: How much more of the body is dropped; None: it is taken.
        self.dropping: int | None = None

    # What a handler says.

    @property
    def subject(self) -> str:
        """What the log adds, such as a name for the session."""
        return ""

    def allowed(self) -> Sequence[str]:
        """Return the methods that the address has."""
        return ("GET", "HEAD")

    def admit(self) -> Coroutine[Any, Any, None] | None:
        """Decide, from the header alone, whether the request may go on, and open its body.

        :raises StatusError: if not; what is returned may raise it too.
        """
        if self.method not in self.allowed():
            raise refusals.wrong_method(self)
        return None

    async def serve(self) -> None:
        """Answer, now that the whole body has come.

        :raises StatusError: to answer that.
        """
        raise NotImplementedError

    def abandon(self) -> None:
        """Release what the request holds. May be repeated."""
        if self.body is not None and not self.body.closed:
            self.body.close()

    def reply_to(self, error: StatusError) -> tuple[int, bytes, dict[str, str]]:
        """Return what an error is answered with: status, body and headers."""
        return (error.http, *self.describe(error))

    #: Returns an error as a body with its headers.
    describe = refusals.describe

    # What handlers use.

    #: Sends the header of an answer that is not sent whole.
    begin_answer = answers.begin

    @property
    def address(self) -> str:
        """Where it came from."""
        if self.passed is not None:
            return self.passed.peer
        return str(getattr(self.http.context, "remote_ip", ""))

    def open_body(self, limits: Limits, room: InFlight) -> None:
        """Make room for the announced body.

        :param limits: say how large it may be.
        :param room: where it is counted.
        :raises StatusError: as ``inflate.reader_of``.
        """
        self.body = self.context.read_body(self, limits, room)

    def discard_body(self) -> None:
        """Drop the body as it comes, up to the size that a body may have."""
        if self.body is not None:
            self.body.close()
            self.body = None
        self.dropping = self.context.limits.max_body

    def answer(
        self, body: bytes = b"", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the whole answer."""
        if status == 200 and headers is None and self.kept and self.answer_headers is _PLAIN:
            if not self.over:
                # Tornado would check and join these headers for a tenth of a whole session's time.
                self.status = 200
                head = _OK % (answers.date(int(time.time())), len(body))
                self.http.write(head.encode("latin-1") + body)
                self.end_answer()
            return
        apart = len(body) >= WRITE_APART and self.method != "HEAD"
        self.begin_answer(len(body), status, headers, b"" if apart else body)
        if apart and not self.over:
            self.http.write(body)
        self.end_answer()

    def end_answer(self) -> None:
        """Complete the answer, and count the request."""
        if not self.over:
            self.http.finish()
            self.end(self.status)

    @property
    def answered(self) -> bool:
        """Whether an answer was begun."""
        return self.status != 0

    # What the connection tells.

    def begin(self) -> Awaitable[None] | None:
        """Admit the request; the connection waits for what is returned, then reads the body."""
        context, headers = self.context, self.headers
        context.busy.add(self)
        if "Transfer-Encoding" not in headers:
            self.announced = int(headers.get("Content-Length", "0"))
        if self.announced != 0:
            self.connection.limit(context.limits.idle_timeout)
        admitted = None
        try:
            if self.throttled and context.addresses.active:
                context.addresses.take(address_key(self.address))
            size = len(self.uri)
            for name, value in headers.get_all():
                size += len(name) + len(value) + 4
            if size > context.limits.max_header:
                raise refusals.long_header(size, context.limits.max_header)
            waits = self.admit()
            if waits is not None:
                admitted = run_now(waits)
        except Exception as error:
            refusals.refuse(self, refusals.as_status(self, error))
            return None
        if admitted is None and (self.body is None or not self.body.direct):
            return None
        return take_body(self, admitted)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body, or drop it if the request was refused."""
        if self.small is not None and self.dropping is None:
            self.small += chunk
            return None
        if self.body is None or self.dropping is not None:
            refusals.drop(self, chunk)
            return None
        try:
            rest = self.body.receive(chunk)
        except StatusError as error:
            refusals.refuse(self, error)
            return None
        return None if rest is None else take_piece(self, rest)

    def finish(self) -> None:
        """Serve the request: its body is complete."""
        if self.status:
            self.end_answer()
        elif not self.over:
            waits = run_now(self._serve())
            if waits is not None:
                self.http.set_close_callback(self.on_connection_close)
                self.context.serve(waits)

    async def _serve(self) -> None:
        try:
            await self.serve()
        except Exception as error:
            refusals.fail(self, error)
        except asyncio.CancelledError:
            refusals.fail(self, self.context.stopped())
        else:
            self.abandon()

    def on_connection_close(self) -> None:
        """Drop what was received; a service call in progress goes on."""
        self.end(GONE)
        self.abandon()

    def end(self, status: int) -> None:
        """Count the request and log it, at debug level."""
        if self.over:
            return
        self.over = True
        context = self.context
        context.busy.discard(self)
        if context.awaited:
            context.leave(self)
        if context.metrics is not None:
            small = len(self.small or ())
            received = small if self.body is None else self.body.received
            seconds = time.perf_counter() - self.began
            context.metrics.request(self.label, status, seconds, received)
        if logger.isEnabledFor(logging.DEBUG):
            refusals.log(self, status)


class RPCHandler(Handler):
    """One call of the protocol, whichever: the routing table says which."""

    of_device = True
    _variables: dict[str, str]

    @property
    def subject(self) -> str:
        """What the log calls the session: not its id, which is a capability."""
        session_id = getattr(self, "_variables", {}).get("session_id")
        return label(session_id) if session_id else ""

    def allowed(self) -> Sequence[str]:
        """Return the verbs of the routes that match."""
        return routes.verbs(self.path)

    def admit(self) -> None:
        """Authenticate, find the route, make room for the body."""
        context = self.context
        self._caller = identify(self) if context.identifies else None
        path = self.path
        # What a path of ours ends with, after its last colon, nearly always tells the call.
        served = context.served.get((self.method, path.rpartition(":")[2]), ())
        for matches, route, method in served:
            found = matches(path)
            if found is not None and "%" not in path:
                self._route, self._variables, self._method = route, found.groupdict(), method
                break
        else:
            self._route, self._variables, self._method = context.find(self)
            route = self._route
        self.label = route.name
        if self.query not in _QUERIES:
            given = refusals.parameters(self)
            if {*given.get("$alt", ()), *given.get("alt", ())} - {"proto"}:
                raise StatusError(Code.INVALID_ARGUMENT, "answers are protobuf only: $alt=proto")
        size = self.announced
        if size is not None and size <= context.small and "Content-Encoding" not in self.headers:
            self.small = bytearray()
        else:
            # What is parsed on the loop is small, and never counted with uploads.
            self.open_body(limits_of_call(context.limits, route.method), context.calls)

    def reply_to(self, error: StatusError) -> tuple[int, bytes, dict[str, str]]:
        """Turn a device away gently that cannot be served now, if the call has a way to say so."""
        response = None
        if error.http >= 500 and error.code is not Code.UNIMPLEMENTED:
            try:
                found = routes.match(self.method, self.path)
            except StatusError:  # the path is malformed
                found = None
            if found is not None:
                response = self.context.services.turn_away(*found)
        if response is None:
            return refusals.never_503(*super().reply_to(error))
        return 200, response.SerializeToString(), {}

    async def serve(self) -> None:
        """Parse, call, answer."""
        data: bytearray | memoryview | None = self.small
        if data is None:
            assert self.body is not None  # made by admit, which did not refuse
            try:
                data = await self.body.finish()
            finally:
                self.body.close()
        request: Message = self._route.request_class()
        try:
            request.ParseFromString(bytes(data))
        except DecodeError:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the body is not a {request.DESCRIPTOR.full_name} (malformed protobuf, "
                f"{len(data)} bytes)",
            ) from None
        for name, value in self._variables.items():
            setattr(request, name, value)
        ADDRESS.set(self.connection.origin if self.passed is None else self.passed.peer)
        given = self.headers.get
        HOST.set((given("Host", ""), given("X-Forwarded-Proto", "")))
        elsewhere = self.context.members is not None and self.context.is_elsewhere(self)
        try:
            response = None if elsewhere else await self._method(request, self._caller)
        except StatusError as error:
            if not await self.context.went(self, error):
                raise
            response = None
        if response is None:
            await self.context.pass_on(self, partial(RPCHandler, self.context), request)
            return
        answer = response.SerializeToString()
        if len(answer) >= answers.COMPRESS and await answers.compressed(self, answer):
            return
        self.answer(answer)
