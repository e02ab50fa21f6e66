"""The handlers of what devices do: calls of the protocol, and uploads of contributions."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote

from google.protobuf.message import DecodeError, Message

from fcp_core.protocol import routes
from fcp_core.protocol.compression import is_worth_compressing
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.token_parts import sender_of
from fcp_core.rounds.tokens import label
from fcp_core.server.http import refusals
from fcp_core.server.http.forward import pass_on
from fcp_core.server.http.handler import Handler
from fcp_core.server.http.large_uploads import LARGE
from fcp_core.server.http.limits import limits_of_call
from fcp_core.server.http.passing import UPLOAD
from fcp_core.server.reached import HOST
from fcp_core.server.services.eligibility import ADDRESS

#: Where devices send their API key.
KEY_HEADER = "x-goog-api-key"

#: Answers from this size on are compressed for a client that accepts it.
COMPRESS = 2 << 10
#: Answers from this size on are compressed in another thread.
COMPRESS_APART = 64 << 10

#: The queries that devices send.
_QUERIES = frozenset({"", "%24alt=proto", "$alt=proto", "alt=proto"})
_UPLOAD_QUERIES = frozenset({"", "upload_protocol=raw"})


def identify(handler: Handler) -> str | None:
    """Return who sends a request.

    :raises StatusError: if a plugin refuses, or a key is used too often.
    """
    context = handler.context
    headers = {name.lower(): value for name, value in handler.headers.items()}
    principal = None
    if context.authenticate is not None:
        certificate: Any = refusals.certificate(handler, binary=False)
        principal = context.authenticate(
            method=handler.method,
            path=handler.path,
            headers=headers,
            peer=handler.address,
            certificate=certificate,
        )
    # A certificate is as good a name as a principal: what belongs to one is not for another.
    shown: Any = refusals.certificate(handler, binary=True)
    sender = sender_of(principal, shown)
    if context.keys.active:
        # A key that nobody knows has been refused; one that nobody checks counts as it is sent.
        context.keys.take(principal or sender or _digest(headers.get(KEY_HEADER, "")))
    return sender


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()


class RPCHandler(Handler):
    """One call of the protocol, whichever: the routing table says which."""

    of_device = True
    _variables: dict[str, str]

    @property
    def subject(self) -> str:
        """What the log calls the session: not its id, which is a capability."""
        session_id = getattr(self, "_variables", {}).get("session_id")
        return label(session_id) if session_id else ""

    def allowed(self) -> Sequence[str]:
        """Return the verbs of the routes that match."""
        return routes.verbs(self.path)

    def admit(self) -> None:
        """Authenticate, find the route, make room for the body."""
        context = self.context
        self._caller = identify(self) if context.identifies else None
        found = routes.match(self.method, self.path)
        if found is None:
            if self.allowed():
                raise refusals.wrong_method(self)
            raise StatusError(Code.NOT_FOUND, "there is no such route")
        self._route, self._variables = route, _ = found
        self.label = route.name
        if self.query not in _QUERIES:
            given = refusals.parameters(self)
            if {*given.get("$alt", ()), *given.get("alt", ())} - {"proto"}:
                raise StatusError(Code.INVALID_ARGUMENT, "answers are protobuf only: $alt=proto")
        self._method = context.methods.get(route.name) or context.method(route)
        # What is parsed on the loop is small, and never counted with uploads.
        self.open_body(limits_of_call(context.limits, route.method), context.calls)

    def reply_to(self, error: StatusError) -> tuple[int, bytes, dict[str, str]]:
        """Turn a device away gently that cannot be served now, if the call has a way to say so."""
        response = None
        if error.http >= 500 and error.code is not Code.UNIMPLEMENTED:
            try:
                found = routes.match(self.method, self.path)
            except StatusError:  # the path is malformed
                found = None
            if found is not None:
                response = self.context.services.turn_away(*found)
        if response is None:
            return refusals.never_503(*super().reply_to(error))
        return 200, response.SerializeToString(), {}

    async def serve(self) -> None:
        """Parse, call, answer."""
        body = self.body
        assert body is not None  # made by admit, which did not refuse
        try:
            data = await body.finish()
        finally:
            body.close()
        request: Message = self._route.request_class()
        try:
            request.ParseFromString(bytes(data))
        except DecodeError:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the body is not a {request.DESCRIPTOR.full_name} (malformed protobuf, "
                f"{len(data)} bytes)",
            ) from None
        for name, value in self._variables.items():
            setattr(request, name, value)
        ADDRESS.set(self.connection.origin if self.passed is None else self.passed.peer)
        given = self.headers.get
        HOST.set((given("Host", ""), given("X-Forwarded-Proto", "")))
        elsewhere = self.context.members is not None and self.context.is_elsewhere(self)
        try:
            response = None if elsewhere else await self._method(request, self._caller)
        except StatusError as error:
            if not await self.context.went(self, error):
                raise
            response = None
        if response is None:
            # Another member has the population since the call came.
            self.headers.pop("Content-Encoding", None)
            make = partial(RPCHandler, self.context)
            await pass_on(self, make, request.SerializeToString())
            return
        answer = response.SerializeToString()
        accepted = self.headers.get("Accept-Encoding", "")
        if (
            len(answer) >= COMPRESS
            and _accepts_gzip(accepted)
            # Most of a large one is a resource, which is compressed already.
            and is_worth_compressing(answer)
        ):
            headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            self.answer(await self._compress(answer), headers=headers)
        else:
            self.answer(answer)

    async def _compress(self, data: bytes) -> bytes:
        if len(data) < COMPRESS_APART:
            return gzip.compress(data, 1)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.context.executor, gzip.compress, data, 1)


def _accepts_gzip(header: str) -> bool:
    for item in header.lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() in ("gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


class UploadHandler(Handler):
    """``POST /upload/v1/media/{resource_name}?upload_protocol=raw``: one contribution's bytes."""

    label = "upload"
    of_device = True
    #: The name of the upload, from its beginning until its body is complete.
    _name: str | None = None
    _sender: str | None = None
    _wanted = True
    _has_turn = False

    def allowed(self) -> Sequence[str]:
        """Return the only method."""
        return ("POST",)

    def admit(self) -> Coroutine[Any, Any, None]:
        """Authenticate, make room, and only then let the upload begin."""
        context = self.context
        self._sender = identify(self) if context.identifies else None
        if self.method != "POST":
            raise refusals.wrong_method(self)
        if self.query not in _UPLOAD_QUERIES:
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
            size, timeout = self.announced or 0, context.limits.body_timeout / 2
            if size >= LARGE:
                await context.large_uploads.begin(timeout)
                self._has_turn = True
            await context.uploads.wait(size, timeout)
            self.open_body(context.limits, context.uploads)
            if self.over:  # the device gave up while it waited
                self.abandon()
        else:
            # The bytes are there; only the answer was lost. What comes is dropped as it comes.
            self._wanted = False
            self.discard_body()

    def abandon(self) -> None:
        """Notify the service that the upload was abandoned."""
        super().abandon()
        if self._has_turn:
            self._has_turn = False
            self.context.large_uploads.end()
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
            self.abandon()
        self.answer()
