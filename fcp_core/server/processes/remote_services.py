"""The services of a worker process: each call is forwarded to the process that decides."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from google.protobuf.message import Message

from fcp_core.plugins.pages import PageAnswer, PageRequest
from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.machine import Clock
from fcp_core.rounds.policies import RetryWindow
from fcp_core.server.host_address import HOST
from fcp_core.server.http.metrics import ServerMetrics
from fcp_core.server.processes.folds import WorkerFolds
from fcp_core.server.processes.link import Link
from fcp_core.server.services.admin import Admin
from fcp_core.server.services.eligibility import ADDRESS
from fcp_core.server.services.published import Download
from fcp_core.server.services.rejections import rejection
from fcp_core.server.services.routing import RoutingTable

#: How many bytes of plans, checkpoints and slices a worker keeps.
CACHE = 256 << 20
#: When a device comes back that a worker turns away, which does not know the populations.
BUSY = RetryWindow(60.0, 120.0)


class RemoteServices:
    """Has the interface of ``Services``, for an HTTP server.

    :param link: to the process that decides.
    :param folds: where uploads wait until they are folded.
    """

    def __init__(self, link: Link, folds: WorkerFolds) -> None:
        self._link = link
        self.media = RemoteMedia(link, folds)
        self.admin = RemoteAdmin(link)
        self.pages = RemotePages(link)

    def method(self, route: Route) -> Callable[[Message, str | None], Awaitable[Answer]]:
        """Return what passes a call on."""

        async def call(request: Message, sender: str | None) -> Answer:
            data = request.SerializeToString()
            what = (route.service, route.method, data, sender, ADDRESS.get(), HOST.get())
            return Answer(await self._link.call("rpc", *what))

        return call

    async def problem(self) -> str:
        """Say why the server takes no new devices at the moment, as ``Services``."""
        found: str = await self._link.call("problem")
        return found

    def turn_away(self, route: Route, variables: Mapping[str, str]) -> Message | None:
        """Return what a call is answered with that cannot be served now, as ``Services``."""
        return rejection(route, variables.get("session_id", ""), BUSY)


class RemoteMembers:
    """Knows where populations are owned, as the process that decides knows it.

    :param seconds: how long a lease lasts.
    """

    def __init__(self, link: Link, clock: Clock, seconds: float) -> None:
        self._link = link
        self.clock = clock
        self.seconds = seconds
        self.table = RoutingTable()

    async def use(self, table: Any) -> None:
        """Use another table."""
        self.table = RoutingTable.load(table, self.clock.now())

    async def look(self) -> None:
        """Have the storage asked who owns what, and wait for the answer."""
        await self.use(await self._link.call("look"))


class Answer:
    """A response that is serialized already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # noqa: N802 (as a protobuf message has it)
        """Return it."""
        return self._data


class RemoteMedia:
    """Keeps uploads in this process and reports their sizes; fetches each download once."""

    def __init__(self, link: Link, folds: WorkerFolds) -> None:
        self._link = link
        self._folds, self.freed = folds, folds.freed
        self._cache: OrderedDict[str, Download] = OrderedDict()
        self._cached = 0

    #: What is stored, and what is not yet, is the other process's.
    storing = 0

    @property
    def held(self) -> int:
        """How many bytes of uploads wait in this process."""
        return self._folds.held

    def behind(self, behind: bool) -> None:
        """Note whether too many uploads wait in this process, as ``Media.behind``."""
        self._link.tell("behind", behind)

    async def begin_upload(self, resource_name: str, sender: str | None = None) -> int:
        """Let an upload begin, as ``Media.begin_upload``."""
        wanted: int = await self._link.call("begin_upload", resource_name, sender)
        return wanted

    async def finish_upload(
        self,
        resource_name: str,
        body: bytes | bytearray | memoryview,
        sender: str | None = None,
    ) -> None:
        """Keep the body, as ``Media.finish_upload``."""
        number = self._folds.keep(body)
        try:
            await self._link.call("finish_upload", resource_name, sender, len(body), number)
        except BaseException:
            await self._folds.drop_body(number)
            raise

    async def abandon_upload(self, resource_name: str, sender: str | None = None) -> None:
        """Forget an upload, as ``Media.abandon_upload``."""
        await self._link.call("abandon_upload", resource_name, sender)

    async def download(self, name: str) -> Download:
        """Return a resource, as ``Media.download``: each time asked for, but sent only once."""
        known = self._cache.get(name)
        try:
            answer = await self._link.call("download", name, None if known is None else known.etag)
        except StatusError:
            self._forget(name)
            raise
        if answer is None:
            assert known is not None  # its tag was asked about
            if name in self._cache:
                self._cache.move_to_end(name)
            return known
        self._forget(name)
        found = Download(*answer)
        if len(found.data) <= CACHE:
            self._cache[name] = found
            self._cached += len(found.data)
        while self._cached > CACHE:
            self._forget(next(iter(self._cache)))
        return found

    def _forget(self, name: str) -> None:
        known = self._cache.pop(name, None)
        if known is not None:
            self._cached -= len(known.data)


class RemoteAdmin:
    """The admin service; answers come as they are sent."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        """Return what calls a method.

        :raises AttributeError: if the service has no such method.
        """
        getattr(Admin, method)

        async def call(*arguments: Any) -> Any:
            is_json, answer = await self._link.call("admin", method, arguments)
            return msgspec.Raw(answer) if is_json else answer

        setattr(self, method, call)
        return call

    def release(self) -> None:
        """Do nothing: those who wait do so in the process that decides."""


class RemotePages:
    """The pages of plugins, which the process that decides answers."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def answer(self, name: str, request: PageRequest) -> PageAnswer:
        """Answer a request, as ``PageServer``."""
        return msgspec.convert(await self._link.call("page", name, request), PageAnswer)


class WorkerMetrics(ServerMetrics):
    """The metrics of a worker; ``/metrics`` shows those of the whole server."""

    def __init__(self, clock: Clock, link: Link) -> None:
        super().__init__(clock, Counter)
        self._link = link

    async def expose(self, openmetrics: bool = False) -> bytes:
        """Return all metrics of the server."""
        text: bytes = await self._link.call("expose", openmetrics)
        return text
