"""State that all handlers of one server share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from google.protobuf.message import Message

from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.buffers import Buffers
from fcp_core.server.http.limits import FREE_OF_CALL, InFlight, Limits, UploadsInFlight
from fcp_core.server.http.metrics import ServerMetrics
from fcp_core.server.http.rates import RateLimit

if TYPE_CHECKING:
    from fcp_core.server.services import Services

T = TypeVar("T")

#: A method of a service: the request and who sent it, to the response.
Method = Callable[[Message, "str | None"], Awaitable[Message]]


class Authenticate(Protocol):
    """Says who sends a request (``fcp_authenticate``)."""

    def __call__(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        peer: str,
        certificate: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Return a name, or None; raise StatusError to refuse."""
        ...


class Context:
    """The services, the limits, and the requests in progress.

    :ivar stopping: whether a stop was requested.
    """

    def __init__(
        self,
        services: Services,
        authenticate: Authenticate,
        limits: Limits,
        metrics: ServerMetrics | None = None,
        threads: int | None = None,
    ) -> None:
        self.services = services
        self.authenticate = authenticate
        self.limits = limits
        self.metrics = metrics
        self.in_flight = InFlight(limits.max_in_flight)
        self.calls = InFlight(limits.max_calls_in_flight, FREE_OF_CALL)
        self.uploads = UploadsInFlight(self.in_flight, lambda: services.media.held)
        self.addresses = RateLimit("address", limits.rate_per_address, limits.burst_per_address)
        self.keys = RateLimit("API key", limits.rate_per_key, limits.burst_per_key)
        self.executor = ThreadPoolExecutor(threads, thread_name_prefix="fcp-server")
        self.buffers = Buffers()
        self.stopping = False
        #: The requests that are not answered, and the tasks that serve them.
        self._busy: set[object] = set()
        #: Those among them that :meth:`settle` waits for.
        self._awaited: set[object] = set()
        self._settled = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._methods: dict[tuple[str, str], Method | None] = {}

    def enter(self, request: object) -> None:
        """Wait for a request before the server stops, until it :meth:`leaves <leave>`."""
        self._busy.add(request)

    def leave(self, request: object) -> None:
        """Stop waiting for a request. May be repeated."""
        self._busy.discard(request)
        if self._awaited:
            self._awaited.discard(request)
            if not self._awaited:
                self._settled.set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run *work* in a task of its own; the server waits for it before it stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._busy.add(task)
        task.add_done_callback(self.leave)

    async def settle(self, timeout: float) -> bool:
        """Wait until all requests in progress have ended; return whether they have.

        :param timeout: how long to wait, in seconds.
        """
        self._awaited = set(self._busy)
        if self._awaited:
            self._settled.clear()
            try:
                await asyncio.wait_for(self._settled.wait(), timeout)
            except asyncio.TimeoutError:
                return False
        return True

    async def call(self, work: Awaitable[T]) -> T:
        """Wait for a service.

        :raises StatusError: UNAVAILABLE if the server stops and does not wait any longer.
        """
        task = asyncio.current_task()
        assert task is not None  # handlers run in tasks
        self._calls.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            raise StatusError(
                Code.UNAVAILABLE, "the server stopped before it had an answer; ask again"
            ) from None
        finally:
            self._calls.discard(task)

    def cancel_calls(self) -> None:
        """Cancel the service calls in progress; their requests are answered."""
        for task in set(self._calls):
            task.cancel()

    def method(self, route: Route) -> Method:
        """Return the service's method behind a route.

        :raises StatusError: UNIMPLEMENTED if this server has none.
        """
        key = (route.service, route.method)
        if key not in self._methods:
            self._methods[key] = self.services.method(route)
        method = self._methods[key]
        if method is None:
            raise StatusError(
                Code.UNIMPLEMENTED,
                f"this server does not offer {route.name}",
            )
        return method
