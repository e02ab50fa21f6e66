"""A network that breaks on purpose, between a storage and its server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator

from typing_extensions import Self

from fcp_postgres.testing import PostgresServer

#: What may become of a COMMIT: it passes; the connection breaks before it comes to the server,
#: which does not notice; it breaks when the server has it; or when the answer is on its way.
PASS, UNSENT, SENT, ANSWERED = "pass", "unsent", "sent", "answered"
#: As ANSWERED, and no connection is let through after it.
LAST = "last"
FATES = (PASS, UNSENT, SENT, ANSWERED)


class CuttingProxy:
    """Passes bytes on between clients, at a port of loopback, and a server; a context manager.

    :param fates: what becomes of one COMMIT after the other; all pass when they run out.
    """

    def __init__(self, server: PostgresServer, fates: Iterable[str] = ()) -> None:
        self._server = server
        self.decide(*fates)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cutting-proxy")
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Whether new connections are let through.
        self.is_open = True
        self._muted: asyncio.StreamWriter | None = None
        #: Those whose bytes get lost.
        self._silent: set[asyncio.StreamWriter] = set()
        #: What has become of the COMMITs so far.
        self.commits: list[str] = []

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._pass_on, "127.0.0.1", 0), self._loop
        ).result()
        self.port = self._listener.sockets[0].getsockname()[1]
        #: The server's address by way of this.
        self.url = f"postgresql://fcp@127.0.0.1:{self.port}/postgres?sslmode=disable"
        return self

    def __exit__(self, *error: object) -> None:
        """Break all connections."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def decide(self, *fates: str) -> None:
        """Say what becomes of the next COMMITs."""
        self._fates = itertools.chain(fates, itertools.repeat(PASS))

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Break all connections, and let none through as long as the context lasts."""
        self.is_open = False
        self._loop.call_soon_threadsafe(self.cut)
        try:
            yield
        finally:
            self.is_open = True

    def silence(self) -> None:
        """Lose what is sent on the connections that there are, without a word."""
        self._silent |= self._writers

    def cut(self) -> None:
        """Break all connections; called on the proxy's own thread."""
        for writer in self._writers:
            writer.transport.abort()

    async def _end(self) -> None:
        self._listener.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            if self.is_open:
                path = f"{self._server.folder}/.s.PGSQL.{self._server.port}"
                theirs, other = await asyncio.open_unix_connection(path)
                self._writers.add(other)
                await asyncio.gather(
                    self._ask(reader, other, writer), self._answer(theirs, writer, other)
                )
        writer.transport.abort()
        self._writers.discard(writer)
        self._tasks.discard(task)

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if writer in self._silent:
                    continue
                fate = PASS
                if b"COMMIT\0" in data:
                    fate = next(self._fates)
                    self.commits.append(fate)
                if fate == UNSENT:
                    client.transport.abort()
                    return  # The server's side stays open.
                if fate in (ANSWERED, LAST):
                    self._muted = client
                    self.is_open = fate != LAST
                writer.write(data)
                await writer.drain()
                if fate == SENT:
                    client.transport.abort()
                    break
        writer.close()

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self._muted is writer:
                    break
                if writer in self._silent:
                    continue
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
        server.close()
