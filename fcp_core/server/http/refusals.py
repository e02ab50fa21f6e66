"""What becomes of a request that is not served: refused, failed, too long; and the log of all."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from ssl import SSLError
from typing import Any, cast
from urllib.parse import parse_qs

from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.limits import http_error
from fcp_core.server.http.request import Request

logger = logging.getLogger("fcp.server")

#: How much of the body of a refused request is read before the connection is closed: a client
#: that is still sending may not look at an answer before.
LINGER = 1 << 20
#: How long that may take, in seconds.
LINGER_TIME = 5.0
#: The most parameters of a query.
MAX_PARAMETERS = 100

#: What keeps devices out that mean well: a limit, a key, a rule.
_TOLD = (*(Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED), Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
_CHECK_IN = "EligibilityEvalTasks.RequestEligibilityEvalTask"

#: A request's line in absolute form.
_ABSOLUTE = re.compile(r"(\S+) https?://([^\s/?@]+)([/?]\S*|) (\S+)", re.IGNORECASE)


def origin_form(line: str, headers: HTTPHeaders) -> str:
    """Return a request's line that may name a host as usual, and have that host count.

    As RFC 9112 wants it in section 3.2.2: clients behind a proxy send such lines.
    """
    found = _ABSOLUTE.fullmatch(line)
    if found is None:
        return line
    if "," not in headers.get("Host", ","):
        headers["Host"] = found[2]
    return f"{found[1]} /{found[3].removeprefix('/')} {found[4]}"


def refuse(handler: Request, error: StatusError) -> None:
    """Answer before the body is there, then read a bounded rest of it and drop it."""
    handler.abandon()  # also what it has got since its client went away
    if handler.over:
        return
    logger.debug("%s %s refused: %s", handler.label, handler.subject, error)
    handler.dropping = LINGER
    handler.connection.limit(LINGER_TIME)
    status, body, headers = handler.reply_to(error)
    if int(handler.headers.get("Content-Length", "0")) > LINGER:
        headers["Connection"] = "close"
    handler.begin_answer(len(body), status, headers, body)
    if "Expect" in handler.headers:
        handler.end_answer()  # such a client sends no body once it has an answer


def drop(handler: Request, chunk: bytes) -> None:
    """Drop a piece of a body that nobody wants."""
    if handler.dropping is None:
        handler.dropping = LINGER
    handler.dropping -= len(chunk)
    if handler.dropping < 0:
        # A refused request has its answer; nobody asks for a body that is not read.
        if handler.status:
            handler.end_answer()
        else:
            handler.http.close()


def fail(handler: Request, error: BaseException) -> None:
    """Answer that a request failed, or close the connection if an answer was begun."""
    handler.abandon()  # before the client, who may try again, hears of it
    status = as_status(handler, error)
    if not handler.status:
        number, body, headers = handler.reply_to(status)
        handler.answer(body, number, headers)
    elif not handler.over:
        handler.http.close()
        handler.on_connection_close()


def as_status(handler: Request, error: BaseException) -> StatusError:
    """Return the error to send; a fault of the server's own is logged and not described."""
    if isinstance(error, StatusError):
        logger.debug("%s %s: %s", handler.label, handler.subject, error)
        if handler.of_device and _is_of_configuration(handler, error):
            handler.context.throttled_log.warn(
                f"{handler.label} {error.code}", f"{handler.label}: {error.message}"
            )
        return error
    if isinstance(error, StreamClosedError):
        return StatusError(Code.CANCELLED, "the client went away")
    logger.error("%s %s failed", handler.label, handler.subject, exc_info=error)
    return StatusError(Code.INTERNAL, "the server failed; its log says why")


def _is_of_configuration(handler: Request, error: StatusError) -> bool:
    """Whether an operator may want to know that a device is answered this."""
    if error.code is Code.NOT_FOUND:  # the population; anybody may ask for other things in vain
        return handler.label == _CHECK_IN
    return error.code in _TOLD


def long_header(size: int, limit: int) -> StatusError:
    """Return the error for a header over the limit, both in bytes."""
    return http_error(431, f"the request's header has {size} bytes; this server takes {limit}")


def parameters(handler: Request) -> dict[str, list[str]]:
    """Return the parameters of a request's query.

    :raises StatusError: INVALID_ARGUMENT if there are too many.
    """
    try:
        return parse_qs(
            handler.query, keep_blank_values=True, errors="replace", max_num_fields=MAX_PARAMETERS
        )
    except ValueError as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"the query: {error}") from None


def certificate(handler: Request, *, binary: bool) -> bytes | Mapping[str, Any] | None:
    """Return the client's verified certificate; None if there is none.

    :param binary: whether as DER, or as ``ssl`` gives it.
    """
    if handler.passed is not None:
        shown = handler.passed.der if binary else handler.passed.certificate
        return cast("bytes | Mapping[str, Any] | None", shown)
    if not handler.connection.secure:
        return None
    try:
        found = cast(Any, handler.http.stream).socket.getpeercert(binary) or None
    except SSLError:
        return None
    return cast("bytes | Mapping[str, Any] | None", found)


def log(handler: Request, status: int) -> None:
    """Log the end of a request."""
    seconds = time.perf_counter() - handler.began
    about: dict[str, Any] = {"route": handler.label, "status": status, "seconds": seconds}
    if handler.subject:
        about["session_id"] = handler.subject
    logger.debug(
        "%s %s -> %d in %.1f ms",
        handler.label,
        handler.subject,
        status,
        1000 * seconds,
        extra={"fcp": about},
    )


def never_503(
    status: int, body: bytes, headers: dict[str, str]
) -> tuple[int, bytes, dict[str, str]]:
    """Return a device's answer without 503: clients since September 2024 may crash after one."""
    return (429 if status == 503 else status, body, headers)
