"""What became of a piece of work in the engine, and what a device is told of it."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

from fcp_core.protocol.status import Code, StatusError

logger = logging.getLogger("fcp.services")

#: What a device may be told as it is; anything else is the server's own affair.
_TELLABLE = (
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.RESOURCE_EXHAUSTED,
    Code.ABORTED,
    Code.UNAVAILABLE,
)
#: What a checkpoint that does not fit is called further down.
_UNFIT = (Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE)


def outcome_of(future: Future[Any]) -> tuple[Code, str]:
    """Return how a future of the engine ended; OK if it has a result."""
    error = None if future.cancelled() else future.exception()
    if future.cancelled():
        return Code.ABORTED, "the round is over"
    if error is None:
        return Code.OK, ""
    if isinstance(error, StatusError):
        return error.code, error.message
    logger.error("the aggregation engine failed", exc_info=error)
    return Code.INTERNAL, f"the aggregation engine failed: {error}"


def told(code: Code, message: str) -> tuple[Code, str]:
    """Return what the device is told whose contribution had this outcome."""
    if code in _UNFIT:
        return Code.INVALID_ARGUMENT, message
    if code not in _TELLABLE:
        return Code.INTERNAL, "the contribution could not be aggregated"
    return code, message
