"""One worker process, as the process that decides sees it, and the calls that it makes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from fcp_core.admin import api
from fcp_core.errors import UsageError
from fcp_core.plugins.pages import PageAnswer, PageRequest
from fcp_core.protocol import routes
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.host_address import HOST
from fcp_core.server.http.prometheus import Dump
from fcp_core.server.processes.link import Link
from fcp_core.server.processes.remote_upload import RemoteUpload
from fcp_core.server.services.eligibility import ADDRESS

if TYPE_CHECKING:
    from fcp_core.server.http.metrics import ServerMetrics
    from fcp_core.server.services import Services

logger = logging.getLogger("fcp.server")

#: How long a worker may take to start, in seconds.
START_TIME = 120.0
#: How long it may take to end once it was hung up on, before it is killed.
END_TIME = 15.0
#: How often a worker and the process that decides say that they live, in seconds; and after how
#: many without a word a worker is killed, and replaced.
BEAT, SILENCE = 1.0, 20.0
#: How long it may take to say what it measures.
MEASURE_TIME = 2.0

#: What a fresh interpreter runs. The path is the parent's, since a plugin may be found only there.
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from fcp_core.server.processes.worker import main; main(int(sys.argv[1]))"
)

_ADMIN = {endpoint.method: endpoint for endpoint in api.ENDPOINTS}


class WorkerSettings(msgspec.Struct, frozen=True):
    """The start-up settings of one worker process.

    :param number: its own, from 1.
    :param recipe: the arguments of ``Plugins.load``.
    :param host: what to listen on.
    :param family: the address family, as ``socket`` numbers it.
    :param metrics_apart: whether ``/metrics`` is served elsewhere.
    :param threads: how many decompress at a time.
    :param processors: those that it may use; none: any.
    :param lease_seconds: how long leases last; None: the server shares its storage with no other.
    :param url: where devices reach the server.
    :param log_levels: by logger's name.
    """

    number: int
    recipe: dict[str, Any]
    host: str
    port: int
    family: int
    certfile: str | None
    keyfile: str | None
    metrics_apart: bool
    threads: int | None
    processors: list[int]
    lease_seconds: float | None
    url: str
    log_levels: dict[str, int]


class WorkerProcess:
    """One worker: the calls that it makes, and its process.

    :param metrics: what the server measures, if it does.
    :param on_end: called when it has exited.
    """

    #: What it accumulates is fetched with each write: one process writes to the storage's file.
    stores = False

    def __init__(
        self,
        services: Services,
        metrics: ServerMetrics | None,
        on_end: Callable[[WorkerProcess], None],
    ) -> None:
        self._services = services
        self._metrics = metrics
        self._on_end = on_end
        #: The names of the uploads that it receives, and who sends them.
        self._uploading: dict[str, str | None] = {}
        self._behind = False
        self._link = Link(
            {
                "rpc": self._rpc,
                "admin": self._admin,
                "page": self._page,
                "begin_upload": self._begin_upload,
                "finish_upload": self._finish_upload,
                "abandon_upload": self._abandon_upload,
                "behind": self._is_behind,
                "download": self._download,
                "expose": self._exposed,
                "look": self._look,
                "problem": services.problem,
            },
            self._ended,
            prompt=("rpc", "begin_upload", "finish_upload", "abandon_upload"),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.started = asyncio.get_running_loop().time()
        self.call = self._link.call
        self.tell = self._link.tell
        #: What it measured, as far as it was asked.
        self.measured: Dump = {}

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None  # it was started
        return self._process.pid

    async def start(self, settings: WorkerSettings) -> None:
        """Start the process and wait until it accepts requests.

        :raises UsageError: if it does not.
        """
        ours, theirs = socket.socketpair()
        path = [os.path.abspath(entry or ".") for entry in sys.path]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(theirs.fileno()), json.dumps(path)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._link, sock=ours)
        try:
            await asyncio.wait_for(self.call("start", settings), START_TIME)
        except asyncio.TimeoutError:
            raise UsageError(f"a worker process did not start within {START_TIME:g} s.") from None
        except StatusError as error:
            if error.code is Code.UNAVAILABLE:
                raise UsageError("a worker process ended while it started.") from None
            raise UsageError(error.message) from None

    async def watch(self) -> None:
        """Kill it if it says nothing any more: it would keep all who are connected to it."""

        def kill() -> None:
            assert self._process is not None  # it was started
            logger.error("a worker process (pid %d) does not answer; it is killed", self.pid)
            self._process.kill()

        await self._link.watch(BEAT, SILENCE, kill)

    async def end(self) -> int | None:
        """Hang up, wait for the process and kill it if that takes too long; return its status."""
        self._link.close()
        if self._process is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(None, _reap, self._process)

    async def measure(self) -> Dump:
        """Return its metrics, or the last ones if it does not answer."""
        with contextlib.suppress(StatusError, asyncio.TimeoutError):
            self.measured = await asyncio.wait_for(self.call("measures"), MEASURE_TIME)
        return self.measured

    # What it calls.

    async def _rpc(
        self,
        service: str,
        method: str,
        data: bytes,
        principal: str | None,
        address: str,
        host: Sequence[str],
    ) -> bytes:
        ADDRESS.set(address)
        HOST.set((host[0], host[1]))
        route = routes.route(service, method)
        function = self._services.method(route)
        if function is None:
            raise StatusError(Code.UNIMPLEMENTED, f"this server does not offer {route.name}")
        response = await function(route.request_class.FromString(data), principal)
        answer: bytes = response.SerializeToString()
        return answer

    async def _admin(self, method: str, arguments: list[Any]) -> tuple[bool, Any]:
        endpoint = _ADMIN.get(method)
        kinds = [] if endpoint is None else [endpoint.query, endpoint.body]
        kinds = [kind for kind in kinds if kind is not None]
        plain = len(arguments) - len(kinds)
        arguments[plain:] = map(msgspec.convert, arguments[plain:], kinds)
        answer = await getattr(self._services.shared_admin, method)(*arguments)
        if isinstance(answer, bytes | str):
            return False, answer
        return True, msgspec.json.encode(answer)

    async def _page(self, name: str, request: Any) -> PageAnswer:
        return await self._services.pages.answer(name, msgspec.convert(request, PageRequest))

    async def _begin_upload(self, name: str, sender: str | None) -> int:
        wanted = await self._services.media.begin_upload(name, sender)
        if wanted:
            self._uploading[name] = sender
        return wanted

    async def _finish_upload(self, name: str, sender: str | None, size: int, number: int) -> None:
        self._uploading.pop(name, None)
        await self._services.media.finish_upload(name, RemoteUpload(self, number, size), sender)

    async def _abandon_upload(self, name: str, sender: str | None) -> None:
        self._uploading.pop(name, None)
        await self._services.media.abandon_upload(name, sender)

    async def _is_behind(self, behind: bool) -> None:
        if behind is not self._behind:
            self._behind = behind
            self._services.media.behind(behind)

    async def _download(self, name: str, known: str | None) -> tuple[bytes, str, str, float] | None:
        media = self._services.media
        if known is not None and media.is_same(name, known):
            return None
        found = await media.download(name)
        if found.etag == known:
            return None
        return bytes(found.data), found.content_type, found.etag, found.max_age

    async def _exposed(self, openmetrics: bool) -> bytes:
        assert self._metrics is not None  # a worker measures only if this process does
        return await self._metrics.expose(openmetrics)

    async def _look(self) -> Any:
        members = self._services.members
        assert members is not None  # a worker asks only if there are some
        await members.look()
        return members.table.dump(members.clock.now())

    def _ended(self) -> None:
        self._on_end(self)

    async def abandon_uploads(self) -> None:
        """Let the devices whose uploads it was receiving try again."""
        await self._is_behind(False)
        while self._uploading:
            await self._services.media.abandon_upload(*self._uploading.popitem())


def _reap(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(END_TIME)
    except subprocess.TimeoutExpired:
        logger.error("a worker process (pid %d) does not end; it is killed", process.pid)
        process.kill()
        return process.wait()
