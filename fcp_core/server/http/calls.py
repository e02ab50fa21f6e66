"""What devices send: the calls of the protocol, and uploads."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote

from google.protobuf.message import DecodeError, Message

from fcp_core.protocol import routes
from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tokens import label
from fcp_core.server.host_address import HOST
from fcp_core.server.http import answers, refusals
from fcp_core.server.http.context import Method
from fcp_core.server.http.forward import pass_on
from fcp_core.server.http.handler import Handler
from fcp_core.server.http.identify import identify
from fcp_core.server.http.limits import limits_of_call
from fcp_core.server.http.passing import UPLOAD
from fcp_core.server.services.common import Wanted
from fcp_core.server.services.eligibility import ADDRESS
from fcp_core.server.services.task_parts import LARGE

#: The queries that devices send.
_QUERIES = frozenset({"", "%24alt=proto", "$alt=proto", "alt=proto"})
_UPLOAD_QUERIES = frozenset({"", "upload_protocol=raw"})

#: Uploads from this size on are handed over one in a turn of the event loop: they may be
#: accumulated in it, in a millisecond or three.
FOLDED = 256 << 10


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
        path = self.path
        # What a path of ours ends with, after its last colon, nearly always tells the call.
        served = context.served.get((self.method, path.rpartition(":")[2]), ())
        for matches, route, method in served:
            found = matches(path)
            if found is not None and "%" not in path:
                self._route, self._variables, self._method = route, found.groupdict(), method
                break
        else:
            self._route, self._variables, self._method = self._find()
            route = self._route
        self.label = route.name
        if self.query not in _QUERIES:
            given = refusals.parameters(self)
            if {*given.get("$alt", ()), *given.get("alt", ())} - {"proto"}:
                raise StatusError(Code.INVALID_ARGUMENT, "answers are protobuf only: $alt=proto")
        size = self.announced
        if size is not None and size <= context.small and "Content-Encoding" not in self.headers:
            self.small = bytearray()
        else:
            # What is parsed on the loop is small, and never counted with uploads.
            limits = limits_of_call(context.limits, route.method)
            self.open_body(limits, context.calls, in_file=False)

    def _find(self) -> tuple[Route, dict[str, str], Method]:
        """Return the route of a call, the variables of its path, and what serves it.

        :raises StatusError: NOT_FOUND or HTTP 405 if there is no such route; UNIMPLEMENTED if this
            server does not serve it; INVALID_ARGUMENT for a path that is malformed.
        """
        served, services = self.context.served, self.context.services
        found = routes.match(self.method, self.path)
        if found is None:
            if self.allowed():
                raise self.wrong_method()
            raise StatusError(Code.NOT_FOUND, "there is no such route")
        route, variables = found
        key = routes.key_of(route)
        if key[1] is not None and key not in served:
            served[key] = [
                (each.pattern.fullmatch, each, method)
                for each in routes.alike(key)
                if (method := services.method(each)) is not None
            ]
        method = services.method(route)
        if method is None:
            raise StatusError(Code.UNIMPLEMENTED, f"this server does not offer {route.name}")
        return route, variables, method

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
        data: bytearray | memoryview | None = self.small
        if data is None:
            assert self.body is not None  # made by admit, which did not refuse
            try:
                data = await self.body.finish()
            finally:
                self.body.close()
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
        context = self.context
        elsewhere = context.members is not None and context.is_elsewhere(self.method, self.path)
        try:
            response = None if elsewhere else await self._method(request, self._caller)
        except StatusError as error:
            if not await context.went(self.method, self.path, error):
                raise
            response = None
        if response is None:
            self.headers.pop("Content-Encoding", None)
            await pass_on(self, partial(RPCHandler, context), request.SerializeToString())
            return
        answer = response.SerializeToString()
        if len(answer) >= answers.COMPRESS and await answers.compressed(self, answer):
            return
        self.answer(answer)


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
            raise self.wrong_method()
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
        media, size = context.services.media, self.announced
        wanted = await media.begin_upload(name, self._sender)
        if not wanted:
            # The bytes are there; only the answer was lost. What comes is dropped as it comes.
            self._wanted = False
            self.dropping = context.limits.max_body
            return
        self._name = name
        plain = "Content-Encoding" not in self.headers
        if (
            plain
            and size is not None
            and size <= context.always_taken
            and 2 * media.held <= context.limits.max_in_flight
        ):
            self.small = bytearray()
        else:
            will_be_large = bool(wanted & Wanted.LARGE) and not (plain and size is not None)
            in_file = bool(wanted & Wanted.FOR_STORAGE)
            await self._make_room(size or 0, large=will_be_large, in_file=in_file)
        if self.over:  # the device gave up while it waited
            self.abandon()

    async def _make_room(self, size: int, *, large: bool, in_file: bool) -> None:
        """Wait for room: a device that is refused stays away for hours; one not read from waits."""
        context, timeout = self.context, self.context.limits.body_timeout / 2
        if large or size >= LARGE:
            await context.large_uploads.begin(timeout)
            self._has_turn = True
        await context.uploads.wait(size, timeout)
        self.open_body(context.limits, context.uploads, in_file=in_file)

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
        body: bytearray | memoryview | None = self.small
        if body is None:
            assert self.body is not None  # made by admit, which did not refuse
            body = await self.body.finish()
            if len(body) >= FOLDED:
                await self.context.folding.wait()
        name, self._name = self._name, None
        if name is None:
            return  # the connection was lost while the last bytes were decompressed
        try:
            await self.context.services.media.finish_upload(name, body, self._sender)
        finally:
            self.abandon()
        self.answer()
