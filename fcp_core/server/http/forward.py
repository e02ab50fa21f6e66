"""The handler of calls that are about somebody else's population: they are passed on, once.

Small calls are kept until they are answered: they are sent again if the owner dies meanwhile, and
wait for the next one, within a bound. What is larger goes through as it comes; it is begun only
when the owner has said that it takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine
from typing import Any

from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http import refusals
from fcp_core.server.http.answers import WRITE_APART
from fcp_core.server.http.context import Context
from fcp_core.server.http.handler import Handler, MakeHandler
from fcp_core.server.http.limits import http_error
from fcp_core.server.http.member_calls import MemberCall
from fcp_core.server.http.passing import HEADER, MOVED, Passed, mark_of_call, sign

#: Bodies up to this size are kept until the call is answered, in bytes.
SMALL = 1 << 20
#: For how many lease times a call waits for an owner.
PATIENCE = 3.0
#: Calls that begin so can be turned away at no cost, and wait for so many seconds at most.
CHECK_IN, CHECK_IN_PATIENCE = "/v1/eligibilityevaltasks/", 1.0
#: How long the storage may take to say who owns what until the other members are asked, in seconds.
LOOK = 1.0
#: The pause after a call that an owner did not take, in seconds.
PAUSE = 0.05
#: What concerns one connection only, or is written anew.
_OF_CONNECTION = ("Connection", "Keep-Alive", "Transfer-Encoding", "Date", "Content-Length")


async def pass_on(handler: Handler, make: MakeHandler, body: bytes = b"") -> None:
    """Have the owner answer a call whose population went to another member since it came.

    :param make: makes what answers it if the population comes back.
    :raises StatusError: 421 if the call was passed on already; UNAVAILABLE if there is no owner.
    """
    if handler.passed is not None:
        raise http_error(MOVED, "the population is another member's")
    mark, begins = mark_of_call(handler.method, handler.path)
    assert mark is not None  # or it could not be another member's
    given = (handler.connection, handler.method, handler.uri, handler.headers)
    forward = ForwardHandler(handler.context, mark, make, True, begins, *given)
    forward.over = handler.over  # the device may have gone
    if not forward.over:
        handler.http.set_close_callback(forward.on_connection_close)
    try:
        await forward.pass_on(body)
    except StatusError:
        handler.over = forward.over
        raise
    # It is answered, or will be, and is counted there.
    handler.over = True
    handler.context.leave(handler)


class ForwardHandler(Handler):
    """A call that waits for its owner, or is passed on to it.

    :param mark: of its population.
    :param make: makes the handler that answers it if the population turns out to be this server's.
    :param passes: whether it may be passed on.
    :param begins: whether something begins with it, which an owner that gives the population back
        does not take any more.
    """

    label = "passed on"

    def __init__(
        self,
        context: Context,
        mark: bytes,
        make: MakeHandler,
        passes: bool,
        begins: bool,
        *request: Any,
    ) -> None:
        super().__init__(context, *request)
        self._mark, self._make, self._passes, self._begins = mark, make, passes, begins
        assert context.members is not None  # see routed
        self._members = context.members
        #: What answers it here.
        self._here: Handler | None = None
        self._kept: bytearray | None = bytearray()
        self._call: MemberCall | None = None
        self._failed: str | None = None
        self._url, self._tries, self._looked = "", -1, False
        self._came = self._members.clock.now()
        patience = PATIENCE * self._members.seconds
        if self.path.startswith(CHECK_IN):
            patience = min(patience, CHECK_IN_PATIENCE)
        self._end = asyncio.get_running_loop().time() + patience

    # The header.

    def admit(self) -> Coroutine[Any, Any, None] | None:
        """Find the owner before the body is read."""
        if not self._passes or self.announced is None or self.announced > SMALL:
            self.connection.limit(self.context.limits.body_timeout)
        return self._admit()

    async def _admit(self) -> None:
        try:
            url = await self._owner()
        except StatusError as error:
            if error.http == MOVED:
                raise
            await self._begin_here(error)
            return
        if not url:
            await self._begin_here()
        elif self.announced is None or self.announced > SMALL:
            await self._stream_to(url)

    async def _begin_here(self, error: StatusError | None = None, *, read: bool = False) -> None:
        """Have it answered here; with an error as the handler of such calls does.

        :param read: whether the body was read already.
        """
        if self.over:
            return  # nobody waits for it any more
        self._here = here = self._make(self.connection, self.method, self.uri, self.headers)
        here.passed, here.read = self.passed, read
        self.context.leave(self)
        if error is not None:
            self.context.busy.add(here)
            refusals.refuse(here, error)
            return
        admitted = here.begin()
        if admitted is not None:
            await admitted

    async def _stream_to(self, url: str) -> None:
        """Pass the header on, and wait until the owner takes the body.

        :raises StatusError: UNAVAILABLE if no owner does.
        """
        self._kept = None
        while True:
            try:
                call = await self._open(url, {"Expect": "100-continue"})
                await self._unless_moved(call, call.goes_on, url)
                if not call.head.done() or (await call.head)[0] != MOVED:
                    self._call, self._url = call, url
                    return
                call.close()
            except OSError:
                self._failed = url
            await asyncio.sleep(PAUSE)
            await self._look()
            url = await self._owner()
            if not url:
                await self._begin_here()
                return

    # The body.

    async def pass_on(self, body: bytes) -> None:
        """Pass on a call whose body is here already.

        :raises StatusError: UNAVAILABLE if no owner has an answer.
        """
        self._kept = bytearray(body)
        await self.serve()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep a piece, or pass it on."""
        if self._here is not None:
            return self._here.data_received(chunk)
        if self.dropping is not None or self.status:
            refusals.drop(self, chunk)
        elif self._call is not None:
            return self._pass(self._call, chunk)
        elif self._kept is not None:
            self._kept += chunk
            if len(self._kept) > SMALL:
                refusals.refuse(self, http_error(413, f"the body has more than {SMALL} bytes"))
        return None

    async def _pass(self, call: MemberCall, chunk: bytes) -> None:
        # If it does not take more, its answer says why.
        writing = asyncio.ensure_future(call.write(chunk))
        with contextlib.suppress(OSError):
            await self._unless_moved(call, writing, self._url)

    def finish(self) -> None:
        """Wait for the answer, now that the body is complete."""
        if self._here is not None:
            self._here.finish()
        else:
            super().finish()

    async def serve(self) -> None:
        """Pass the answer on.

        :raises StatusError: UNAVAILABLE if no owner has one.
        """
        if self._call is not None:
            self._call.end_body()
            try:
                head = await self._unless_moved(self._call, self._call.head, self._url)
                await self._answer(self._call, self._url, *head)
            except OSError:
                raise _no_owner() from None
            return
        assert self._kept is not None  # a body that is not passed on at once is kept
        self._tries = -1  # nobody was asked for the header
        while True:
            url = await self._owner()
            if not url:
                await self._serve_here(bytes(self._kept))
                return
            call = None
            try:
                call = await self._open(url, {}, bytes(self._kept))
                call.end_body()
                head = await self._unless_moved(call, call.head, url)
                if head[0] != MOVED:
                    await self._answer(call, url, *head)
                    return
                call.close()
            except OSError:
                # A kept connection may have been closed at the other end.
                self._failed = None if call is not None and call.reused else url
            await asyncio.sleep(PAUSE)
            await self._look()

    async def _serve_here(self, body: bytes) -> None:
        """Answer a call here whose body was read already."""
        await self._begin_here(read=True)
        here = self._here
        if here is None:
            return
        if body and not here.answered:
            rest = here.data_received(body)
            if rest is not None:
                await rest
        here.finish()

    async def _answer(self, call: MemberCall, url: str, status: int, headers: HTTPHeaders) -> None:
        """Pass an answer on; a small one once it is whole, so that another owner can be asked.

        :raises OSError: if a small one is cut off, or another member is the owner meanwhile.
        """
        length = int(headers.get("Content-Length", "0"))
        fields = {name: value for name, value in headers.get_all() if name not in _OF_CONNECTION}
        fields.setdefault("Content-Type", self.answer_headers["Content-Type"])
        if length <= WRITE_APART:
            body = await self._unless_moved(call, asyncio.ensure_future(call.body()), url)
            self.begin_answer(length, status, fields, body)
        else:
            self.begin_answer(length, status, fields)
            await self._relay(call, url)
        self.end_answer()

    async def _relay(self, call: MemberCall, url: str) -> None:
        """Pass the body of an answer on as it comes; if it is cut off, so is the device's."""
        relayed, whole = asyncio.ensure_future(call.relay(self._piece)), False
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            whole = await asyncio.wait_for(
                self._unless_moved(call, relayed, url), self.context.limits.body_timeout
            )
        if not whole:
            call.close()
            self.http.close()

    async def _piece(self, chunk: bytes) -> None:
        # A device may have gone; the rest of its answer is read all the same.
        with contextlib.suppress(StreamClosedError):
            if not self.over:
                await self.http.write(chunk)

    # Owners.

    async def _owner(self) -> str:
        """Return where the population's owner is called; ``""``: it is this server.

        :raises StatusError: UNAVAILABLE if there is none for too long; 421 if it is another member
            and the call was passed on already.
        """
        members = self._members
        while True:
            looked = self._looked
            owner = members.table.owner(self._mark, members.clock)
            if owner is None:
                if not members.table.exists(self._mark, self._came):
                    return ""  # there is no such population: the handler says so
                urls = members.table.candidates(self._mark)
                # The first one takes it when it is asked. Who is cut off from the storage does not
                # know the owner, or the population, and asks one after another, each once at least.
                left = self._tries + 1 < len(urls) or asyncio.get_running_loop().time() < self._end
                if urls and looked and self._passes and left:
                    self._tries += 1
                    if urls[self._tries % len(urls)]:
                        return urls[self._tries % len(urls)]
            elif not owner.url:
                if not (owner.giving and self._begins):
                    return ""
            elif not self._passes:
                if looked:
                    raise http_error(MOVED, "the population is another member's")
            elif owner.url != self._failed:
                return owner.url
            if asyncio.get_running_loop().time() >= self._end:
                raise _no_owner()
            if looked:
                await asyncio.sleep(PAUSE)
            await self._look()
            self._failed = None

    async def _look(self) -> None:
        left = min(LOOK, self._end - asyncio.get_running_loop().time())
        self._looked = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._members.look(), max(PAUSE, left))

    async def _unless_moved(self, call: MemberCall, answer: asyncio.Future[Any], url: str) -> Any:
        """Wait for an answer, as long as it can come from there.

        :raises OSError: if the connection breaks, or another member is the owner meanwhile.
        """
        members = self._members
        while True:
            done, _ = await asyncio.wait((answer,), timeout=members.seconds / 4)
            if done:
                return answer.result()
            owner = members.table.owner(self._mark, members.clock)
            if owner is not None and owner.url != url:
                call.close()
                answer.add_done_callback(lambda done: done.cancelled() or done.exception())
                raise StreamClosedError

    async def _open(self, url: str, more: dict[str, str], body: bytes = b"") -> MemberCall:
        """Send a call to a member.

        :raises OSError: if there is no connection to it.
        """
        call = await self.context.member_connections.open(url)
        headers = HTTPHeaders()
        for name, value in self.headers.get_all():
            if name not in _OF_CONNECTION and name not in ("Expect", HEADER):
                headers.add(name, value)
        headers.update(more)
        if self._kept is not None:
            headers["Content-Length"] = str(len(body))
        elif self.announced is not None:
            headers["Content-Length"] = str(self.announced)
        certificate: Any = refusals.certificate(self, binary=False)
        der: Any = refusals.certificate(self, binary=True)
        passed = Passed(self.address, certificate, der)
        headers[HEADER] = sign(self._members.table.secrets, self.method, self.uri, passed)
        call.send(self.method, self.uri, headers, body)
        return call

    # What the connection asks.

    @property
    def answered(self) -> bool:
        """Whether an answer was begun."""
        return self.status != 0 if self._here is None else self._here.answered

    def end_answer(self) -> None:
        """Complete the answer."""
        if self._here is None:
            super().end_answer()
        else:
            self._here.end_answer()

    def on_connection_close(self) -> None:
        """Drop what was received."""
        if self._here is not None:
            self._here.on_connection_close()
            return
        super().on_connection_close()

    def abandon(self) -> None:
        """Give up what is passed on, unless its answer has come."""
        super().abandon()
        if self._call is not None and self.status == 0:
            self._call.close()

    def reply_to(self, error: StatusError) -> tuple[int, bytes, dict[str, str]]:
        """Return what an error is answered with: what the owner would say."""
        if error.http == MOVED:
            return super().reply_to(error)
        handler = self._make(self.connection, self.method, self.uri, self.headers)
        return handler.reply_to(error)


def _no_owner() -> StatusError:
    return StatusError(Code.UNAVAILABLE, "no member of the server owns this population now")
