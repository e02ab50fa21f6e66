"""Bodies that are not just taken piece by piece: those in chunks, and large ones.

Chunks are read strictly: Tornado would answer a malformed one a second time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPInputError
from tornado.iostream import IOStream, StreamClosedError

from fcp_core.server.http import refusals
from fcp_core.server.http.request import Request

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")

#: The longest line with the size of a chunk, in bytes.
MAX_SIZE_LINE = 64
#: The most bytes of a chunk that are passed on at once.
PIECE = 64 << 10
#: Chunks that are read before other requests have their turn.
CHUNKS_IN_A_ROW = 64


async def take_chunks(
    connection: HTTP1Connection, handler: Request, admitted: Awaitable[None] | None
) -> None:
    """Pass a chunked body on to its handler.

    :param admitted: what to wait for before.
    :raises HTTPInputError: if it is malformed and nothing was answered yet.
    """
    if admitted is not None:
        await admitted
    stream, headers = connection.stream, handler.headers
    if headers.pop("Expect", "").lower() == "100-continue" and not handler.answered:
        stream.write(b"HTTP/1.1 100 (Continue)\r\n\r\n")
    try:
        async for piece in read_chunks(stream):
            rest = handler.data_received(piece)
            if rest is not None:
                await rest
    except HTTPInputError:
        if not handler.answered:
            raise
        handler.end_answer()  # before the body has ended, so the connection is closed
    except StreamClosedError:
        connection.detach()
        handler.on_connection_close()
    # Nothing is left to read.
    del headers["Transfer-Encoding"]


async def read_chunks(stream: IOStream) -> AsyncIterator[bytes]:
    """Yield the pieces of a chunked body; extensions and trailers are refused.

    :raises HTTPInputError: if it is malformed; nothing that follows can be read then.
    :raises StreamClosedError: if the connection breaks.
    """
    count = 0
    while True:
        size = _CHUNK_SIZE.fullmatch(await stream.read_until(b"\r\n", MAX_SIZE_LINE))
        if size is None:
            raise HTTPInputError("malformed size of a chunk")
        left = int(size[1], 16)
        last = not left
        while left:
            piece = await stream.read_bytes(min(left, PIECE), partial=True)
            left -= len(piece)
            yield piece
        if await stream.read_bytes(2) != b"\r\n":
            raise HTTPInputError("a chunk is not as long as it says, or there are trailers")
        if last:
            return
        count += 1
        if count % CHUNKS_IN_A_ROW == 0:
            await asyncio.sleep(0)


async def take_body(handler: Request, admitted: Awaitable[None] | None) -> None:
    """Wait for the admission, then take a large body straight off the socket."""
    try:
        if admitted is not None:
            await handler.context.call(admitted)
    except Exception as error:
        refusals.refuse(handler, refusals.as_status(handler, error))
        return
    headers = handler.headers
    if handler.body is None or not handler.body.direct or handler.over:
        return
    stream = handler.http.stream
    try:
        if headers.get("Expect") == "100-continue":
            # The connection would say so only later.
            del headers["Expect"]
            stream.write(b"HTTP/1.1 100 (Continue)\r\n\r\n")
        await handler.body.receive_from(stream)
    except StreamClosedError:
        # A stream that broke here must not be read again: it holds on to our buffer.
        handler.http.detach()
        handler.on_connection_close()
        return
    except Exception as error:
        refusals.refuse(handler, refusals.as_status(handler, error))
    # The connection reads as much of a body as the header says when this returns.
    headers["Content-Length"] = str(int(headers["Content-Length"]) - handler.body.received)


async def take_piece(handler: Request, rest: Awaitable[None]) -> None:
    """Wait until a piece of a body is taken."""
    try:
        await rest
    except Exception as error:
        refusals.refuse(handler, refusals.as_status(handler, error))
