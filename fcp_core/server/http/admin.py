"""The handler of all calls of the admin API: parse, call one method, map the answer."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from tornado.httputil import HTTPHeaders

from fcp_core.admin import api
from fcp_core.admin.messages import Error, check_finite
from fcp_core.protocol.joining import LARGE, move
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http import refusals
from fcp_core.server.http.handler import Handler
from fcp_core.server.http.limits import http_error

if TYPE_CHECKING:
    from fcp_core.server.http.admin_auth import AdminCheck
    from fcp_core.server.http.context import Context
    from fcp_core.server.http.request import Channel
    from fcp_core.server.services.admin import Admin

logger = logging.getLogger("fcp.server")

#: Bodies from this size on are parsed in another thread.
PARSE_APART = 64 << 10
#: Which method answers when a call has several content types.
_VARIANTS = {("result", api.BINARY): "checkpoint", ("result", api.JSON): "table"}
_VARIANTS["result", api.CSV] = "csv"


class AdminHandler(Handler):
    """One call of the admin API, whichever: the declarations say which.

    Its answers are to be kept out of caches.
    """

    label = "admin"
    answer_headers = {  # noqa: RUF012 (the base class declares it)
        "Content-Type": api.JSON,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }

    def __init__(
        self,
        context: Context,
        admin: Admin,
        check: AdminCheck | None,
        connection: Channel,
        method: str,
        uri: str,
        headers: HTTPHeaders,
    ) -> None:
        super().__init__(context, connection, method, uri, headers)
        self._admin = admin
        self._check = check
        self._endpoint: Any = None

    @property
    def subject(self) -> str:
        """Which call it is."""
        return "" if self._endpoint is None else str(self._endpoint.method)

    def allowed(self) -> Sequence[str]:
        """Return the verbs of the calls at the address."""
        return sorted(api.find(self.path))

    def describe(self, error: StatusError) -> tuple[bytes, dict[str, str]]:
        """Return an error as JSON."""
        _, headers = super().describe(error)
        headers["Content-Type"] = api.JSON
        if error.code is Code.UNAUTHENTICATED:
            headers["WWW-Authenticate"] = "Bearer"
        return msgspec.json.encode(Error.of(error)), headers

    def admit(self) -> None:
        """Authenticate, find the call, make room for the body."""
        if self.passed is None or not self.passed.by_member:
            if self._check is None:
                raise StatusError(Code.NOT_FOUND, "this server has no admin API: it has no token")
            shown: Any = refusals.certificate(self, binary=False)
            self._check.check(self.headers.get("Authorization", ""), shown)
        found = api.find(self.path)
        if not found:
            raise StatusError(Code.NOT_FOUND, "there is no such call; see /admin/v1/openapi.json")
        if self.method not in found:
            raise self.wrong_method()
        self._endpoint, self._variables = found[self.method]
        kind = api.choose(self._endpoint, self.headers.get("Accept", ""))
        if kind is None:
            raise http_error(406, f"this call answers {' or '.join(self._endpoint.answers)}")
        self._kind = kind
        self.open_body(self.context.limits, self.context.in_flight, in_file=True)

    async def serve(self) -> None:
        """Parse, call, answer."""
        assert self.body is not None  # made by admit, which did not refuse
        arguments: list[Any] = list(self._variables.values())
        try:
            body = await self.body.finish()
            if self.passed is not None and self.passed.by_member:
                self.passed.check(body)
            if self._endpoint.query is not None:
                arguments.append(self._parse_query())
            if self._endpoint.body is not None:
                arguments.append(await self._parse_body(body))
        finally:
            self.body.close()
        del body  # it may be large, and what it says has been read
        name = _VARIANTS.get((self._endpoint.method, self._kind), self._endpoint.method)
        method: Callable[..., Awaitable[Any]] = getattr(self._admin, name)
        try:
            answer = await method(*arguments)
        except StatusError as error:
            if error.code is Code.NOT_FOUND and self.context.is_elsewhere(self.method, self.path):
                raise StatusError(
                    Code.UNAVAILABLE, "the population has another owner by now; ask again"
                ) from None
            raise
        if self._kind == api.JSON:
            answer = msgspec.json.encode(answer)
        elif isinstance(answer, str):
            answer = answer.encode()
        self.answer(answer, headers={"Content-Type": self._kind, "Vary": "Accept"})

    def _parse_query(self) -> Any:
        values = {}
        for name, given in refusals.parameters(self).items():
            if len(given) > 1:
                raise _bad(f"the parameter {name!r} is given {len(given)} times")
            values[name] = given[0]
        try:
            return msgspec.convert(values, self._endpoint.query, strict=False)
        except msgspec.ValidationError as error:
            raise _bad(f"query: {error}") from None

    async def _parse_body(self, body: bytearray | memoryview) -> Any:
        kind = self._endpoint.body
        packed = self.headers.get("Content-Type", "") == api.MSGPACK
        if not body and not self._endpoint.body_required:
            body, packed = bytearray(b"{}"), False
        if len(body) < PARSE_APART:
            return _decode(body, kind, packed)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.context.executor, _decode, body, kind, packed)


def _decode(body: bytearray | memoryview, kind: Any, packed: bool) -> Any:
    try:
        if packed and len(body) >= LARGE and "checkpoint" in kind.__struct_fields__:
            return _decode_large(body, kind)
        found = (msgspec.msgpack if packed else msgspec.json).decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        fields = ", ".join(kind.__struct_fields__)
        hint = f" (fields: {fields})" if "unknown field" in str(error) else ""
        raise _bad(f"body: {error}{hint}") from None
    if packed:
        check_finite(found)  # which JSON cannot but be
    return found


def _decode_large(body: bytearray | memoryview, kind: Any) -> Any:
    """Decode what has a large checkpoint: the body gives its memory back as that is taken out."""
    found: Any = msgspec.msgpack.decode(body, type=_with_views(kind))
    check_finite(found)
    return found.replace(checkpoint=move(found.checkpoint))


@functools.cache
def _with_views(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return a kind of specification whose checkpoint is where the body has it."""
    view: tuple[str, type, Any] = ("checkpoint", memoryview, memoryview(b""))
    return msgspec.defstruct(kind.__name__, [view], bases=(kind,), frozen=True)


def _bad(message: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, message)
