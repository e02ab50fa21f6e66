"""The handlers of byte streams: uploads of contributions, downloads of plans and checkpoints."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from urllib.parse import unquote

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.limits import InFlight, http_error
from fcp_core.server.http.rpc import DeviceHandler

_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})", re.IGNORECASE)
_TAG = re.compile(r'\*|(?:W/)?"[^"]*"')

UPLOAD = "/upload/v1/media/"
DOWNLOAD = "/data/"


class UploadHandler(DeviceHandler):
    """``POST /upload/v1/media/{resource_name}?upload_protocol=raw``: one contribution's bytes."""

    label = "upload"
    _name: str | None = None
    _sender: str | None = None
    _wanted = True

    def allowed(self) -> Sequence[str]:
        """Return the only method."""
        return ("POST",)

    def admit(self) -> Awaitable[None]:
        """Authenticate, make room, and only then let the upload begin."""
        self._sender = self.authenticate()
        if self.request.method != "POST":
            raise self.refuse_method()
        protocol = self.parameters().get("upload_protocol", ["raw"])[-1]
        if protocol != "raw":
            raise StatusError(
                Code.INVALID_ARGUMENT, f"upload_protocol {protocol!r} is not supported; use raw"
            )
        self.request.watch.limit(self.context.limits.body_timeout)
        return self._begin(unquote(self.request.path[len(UPLOAD) :]))

    def room(self) -> InFlight:
        """Return where the body is counted: with the uploads that wait already."""
        return self.context.uploads

    async def _begin(self, name: str) -> None:
        media = self.context.services.media
        if await self.context.call(media.begin_upload(name, self._sender)):
            self._name = name
            # A device that is refused stays away for hours; one that is not read from waits.
            await self.room().wait(self.announced() or 0, self.context.limits.body_timeout / 2)
            self.open_body()
        else:
            # The bytes are there; only the answer was lost. What comes is dropped as it comes.
            self._wanted = False
            self.discard_body()

    def abandon(self) -> None:
        """Notify the service that the upload was abandoned."""
        super().abandon()
        name, self._name = self._name, None
        if name is not None:
            media = self.context.services.media
            self.context.spawn(media.abandon_upload(name, self._sender))

    async def serve(self) -> None:
        """Hand the whole body to the service."""
        if not self._wanted:
            self.answer()
            return
        assert self.body is not None  # made by admit, which did not refuse
        body = await self.body.finish()
        name, self._name = self._name, None
        if name is None:
            return  # the connection was lost while the last bytes were decompressed
        try:
            media = self.context.services.media
            await self.context.call(media.finish_upload(name, body, self._sender))
        finally:
            self.body.close()
        self.answer()


class DownloadHandler(DeviceHandler):
    """``GET /data/...``: a plan, a checkpoint or a slice, as it is stored."""

    label = "download"

    async def serve(self) -> None:
        """Send it, or say that the client's copy is still good."""
        name = unquote(self.request.path[len(DOWNLOAD) :])
        found = await self.context.call(self.context.services.media.download(name))
        age = int(found.max_age)
        headers = {
            "ETag": f'"{found.etag}"',
            "Cache-Control": f"max-age={age}" if age > 0 else "no-cache",
            "Accept-Ranges": "bytes",
            "Content-Type": found.content_type,
        }
        if _is_known(self.request.headers.get("If-None-Match", ""), found.etag):
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
            data = data[wanted.start : wanted.stop]
        # The header goes first, so that the data is written as it is, without a copy.
        self.begin_answer(len(data), status, headers)
        if self.request.method != "HEAD":
            try:
                written = self.connection.write(data)
                await asyncio.wait_for(written, self.context.limits.body_timeout)
            except asyncio.TimeoutError:
                self.connection.close()
        self.end_answer()

    def _range(self, size: int, etag: str) -> range | None:
        """Return the requested range: empty if it cannot be satisfied, None for the whole body."""
        headers = self.request.headers
        if self.request.method != "GET" or headers.get("If-Range", f'"{etag}"') != f'"{etag}"':
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
