"""A request as its handler sees it: what each kind of handler says, and what all of them use."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders

from fcp_core.protocol.status import StatusError
from fcp_core.server.http import refusals
from fcp_core.server.http.limits import Limits

if TYPE_CHECKING:
    from fcp_core.server.http.body import BodyReader, InFlight
    from fcp_core.server.http.context import Context
    from fcp_core.server.http.handler import Connection
    from fcp_core.server.http.passing import Passed

PROTOBUF = "application/x-protobuf"
PLAIN: Mapping[str, str] = {"Content-Type": PROTOBUF}


class Request:
    """One request, until it is answered; the rest is in ``Handler``.

    :ivar uri: what is asked for, as it was sent, escapes and all.
    :ivar path: the part of it before the query.
    :ivar http: Tornado's connection, for the answer.
    :ivar began: when the header was complete, in seconds of ``time.perf_counter``.
    :ivar announced: the size that the body is said to have; None if it comes in chunks.
    :ivar body: the body, if the handler opened one.
    :ivar small: a small body, which is neither counted nor compressed.
    :ivar status: of the answer, once its header is written.
    :ivar dropping: how much more of the body is dropped; None: it is taken.
    """

    context: Context
    connection: Connection
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
    dropping: int | None

    #: What the log calls the request: never a path, because paths carry tokens.
    label = "request"
    #: Headers of every answer.
    answer_headers: ClassVar[Mapping[str, str]] = PLAIN
    #: Who sent it first, if another member passed it on.
    passed: Passed | None = None
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
            raise refusals.wrong_method(self)
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
        """Return an error as a body with its headers."""
        return refusals.describe(self, error)

    @property
    def address(self) -> str:
        """Where it came from."""
        if self.passed is not None:
            return self.passed.peer
        return self.connection.address

    def open_body(self, limits: Limits, room: InFlight) -> None:
        """Make room for the announced body.

        :param limits: say how large it may be.
        :param room: where it is counted.
        :raises StatusError: as ``inflate.reader_of``.
        """
        self.body = self.context.read_body(self, limits, room)

    @property
    def answered(self) -> bool:
        """Whether an answer was begun."""
        return self.status != 0
