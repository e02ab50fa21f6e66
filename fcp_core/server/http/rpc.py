"""The handlers of the protocol's calls: parse, call one method of a service, map the answer."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Sequence

from google.protobuf.message import DecodeError, Message

from fcp_core.protocol import routes
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tokens import sender_of
from fcp_core.server.http.handler import Handler
from fcp_core.server.http.limits import InFlight, Limits, limits_of_call
from fcp_core.server.http.prometheus import CONTENT_TYPE
from fcp_core.server.http.rates import address_key, is_loopback
from fcp_core.server.services.common import ADDRESS
from fcp_core.server.services.device_tokens import label

#: Where devices send their API key.
KEY_HEADER = "x-goog-api-key"

#: Answers from this size on are compressed for a client that accepts it.
COMPRESS = 2 << 10
#: Answers from this size on are compressed in another thread.
COMPRESS_APART = 64 << 10


class DeviceHandler(Handler):
    """A request for which devices show who they are."""

    def authenticate(self) -> str | None:
        """Return who sends the request.

        :raises StatusError: if a plugin refuses, or a key is used too often.
        """
        request, context = self.request, self.context
        headers = {name.lower(): value for name, value in request.headers.items()}
        principal = context.authenticate(
            method=request.method,
            path=request.path,
            headers=headers,
            peer=request.address,
            certificate=request.certificate,
        )
        # A certificate is as good a name as a principal: what belongs to one is not for another.
        sender = sender_of(principal, request.certificate_bytes)
        if context.keys.active:
            # A key that nobody knows has been refused; one that nobody checks counts as it is sent.
            context.keys.take(principal or sender or _digest(headers.get(KEY_HEADER, "")))
        return sender

    def reply_to(self, error: StatusError) -> tuple[int, bytes, dict[str, str]]:
        """Never answer 503: clients since September 2024 may crash in the delay that follows it."""
        status, body, headers = super().reply_to(error)
        return (429 if status == 503 else status, body, headers)


class RPCHandler(DeviceHandler):
    """One call of the protocol, whichever: the routing table says which."""

    def allowed(self) -> Sequence[str]:
        """Return the verbs of the routes that match."""
        return routes.verbs(self.request.path)

    def admit(self) -> None:
        """Authenticate, find the route, make room for the body."""
        self._caller = self.authenticate()
        found = routes.match(self.request.method, self.request.path)
        if found is None:
            if self.allowed():
                raise self.refuse_method()
            raise StatusError(Code.NOT_FOUND, "there is no such route")
        self._route, self._variables = found
        self.label = self._route.name
        if "alt=" in self.request.query:
            parameters = self.parameters()
            if {*parameters.get("$alt", ()), *parameters.get("alt", ())} - {"proto"}:
                raise StatusError(Code.INVALID_ARGUMENT, "answers are protobuf only: $alt=proto")
        self.subject = _label(self._variables.get("session_id", ""))
        self._method = self.context.method(self._route)
        self.open_body()

    def room(self) -> InFlight:
        """Return where the body is counted: never with uploads."""
        return self.context.calls

    def limits(self) -> Limits:
        """Return how large the body may be: what is parsed on the loop is small."""
        return limits_of_call(self.context.limits, self._route.method)

    def reply_to(self, error: StatusError) -> tuple[int, bytes, dict[str, str]]:
        """Turn a device away gently that cannot be served now, if the call has a way to say so."""
        response = None
        if error.http >= 500 and error.code is not Code.UNIMPLEMENTED:
            try:
                found = routes.match(self.request.method, self.request.path)
            except StatusError:  # the path is malformed
                found = None
            if found is not None:
                response = self.context.services.turn_away(*found)
        if response is None:
            return super().reply_to(error)
        return 200, response.SerializeToString(), {}

    async def serve(self) -> None:
        """Parse, call, answer."""
        assert self.body is not None  # made by admit, which did not refuse
        try:
            request = self._parse(await self.body.finish())
        finally:
            self.body.close()
        address = address_key(self.request.address)
        ADDRESS.set("" if is_loopback(address) else address)
        response = await self.context.call(self._method(request, self._caller))
        data = response.SerializeToString()
        if len(data) >= COMPRESS and _accepts_gzip(self.request.headers.get("Accept-Encoding", "")):
            headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            self.answer(await self._compress(data), headers=headers)
        else:
            self.answer(data)

    def _parse(self, body: bytearray | memoryview) -> Message:
        request: Message = self._route.request_class()
        try:
            request.ParseFromString(bytes(body))
        except DecodeError:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the body is not a {request.DESCRIPTOR.full_name} (malformed protobuf, "
                f"{len(body)} bytes)",
            ) from None
        for name, value in self._variables.items():
            setattr(request, name, value)
        return request

    async def _compress(self, data: bytes) -> bytes:
        if len(data) < COMPRESS_APART:
            return gzip.compress(data, 1)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.context.executor, gzip.compress, data, 1)


class HealthHandler(Handler):
    """``/healthz``: the process answers. ``/readyz``: it takes requests."""

    label = "health"
    throttled = False

    async def serve(self) -> None:
        """Answer 200, or 503 once a stop was requested."""
        ready = self.request.path != "/readyz" or not self.context.stopping
        self.answer(
            b"ok\n" if ready else b"stopping\n",
            200 if ready else 503,
            {"Content-Type": "text/plain; charset=utf-8"},
        )


class MetricsHandler(Handler):
    """``/metrics``: the server's metrics, as Prometheus reads them."""

    label = "metrics"
    throttled = False

    async def serve(self) -> None:
        """Answer all metrics."""
        assert self.context.metrics is not None  # there is no such route without them
        self.answer(await self.context.metrics.expose(), headers={"Content-Type": CONTENT_TYPE})


class NothingHandler(Handler):
    """Answers 404: there is nothing at the address."""

    label = "nothing"

    def admit(self) -> None:
        """Refuse.

        :raises StatusError: always.
        """
        raise StatusError(Code.NOT_FOUND, "there is nothing here")


def _label(session_id: str) -> str:
    """Return what the log calls a session: not its id, which is a capability."""
    return label(session_id) if session_id else ""


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()


def _accepts_gzip(header: str) -> bool:
    for item in header.lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() in ("gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
