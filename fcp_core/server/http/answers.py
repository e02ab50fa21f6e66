"""Answers that are not sent whole, or compressed."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache, partial
from http.client import responses

from tornado.httputil import HTTPHeaders, ResponseStartLine

from fcp_core.protocol.compression import is_worth_compressing
from fcp_core.server.http.request import Request

#: Returns a time in whole seconds as HTTP writes it.
date = lru_cache(maxsize=2)(partial(formatdate, usegmt=True))

#: Answers from this size on are not copied behind their header.
WRITE_APART = 64 << 10
#: Answers from this size on are compressed for a client that accepts it.
COMPRESS = 2 << 10
#: Answers from this size on are compressed in another thread.
COMPRESS_APART = 64 << 10


def begin(
    handler: Request,
    length: int,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> None:
    """Send the header and what there is of the body.

    :param length: of the whole body, in bytes.
    :param headers: instead of, and in addition to, those of every answer.
    """
    if handler.over:
        return
    handler.status = status
    fields = HTTPHeaders({"Date": date(int(time.time())), **handler.answer_headers})
    fields["Content-Length"] = str(length)
    if headers:
        fields.update(headers)
    if status == 304:  # it has no body that these could describe
        del fields["Content-Length"]
        fields.pop("Content-Type", None)
    start = ResponseStartLine("HTTP/1.1", status, responses.get(status, "Unknown"))
    handler.http.write_headers(start, fields, None if handler.method == "HEAD" else body)


def whole(handler: Request, body: bytes, status: int, headers: Mapping[str, str] | None) -> None:
    """Send a whole answer, and complete it."""
    apart = len(body) >= WRITE_APART and handler.method != "HEAD"
    begin(handler, len(body), status, headers, b"" if apart else body)
    if apart and not handler.over:
        handler.http.write(body)
    handler.end_answer()


async def compressed(handler: Request, data: bytes) -> bool:
    """Send an answer compressed, if the client takes that and it helps; return whether it was."""
    accepted = handler.headers.get("Accept-Encoding", "")
    # Most of a large one is a resource, which is compressed already.
    if not (accepts_gzip(accepted) and is_worth_compressing(data)):
        return False
    if len(data) < COMPRESS_APART:
        packed = gzip.compress(data, 1)
    else:
        loop = asyncio.get_running_loop()
        packed = await loop.run_in_executor(handler.context.executor, gzip.compress, data, 1)
    handler.answer(packed, headers={"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})
    return True


def accepts_gzip(header: str) -> bool:
    """Whether a client says that it takes gzip."""
    for item in header.lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() in ("gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
