"""Canonical status codes, the error that carries one, and their HTTP mapping."""

from __future__ import annotations

from enum import IntEnum

from fcp_core.protocol.protos import google_rpc_status_pb2


class Code(IntEnum):
    """The canonical codes (``google.rpc.Code``)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_TO_HTTP = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}

_FROM_HTTP = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    409: Code.ABORTED,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


def http_status(code: Code) -> int:
    """Return the HTTP status that a server answers for *code*."""
    return _TO_HTTP[code]


def code_from_http(status: int) -> Code:
    """Return the code that a device makes of an HTTP status (the client's own table)."""
    if 200 <= status < 300:
        return Code.OK
    if status in _FROM_HTTP:
        return _FROM_HTTP[status]
    if 400 <= status < 500:
        return Code.FAILED_PRECONDITION
    if 500 <= status < 600:
        return Code.INTERNAL
    return Code.UNKNOWN


class StatusError(Exception):
    """A failure with a canonical code: what domain code raises and handlers map.

    :param code: never ``Code.OK``.
    :param message: what was wrong and what to do, for whoever sent the request.
    :param http: an HTTP status that overrides the code's own (413 for a body over the limit).
    """

    def __init__(self, code: Code, message: str, *, http: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self._http = http

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from another process."""
        return (_restore, (self.code, self.message, self._http))

    @property
    def http(self) -> int:
        """The HTTP status to answer."""
        return self._http if self._http is not None else http_status(self.code)

    def to_proto(self) -> google_rpc_status_pb2.Status:
        """Return the ``google.rpc.Status`` of this error."""
        return google_rpc_status_pb2.Status(code=int(self.code), message=self.message)


def _restore(code: Code, message: str, http: int | None) -> StatusError:
    return StatusError(code, message, http=http)
