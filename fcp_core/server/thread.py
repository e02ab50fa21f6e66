"""A server on a thread of its own, for programs that have no event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from typing_extensions import Self

from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server.server import Server

T = TypeVar("T")

logger = logging.getLogger("fcp.server")

#: How long the thread may take beyond the server's own limits before it is left behind, in seconds.
_JOIN_TIME = 60.0


class ServerThread:
    """Runs a server on a daemon thread with its own event loop; a context manager.

    >>> with ServerThread(Server(plugins)) as running:        # doctest: +SKIP
    ...     running.run(running.server.services.tasks.cancel(task_id)).result()
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._started: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the server and wait until it accepts requests.

        :raises UsageError: and whatever else :meth:`Server.start` raises.
        :raises RuntimeError: if it was started before.
        """
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("a server thread starts once")
            self._thread = threading.Thread(target=self._main, name="fcp-server", daemon=True)
            self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and wait for the thread. May be repeated, and called from any thread."""
        with self._lock:
            if self._thread is None:  # never started: only the sockets have to go
                self._thread = threading.Thread(target=_close, args=(self.server,), daemon=True)
                self._thread.start()
            loop, stop, thread = self._loop, self._stop, self._thread
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # a closed loop has stopped already
                loop.call_soon_threadsafe(stop.set)
        if thread is not threading.current_thread():
            thread.join(_JOIN_TIME)
            if thread.is_alive():
                logger.error("the server's thread does not end; it dies with the process")

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the server's event loop.

        :returns: its outcome; cancelling it cancels the coroutine.
        :raises RuntimeError: if the server is not running.
        """
        loop = self._loop
        if loop is None or not self._started.done():
            work.close()
            raise RuntimeError("the server is not running")
        try:
            return asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError:
            work.close()
            raise RuntimeError("the server is not running any more") from None

    def complete(self, spec: TaskSpec) -> bytes:
        """Offer a task and return its result, a checkpoint, as soon as it is there.

        :raises StatusError: why it cannot be offered, or has no result.
        :raises RuntimeError: if the server is not running.
        """
        return self.run(self._complete(spec)).result()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self.stop()

    async def _complete(self, spec: TaskSpec) -> bytes:
        tasks = self.server.services.tasks
        return await tasks.wait(await tasks.submit(spec))

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._started.done():
                logger.exception("the server did not stop cleanly")
            else:
                self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await self.server.start()
        self._started.set_result(None)
        await self._stop.wait()
        await self.server.stop()


def _close(server: Server) -> None:
    asyncio.run(server.stop())
