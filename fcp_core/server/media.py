"""The handlers of byte streams: uploads of contributions, downloads of plans and checkpoints."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import cast
from urllib.parse import unquote

from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.handlers import BaseHandler, BodyHandler
from fcp_core.server.limits import http_error

_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})", re.IGNORECASE)

UPLOAD = "/upload/v1/media/"
DOWNLOAD = "/data/"


class UploadHandler(BodyHandler):
    """``POST /upload/v1/media/{resource_name}?upload_protocol=raw``: one contribution's bytes."""

    label = "upload"
    _name: str | None = None

    def allowed(self) -> Sequence[str]:
        """Return the only method."""
        return ("POST",)

    async def admit(self) -> None:
        """Authenticate, make room, and only then use up the resource name."""
        self.authenticate()
        if self.request.method != "POST":
            raise self.refuse_method()
        protocol = self.get_query_argument("upload_protocol", "raw")
        if protocol != "raw":
            raise StatusError(
                Code.INVALID_ARGUMENT, f"upload_protocol {protocol!r} is not supported; use raw"
            )
        connection = cast(HTTP1Connection, self.request.connection)
        connection.set_body_timeout(self.context.limits.body_timeout)
        # First the room: a device that is told to come back needs the name again.
        self.open_body()
        name = unquote(self.request.path[len(UPLOAD) :])
        await self.context.call(self.context.services.media.begin_upload(name))
        self._name = name

    def abandon(self) -> None:
        """Tell the service that the bytes will not come."""
        super().abandon()
        name, self._name = self._name, None
        if name is not None:
            self.context.spawn(self.context.services.media.abandon_upload(name))

    async def serve(self) -> None:
        """Hand the whole body to the service."""
        if self.refused():
            return
        assert self.body is not None  # made by admit, which did not refuse
        try:
            body = await self.body.finish()
        except StatusError:
            self.abandon()
            raise
        name, self._name = self._name, None
        if name is None:
            return  # the connection was lost while the last bytes were decompressed
        try:
            await self.context.call(self.context.services.media.finish_upload(name, body))
        finally:
            self.body.close()
        self.finish()

    get = head = post = put = patch = delete = options = serve


class DownloadHandler(BaseHandler):
    """``GET /data/...``: a plan, a checkpoint or a slice, as it is stored."""

    label = "download"

    async def prepare(self) -> None:
        """Count the request."""
        self.context.enter()
        self.throttle()
        self.check_header()

    async def get(self) -> None:
        """Send it, or say that the client's copy is still good."""
        name = unquote(self.request.path[len(DOWNLOAD) :])
        found = await self.context.call(self.context.services.media.download(name))
        self.set_header("ETag", f'"{found.etag}"')
        age = int(found.max_age)
        self.set_header("Cache-Control", f"max-age={age}" if age > 0 else "no-cache")
        self.set_header("Accept-Ranges", "bytes")
        if self.check_etag_header():
            self.set_status(304)
            self.clear_header("Content-Type")
            return
        data = found.data
        wanted = self._range(len(data), found.etag)
        if wanted is not None:
            if not wanted:
                self.respond(http_error(416, f"there are {len(data)} bytes; the range has none"))
                self.set_header("Content-Range", f"bytes */{len(data)}")
                return
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {wanted.start}-{wanted.stop - 1}/{len(data)}")
            data = data[wanted.start : wanted.stop]
        self.set_header("Content-Type", found.content_type)
        self.set_header("Content-Length", str(len(data)))
        if self.request.method == "HEAD":
            return
        # The header goes first, so that the data is written as it is, without a copy.
        self.flush()
        self.write(data)
        try:
            await asyncio.wait_for(self.flush(), self.context.limits.body_timeout)
        except asyncio.TimeoutError:
            cast(HTTP1Connection, self.request.connection).close()
        except StreamClosedError:
            pass  # the client has gone; there is nobody to answer

    head = get

    def _range(self, size: int, etag: str) -> range | None:
        """Return which bytes are asked for, none of them if there are none; None: all."""
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
