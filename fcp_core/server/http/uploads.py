"""The handler of uploads."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any
from urllib.parse import unquote

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http import refusals
from fcp_core.server.http.handler import Handler
from fcp_core.server.http.identify import identify
from fcp_core.server.http.passing import UPLOAD

_QUERIES = frozenset({"", "upload_protocol=raw"})


class UploadHandler(Handler):
    """``POST /upload/v1/media/{resource_name}?upload_protocol=raw``: one contribution's bytes."""

    label = "upload"
    #: The name of the upload, from its beginning until its body is complete.
    _name: str | None = None
    _sender: str | None = None
    _wanted = True

    def allowed(self) -> Sequence[str]:
        """Return the only method."""
        return ("POST",)

    def admit(self) -> Coroutine[Any, Any, None]:
        """Authenticate, make room, and only then let the upload begin."""
        context = self.context
        self._sender = identify(self) if context.identifies else None
        if self.method != "POST":
            raise refusals.wrong_method(self)
        if self.query not in _QUERIES:
            protocol = refusals.parameters(self).get("upload_protocol", ["raw"])[-1]
            if protocol != "raw":
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"upload_protocol {protocol!r} is not supported; use raw",
                )
        self.connection.limit(context.limits.body_timeout)
        return self._begin(unquote(self.path[len(UPLOAD) :]))

    def reply_to(self, error: StatusError) -> tuple[int, bytes, dict[str, str]]:
        """Return what an error is answered with."""
        return refusals.never_503(*super().reply_to(error))

    async def _begin(self, name: str) -> None:
        context = self.context
        if await context.services.media.begin_upload(name, self._sender):
            self._name = name
            # A device that is refused stays away for hours; one that is not read from waits.
            await context.uploads.wait(self.announced or 0, context.limits.body_timeout / 2)
            self.open_body(context.limits, context.uploads)
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
            await self.context.services.media.finish_upload(name, body, self._sender)
        finally:
            self.body.close()
        self.answer()
