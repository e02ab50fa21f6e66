"""Maps failures of the engine to the status that a device receives."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

from fcp_core.protocol.status import Code, StatusError

logger = logging.getLogger("fcp.services")

#: What a device may receive as it is; anything else stays in the server.
_PUBLIC = (
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.RESOURCE_EXHAUSTED,
    Code.CANCELLED,
    Code.ABORTED,
    Code.UNAVAILABLE,
)
#: What the engine calls a checkpoint that does not fit.
_UNFIT = (Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE)


def outcome_of(future: Future[Any]) -> tuple[Code, str]:
    """Return how a future of the engine ended; OK if it has a result."""
    if future.cancelled():
        return Code.ABORTED, "the task is over"
    error = future.exception()
    if error is None:
        return Code.OK, ""
    if isinstance(error, StatusError):
        return error.code, error.message
    logger.error("the aggregation engine failed", exc_info=error)
    return Code.INTERNAL, f"the aggregation engine failed: {error}"


def device_status(code: Code, message: str) -> StatusError:
    """Return what a device receives whose assignment ended with this error."""
    if code in _UNFIT:
        code = Code.INVALID_ARGUMENT
    elif code not in _PUBLIC:
        code, message = Code.INTERNAL, "the contribution could not be aggregated"
    return StatusError(code, message)
