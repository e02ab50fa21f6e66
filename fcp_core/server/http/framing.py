"""Where a request begins and ends: one strict reading of it, so that no proxy reads another.

Tornado takes some headers that proxies frame otherwise (lines that end in a bare line feed, equal
lengths given twice, chunks over HTTP/1.0), and answers a broken body once more after its request
was refused. So the bytes of a header are checked before Tornado parses them, and chunks are read
here. RFC 9112, sections 2.2 to 7.1.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from tornado.httputil import HTTPInputError
from tornado.iostream import IOStream

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(_TOKEN + rb" [\x21-\x7e\x80-\xff]+ HTTP/1\.([01])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)")
#: More bytes than these digits can say, no disk has.
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")

#: The longest line with the size of a chunk, in bytes.
MAX_SIZE_LINE = 64
#: The most bytes of a chunk that are passed on at once.
PIECE = 64 << 10
#: Chunks that are read before other requests have their turn.
CHUNKS_IN_A_ROW = 64


def check_header(data: bytes) -> None:
    """Check a request's line and fields, with the empty line that ends them.

    :raises HTTPInputError: unless all readers agree on where the request ends.
    """
    # One empty line in front is allowed: some clients send one after a body.
    lines = data.removeprefix(b"\r\n").split(b"\r\n")
    if lines[-2:] != [b"", b""] or b"" in lines[:-2]:
        raise HTTPInputError("the header does not end with an empty line")
    request_line = _REQUEST_LINE.fullmatch(lines[0])
    if request_line is None:
        raise HTTPInputError("malformed request line")
    framing: dict[bytes, list[bytes]] = {b"content-length": [], b"transfer-encoding": []}
    for line in lines[1:-2]:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise HTTPInputError("malformed header line")
        values = framing.get(field[1].lower())
        if values is not None:
            values.append(field[2].strip(b" \t"))
    lengths, codings = framing.values()
    if len(lengths) + len(codings) > 1:
        raise HTTPInputError("the length of the body is given more than once")
    if lengths and _LENGTH.fullmatch(lengths[0]) is None:
        raise HTTPInputError("malformed Content-Length")
    if codings and (codings[0].lower() != b"chunked" or request_line[1] == b"0"):
        raise HTTPInputError("the Transfer-Encoding is not chunked, or not for HTTP/1.0")


def check_headers_of(stream: IOStream) -> None:
    """Have the headers of all requests on a connection checked, before anybody parses them."""
    read = stream.read_until_regex  # which Tornado's connections use for headers only

    async def read_header(regex: bytes, max_bytes: int | None = None) -> bytes:
        data = await read(regex, max_bytes)
        check_header(data)
        return data

    stream.read_until_regex = read_header  # type: ignore[method-assign]


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
