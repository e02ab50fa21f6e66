"""A request as its handler sees it: what each kind of handler says, and what all of them use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.body import BodyReader, InFlight
from fcp_core.server.http.context import Context
from fcp_core.server.http.inflate import reader_of
from fcp_core.server.http.limits import Limits, http_error
from fcp_core.server.http.passing import Passed
from fcp_core.server.http.rates import RateLimitError

#: What UNAVAILABLE and RESOURCE_EXHAUSTED tell a client to wait, in seconds.
RETRY_AFTER = 5
_RETRY_CODES = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)

PROTOBUF = "application/x-protobuf"
PLAIN: Mapping[str, str] = {"Content-Type": PROTOBUF}


class Channel(Protocol):
    """What a request comes over.

    :ivar address: where it comes from.
    :ivar origin: the address that it counts for, or the network; empty: this machine.
    :ivar secure: whether that is TLS.
    :ivar http: Tornado's connection, for the answer.
    """

    address: str
    origin: str
    secure: bool
    http: HTTP1Connection

    def limit(self, seconds: float) -> None:
        """Close the connection after so many seconds, unless the limit is changed before."""


class Request(ABC):
    """One request, until it is answered; the rest is in ``Handler``.

    :ivar uri: what is asked for, as it was sent, escapes and all.
    :ivar path: the part of it before the query.
    :ivar http: Tornado's connection, for the answer.
    :ivar began: when the header was complete, in seconds of ``time.perf_counter``.
    :ivar announced: the size that the body is said to have; None if it comes in chunks.
    :ivar body: the body, if the handler opened one.
    :ivar small: a small body, which is neither counted nor compressed.
    :ivar status: of the answer, once its header is written.
    :ivar over: whether it was answered, or its client is gone.
    :ivar dropping: how much more of the body is dropped; None: it is taken.
    """

    context: Context
    connection: Channel
    http: HTTP1Connection
    method: str
    uri: str
    path: str
    query: str
    headers: HTTPHeaders
    began: float
    announced: int | None
    body: BodyReader | None
    small: bytearray | None
    status: int
    over: bool
    dropping: int | None

    #: What the log calls the request: never a path, because paths carry tokens.
    label = "request"
    #: Headers of every answer.
    answer_headers: ClassVar[Mapping[str, str]] = PLAIN
    #: Who sent it first, if another member passed it on.
    passed: Passed | None = None
    #: Whether the body was read already, and is given to the handler: nothing more comes.
    read = False
    #: Whether requests count for the limits by address.
    throttled = True
    #: Whether the log says, now and then, why such a request was refused.
    of_device = False

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
            raise self.wrong_method()
        return None

    async def serve(self) -> None:
        """Answer, now that the whole body has come.

        :raises StatusError: to answer that.
        """
        raise NotImplementedError

    def reply_to(self, error: StatusError) -> tuple[int, bytes, dict[str, str]]:
        """Return what an error is answered with: status, body and headers."""
        return (error.http, *self.describe(error))

    def describe(self, error: StatusError) -> tuple[bytes, dict[str, str]]:
        """Return an error as a body with its headers: a serialized ``google.rpc.Status``."""
        headers = {"Content-Type": PROTOBUF}
        if error.code in _RETRY_CODES:
            wait = error.wait if isinstance(error, RateLimitError) else RETRY_AFTER
            headers["Retry-After"] = str(wait)
        if error.http == 405:
            headers["Allow"] = ", ".join(self.allowed())
        return error.to_proto().SerializeToString(), headers

    def wrong_method(self) -> StatusError:
        """Return the error for a method that the address has not."""
        allowed = " and ".join(self.allowed())
        return http_error(405, f"{self.method} is not allowed here; {allowed} is")

    @property
    def address(self) -> str:
        """Where it came from."""
        if self.passed is not None:
            return self.passed.peer
        return self.connection.address

    def open_body(self, limits: Limits, room: InFlight, *, in_file: bool) -> None:
        """Make room for the announced body.

        :param limits: say how large it may be.
        :param room: where it is counted.
        :param in_file: whether a large body may lie in a file; what devices contribute may not
            always.
        :raises StatusError: as ``inflate.reader_of``.
        """
        encoding = self.headers.get("Content-Encoding", "")
        context = self.context
        executor = context.inflating if encoding else context.executor
        rest = (self.announced, limits, room, executor, context.buffers)
        self.body = reader_of(encoding, *rest, in_file=in_file)
        if self.read:
            self.body.direct = False

    @property
    def answered(self) -> bool:
        """Whether an answer was begun."""
        return self.status != 0

    # What handlers do.

    @abstractmethod
    def begin_answer(
        self,
        length: int,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Send the header and what there is of the body, of *length* bytes."""

    @abstractmethod
    def answer(
        self, body: bytes = b"", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the whole answer."""

    @abstractmethod
    def end_answer(self) -> None:
        """Complete the answer, and count the request."""

    @abstractmethod
    def abandon(self) -> None:
        """Release what the request holds. May be repeated."""

    @abstractmethod
    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body, or drop it if the request was refused."""

    @abstractmethod
    def on_connection_close(self) -> None:
        """Drop what was received; a service call in progress goes on."""
