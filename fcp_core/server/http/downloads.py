"""The handler of downloads: plans, checkpoints and slices."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from urllib.parse import unquote

from fcp_core.protocol.status import StatusError
from fcp_core.server.http import refusals
from fcp_core.server.http.forward import pass_on
from fcp_core.server.http.handler import Handler
from fcp_core.server.http.limits import http_error
from fcp_core.server.http.passing import DOWNLOAD
from fcp_core.server.services.spool import Spooled

_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})", re.IGNORECASE)
_TAG = re.compile(r'\*|(?:W/)?"[^"]*"')

#: Bytes that are written before others have their turn.
PART = 1 << 20
#: Bytes that are read from a file at once: a device that does not take them keeps them in memory.
READ = 128 << 10


class DownloadHandler(Handler):
    """``GET /data/...``: a plan, a checkpoint or a slice, as it is stored."""

    label = "download"
    of_device = True

    def reply_to(self, error: StatusError) -> tuple[int, bytes, dict[str, str]]:
        """Return what an error is answered with."""
        return refusals.never_503(*super().reply_to(error))

    async def serve(self) -> None:
        """Send it, or say that the client's copy is still good."""
        name = unquote(self.path[len(DOWNLOAD) :])
        try:
            found = await self.context.services.media.download(name)
        except StatusError as failure:
            if not await self.context.went(self.method, self.path, failure):
                raise
            await pass_on(self, partial(DownloadHandler, self.context))
            return
        age = int(found.max_age)
        headers = {
            "ETag": f'"{found.etag}"',
            "Cache-Control": f"max-age={age}" if age > 0 else "no-cache",
            "Accept-Ranges": "bytes",
            "Content-Type": found.content_type,
        }
        if _is_known(self.headers.get("If-None-Match", ""), found.etag):
            self.answer(b"", 304, headers)
            return
        data, status = found.data, 200
        wanted = self._range(len(data), found.etag)
        if wanted is not None:
            if not wanted:
                error = http_error(416, f"there are {len(data)} bytes; the range has none")
                body, more = self.describe(error)
                headers |= {**more, "Content-Range": f"bytes */{len(data)}"}
                self.answer(body, 416, headers)
                return
            status = 206
            headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{len(data)}"
        part = range(len(data)) if wanted is None else wanted
        # The header goes first, so that the data is written as it is, without a copy.
        self.begin_answer(len(part), status, headers)
        if self.method != "HEAD":
            try:
                await asyncio.wait_for(self._write(data, part), self.context.limits.body_timeout)
            except asyncio.TimeoutError:
                self.http.close()
        self.end_answer()

    async def _write(self, data: bytes | Spooled, wanted: range) -> None:
        """Write it part by part: a fast device would have the loop for itself meanwhile."""
        loop = asyncio.get_running_loop()
        step = PART if isinstance(data, bytes) else READ
        for start in range(wanted.start, wanted.stop, step):
            stop = min(start + step, wanted.stop)
            part: bytes | memoryview
            if isinstance(data, bytes):
                part = memoryview(data)[start:stop]
            else:
                part = await loop.run_in_executor(self.context.executor, data.read, start, stop)
            await self.http.write(part)  # type: ignore[arg-type]
            await asyncio.sleep(0)

    def _range(self, size: int, etag: str) -> range | None:
        """Return the requested range: empty if it cannot be satisfied, None for the whole body."""
        headers = self.headers
        if self.method != "GET" or headers.get("If-Range", f'"{etag}"') != f'"{etag}"':
            return None
        return parse_range(headers.get("Range", ""), size)


def parse_range(header: str, size: int) -> range | None:
    """Return the bytes that a ``Range`` header asks for.

    :returns: an empty range if there are no such bytes; None if the header is empty or malformed,
        or asks for several ranges: all bytes then answer it, as RFC 9110 allows.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        last = min(int(found[2]), size)
        return range(size - last, size)
    first = int(found[1])
    end = min(int(found[2]) + 1, size) if found[2] else size
    if found[2] and int(found[2]) < first:
        return None
    return range(first, end) if first < size else range(0)


def _is_known(header: str, etag: str) -> bool:
    """Whether an ``If-None-Match`` header names what has this tag."""
    tags = _TAG.findall(header)
    return tags[:1] == ["*"] or f'"{etag}"' in [tag.removeprefix("W/") for tag in tags]
