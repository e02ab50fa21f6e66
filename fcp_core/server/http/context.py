"""State that all handlers of one server share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.body import InFlight
from fcp_core.server.http.body_queue import OneATurn
from fcp_core.server.http.buffers import Buffers
from fcp_core.server.http.large_uploads import LargeUploads
from fcp_core.server.http.limits import FREE_OF_CALL, SMALL_CALLS, Limits
from fcp_core.server.http.member_calls import MemberConnections
from fcp_core.server.http.metrics import ServerMetrics
from fcp_core.server.http.passing import mark_of_call
from fcp_core.server.http.rates import RateLimit
from fcp_core.server.services.routing import Routes
from fcp_core.server.throttled_log import ThrottledLog

if TYPE_CHECKING:
    from fcp_core.server.services import Services

T = TypeVar("T")

#: A method of a service: the request and who sent it, to the response.
Method = Callable[[Message, "str | None"], Awaitable[Message]]
#: Matches a path with a route's template.
Match = Callable[[str], "re.Match[str] | None"]
#: Says who sends a request, as ``HookCaller.authenticate`` does, whose arguments it takes.
Authenticate = Callable[..., "str | None"]


class Context:
    """The services, the limits, and the requests in progress.

    :param authenticate: None: nobody says who sends a request.
    :param secure: whether requests come over TLS.
    :param members: know where populations are owned; None: here.
    :param member_tls: what other members are called with; None is plain HTTP.
    :param folder: where large bodies lie; None: in memory.
    :ivar identifies: whether anything depends on who sends a request.
    :ivar stopping: whether a stop was requested.
    :ivar busy: the requests that are not answered, and the tasks that serve them; a request adds
        itself, and calls :meth:`leave` if somebody waits for it.
    :ivar awaited: those among them that :meth:`settle` waits for.
    """

    def __init__(
        self,
        services: Services,
        authenticate: Authenticate | None,
        limits: Limits,
        metrics: ServerMetrics | None = None,
        threads: int | None = None,
        *,
        secure: bool = False,
        members: Routes | None = None,
        member_tls: ssl.SSLContext | None = None,
        folder: Path | None = None,
    ) -> None:
        self.services = services
        self.authenticate = authenticate
        self.limits = limits
        self.metrics = metrics
        self.in_flight = InFlight(limits.max_in_flight)
        self.calls = InFlight(limits.max_calls_in_flight, FREE_OF_CALL)
        self.uploads = InFlight(
            limits.max_in_flight,
            beside=self.in_flight,
            waiting=partial(attrgetter("held"), services.media),
            on_behind=services.media.behind,
        )
        services.media.freed.connect(self.uploads.look, self.uploads.queue.paused)
        self.addresses = RateLimit("address", limits.rate_per_address, limits.burst_per_address)
        self.keys = RateLimit("API key", limits.rate_per_key, limits.burst_per_key)
        self.throttled_log = ThrottledLog()
        self.identifies = authenticate is not None or secure or self.keys.active
        self.executor = ThreadPoolExecutor(thread_name_prefix="fcp-server")
        # More threads than processors would only have the event loop wait for them.
        self.inflating = ThreadPoolExecutor(threads or os.cpu_count(), "fcp-inflate")
        self.folding = OneATurn()
        self.large_uploads = LargeUploads(lambda: services.media.held + services.media.storing)
        self.buffers = Buffers(awaited=lambda: self.large_uploads.awaited, folder=folder)
        self.members = members
        #: The connections to other members.
        self.member_connections = MemberConnections(member_tls)
        self.stopping = False
        self.busy: set[object] = set()
        self.awaited: set[object] = set()
        self._settled = asyncio.Event()
        self._calls: set[asyncio.Future[Any]] = set()
        #: What serves the calls, by their verb and what their paths end with after the last colon:
        #: for each route what matches a path, and the service's method.
        self.served: dict[tuple[str, str | None], list[tuple[Match, Route, Method]]] = {}
        #: As much of an upload is always taken; of all connections no more than may be held.
        self.always_taken = min(
            FREE_OF_CALL, limits.max_in_flight // limits.max_connections, limits.max_body
        )
        #: No call has a limit below so many bytes.
        self.small = min(
            *SMALL_CALLS.values(), limits.max_call, limits.max_body, limits.max_decompressed
        )

    def is_elsewhere(self, method: str, path: str) -> bool:
        """Whether a call is about a population of another member, or of none at the moment."""
        if self.members is None:
            return False
        mark, _ = mark_of_call(method, path)
        owner = None if mark is None else self.members.table.owner(mark, self.members.clock)
        return mark in self.members.table.known and (owner is None or bool(owner.url))

    async def went(self, method: str, path: str, error: StatusError) -> bool:
        """Whether a call failed since its population is another member's by now."""
        if self.members is None:
            return False
        if error.code is Code.ABORTED and not self.is_elsewhere(method, path):
            # What was to be written was refused, and nobody has looked since.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.members.look(), self.members.seconds)
        return self.is_elsewhere(method, path)

    def leave(self, request: object) -> None:
        """Stop waiting for a request. May be repeated."""
        self.busy.discard(request)
        if self.awaited:
            self.awaited.discard(request)
            if not self.awaited:
                self._settled.set()

    def spawn(self, work: Awaitable[Any]) -> asyncio.Future[Any]:
        """Run *work* in a task of its own; the server waits for it before it stops."""
        task = asyncio.ensure_future(work)
        self.busy.add(task)
        task.add_done_callback(self.leave)
        return task

    def serve(self, work: Awaitable[Any]) -> None:
        """Run what serves a request, as :meth:`spawn` does, until :meth:`cancel_calls`."""
        task = self.spawn(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def settle(self, timeout: float) -> bool:
        """Wait until all requests in progress have ended; return whether they have.

        Those that come meanwhile are waited for too: a connection that was open may bring one.

        :param timeout: how long to wait, in seconds.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while self.busy:
            self.awaited = set(self.busy)
            self._settled.clear()
            try:
                await asyncio.wait_for(self._settled.wait(), end - loop.time())
            except asyncio.TimeoutError:
                return False
        return True

    async def call(self, work: Awaitable[T]) -> T:
        """Wait for what admits a request, in the task of its connection.

        :raises StatusError: UNAVAILABLE if the server stops and does not wait any longer.
        """
        task = asyncio.current_task()
        assert task is not None  # connections are tasks
        self._calls.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            raise self.stopped() from None
        finally:
            self._calls.discard(task)

    def stopped(self) -> StatusError:
        """Return the answer to a call that was cancelled.

        :raises asyncio.CancelledError: if the server does not stop.
        """
        if not self.stopping:
            raise asyncio.CancelledError
        return StatusError(
            Code.UNAVAILABLE, "the server stopped before it had an answer; ask again"
        )

    def cancel_calls(self) -> None:
        """Cancel the service calls in progress; their requests are answered."""
        for task in set(self._calls):
            task.cancel()
