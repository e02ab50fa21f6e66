"""How much of a device a server may use."""

from __future__ import annotations

import contextlib
import io
import zlib
from dataclasses import dataclass

from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError

_GZIP = 31
#: So much is decompressed at a time, in bytes.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a device gives to a server at most.

    :param answer_bytes: of one answer as it is sent, its header too.
    :param content_bytes: of one answer or resource once it is decompressed, and of all slices that
        a plan selects at once.
    :param answer_seconds: from the request to the last byte of its answer.
    :param plan_seconds: that a plan may run.
    :raises UsageError: if one is not positive.
    """

    answer_bytes: int = 512 << 20
    content_bytes: int = 1 << 30
    answer_seconds: float = 1800.0
    plan_seconds: float = 1800.0

    def __post_init__(self) -> None:
        """Refuse what would be no limit."""
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"the limit {name} of a device must be positive, not {value}.")


def limit_memory(limit: int) -> None:
    """Have the system refuse this process more memory; it cannot be undone for a plan alone.

    What fails then is an allocation: the plan does, or the process ends. Where the system keeps no
    such limit, or a lower one, nothing changes.

    :param limit: of the memory that the process can write to, in bytes.
    :raises UsageError: if it is not positive.
    """
    if limit <= 0:
        raise UsageError(f"the limit of memory must be positive, not {limit}.")
    try:
        import resource
    except ImportError:  # not a Unix system
        return
    kept, most = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [bound for bound in (limit, kept, most) if bound != resource.RLIM_INFINITY]
    # Some systems know the limit and cannot set it; what is no number of theirs limits nothing.
    with contextlib.suppress(ValueError, OSError, OverflowError):
        resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), most))


def too_large(what: str, limit: int) -> StatusError:
    """Return the error for what is larger than the device takes."""
    return StatusError(Code.RESOURCE_EXHAUSTED, f"{what} is larger than {limit} bytes")


def gunzip(data: bytes, what: str, limit: int) -> bytes:
    """Return the content of gzip *data*, never holding more than *limit* bytes of it.

    :param what: names the data in errors.
    :raises StatusError: INVALID_ARGUMENT if they are not gzip or are cut short; RESOURCE_EXHAUSTED
        if there is more in them.
    """
    content, at = io.BytesIO(), 0
    while True:
        stream = zlib.decompressobj(wbits=_GZIP)
        while not stream.eof:
            piece = stream.unconsumed_tail
            if not piece:
                piece = data[at : at + _PIECE]
                at += len(piece)
            try:
                part = stream.decompress(piece, _PIECE)
            except zlib.error as error:
                raise _not_gzip(what, str(error)) from error
            if content.tell() + len(part) > limit:
                raise too_large(what, limit)
            content.write(part)
            if not (piece or part or stream.eof):
                raise _not_gzip(what, "it is cut short")
        at -= len(stream.unused_data)
        # Zeros may pad the end; anything else is another part.
        while at < len(data) and data[at] == 0:
            at += 1
        if at == len(data):
            return content.getvalue()


def _not_gzip(what: str, problem: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"{what} was announced as gzip and is not: {problem}")
