"""Receives request bodies, each into one buffer and within the limits.

Those that are compressed are read by :mod:`fcp_core.server.http.inflate`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

from tornado.iostream import IOStream, StreamClosedError

from fcp_core.protocol.blocks import BlockFile
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.body_queue import PART, BodyQueue
from fcp_core.server.http.buffers import Buffers
from fcp_core.server.http.limits import Limits, http_error

#: Bodies from this size on are read straight off the socket, if their length was announced.
DIRECT = 64 << 10
#: Bytes of a body that goes to a file which are written at once.
WRITTEN = 1 << 20
#: Seconds of reading, shared by the bodies that come, before other requests have their turn.
TURN = 1e-3


class InFlight:
    """Counts the bytes of the bodies that are being received, as they come, and bounds them.

    :param free: as many bytes of each body are not counted.
    :param beside: count among these, as uploads do. They must leave room for what *waiting* says;
        calls need not: it is a submission that makes room.
    :param waiting: returns how many bytes of uploads wait to be submitted or folded.
    :param on_behind: called with whether more than *limit* bytes wait to begin, when that changes.
    :ivar held: how many bytes there are; those that count beside have none of their own.
    :ivar readers: how many bodies are being read straight off their sockets.
    :ivar queue: says which of them may.
    """

    def __init__(
        self,
        limit: int,
        free: int = 0,
        *,
        beside: InFlight | None = None,
        waiting: Callable[[], int] | None = None,
        on_behind: Callable[[bool], None] = lambda behind: None,
    ) -> None:
        self.limit = limit
        self.free = free
        self.held = 0
        self.readers = 0
        self.queue = BodyQueue(limit, self.room, on_behind)
        self._pool = self if beside is None else beside
        self._waiting = waiting

    def take(self, size: int) -> None:
        """Count *size* bytes more.

        :raises StatusError: UNAVAILABLE if that is over the limit; nothing is counted then.
        """
        self.admit(size)
        self.force(size)

    def force(self, size: int) -> None:
        """Count *size* bytes more, even if that is over the limit."""
        self._pool.held += size

    def admit(self, size: int) -> None:
        """Check that there is room for *size* bytes now; what is announced is not counted.

        :raises StatusError: as :meth:`take`.
        """
        room = self.room()
        if size > room:
            raise StatusError(
                Code.UNAVAILABLE,
                f"the server holds {self.limit - room} bytes of requests and takes "
                f"{self.limit} at a time; send these {size} bytes again later",
            )

    def give_back(self, size: int) -> None:
        """Release *size* bytes."""
        self._pool.held -= size
        self.look()

    def look(self) -> None:
        """Have those that wait look again, for there may be more room."""
        if self.queue.paused:
            self.queue.look()

    def room(self) -> int:
        """Return how many bytes more may be taken."""
        waiting = 0 if self._waiting is None else self._waiting()
        return self.limit - self._pool.held - waiting

    async def wait(self, size: int, timeout: float) -> None:
        """Wait until a body of *size* bytes may begin, as :meth:`BodyQueue.wait`.

        What could never be taken is not waited for: taking it says why.
        """
        quiet = not self.queue.missing and not self.queue.paused
        if size <= self.limit and not (quiet and size <= self.room()):
            await self.queue.wait(size, timeout)


class BodyReader:
    """Takes the pieces of a body as they come and gives back the whole, if it is not compressed.

    :param length: the announced Content-Length; None for a chunked body.
    :param in_flight: where the bytes are counted until :meth:`close`.
    :param executor: where larger bodies are decompressed.
    :param buffers: where the memory of larger bodies comes from.
    :param in_file: whether a large body may lie in a file; what devices contribute may not always.
    :ivar received: how many bytes came, as they were sent.
    :ivar direct: whether :meth:`receive_from` is to take the body.
    :raises StatusError: HTTP 413 if the announced length is over the limit; UNAVAILABLE if too much
        is in flight.
    """

    def __init__(
        self,
        length: int | None,
        limits: Limits,
        in_flight: InFlight,
        executor: Executor,
        buffers: Buffers,
        *,
        in_file: bool = False,
    ) -> None:
        self._limits = limits
        self._in_file = in_file
        self._in_flight = in_flight
        self._executor = executor
        self._buffers = buffers
        self._length = length
        self.received = 0
        self.direct = length is not None and length >= DIRECT
        self._counted = 0
        self.closed = False
        if length:
            if length > limits.max_body:
                raise self._too_large(length)
            if length > in_flight.free:
                in_flight.admit(length - in_flight.free)
        self._buffer = bytearray()
        self._whole: memoryview | None = None

    async def receive_from(self, stream: IOStream) -> None:
        """Take the whole body off a connection, with one copy; a large one into a file.

        What was announced takes no memory before it comes: the system gives pages as they are
        written.

        :raises StatusError: as :meth:`receive`; the rest of the body has not been read then.
        :raises StreamClosedError: if the connection breaks.
        """
        assert self._length is not None  # see direct
        file = None
        if self._in_file and self._length > self._buffers.kept:
            loop = asyncio.get_running_loop()
            file = await loop.run_in_executor(self._executor, self._buffers.file, self._length)
        whole = self._buffers.take(self._length if file is None else WRITTEN)
        self._in_flight.readers += 1
        try:
            begun, at = time.perf_counter(), 0
            while self.received < self._length:
                await self._wait_for_room(stream)
                piece = whole[at : at + min(PART, self._length - self.received)]
                more: int = await stream.read_into(piece, partial=True)  # type: ignore[arg-type]
                at, self.received = at + more, self.received + more
                self._count(self.received, anyway=True)
                if file is not None and (at == len(whole) or self.received == self._length):
                    run = asyncio.get_running_loop().run_in_executor
                    await run(self._executor, write_to, file, whole[:at])
                    at = 0
                if time.perf_counter() - begun >= TURN / self._in_flight.readers:
                    await asyncio.sleep(0)
                    begun = time.perf_counter()
            self._whole = whole if file is None else file.block()
        finally:
            self._in_flight.readers -= 1
            self._in_flight.queue.goes_on(self, 0)
            if file is not None:
                file.close()

    async def _wait_for_room(self, stream: IOStream) -> None:
        """Read no more while there is no room: the device is slowed down, not turned away."""
        assert self._length is not None  # as in receive_from
        while not self._in_flight.queue.goes_on(self, self._length - self.received):
            if stream.closed():
                raise StreamClosedError
            await self._in_flight.queue.pause(self)

    def receive(self, piece: bytes) -> Awaitable[None] | None:
        """Take the next piece; wait for what is returned before giving another.

        :raises StatusError: HTTP 413 over a limit; UNAVAILABLE if too much is in flight;
            INVALID_ARGUMENT for bytes that are not gzip (these also from the awaitable).
        """
        if self.closed:
            return None
        self.received += len(piece)
        if self.received > self._limits.max_body:
            raise self._too_large(self.received)
        if self.received > self._in_flight.free:
            self._count(self.received)
        self._buffer += piece
        return None

    async def finish(self) -> bytearray | memoryview:
        """Return the whole body, decompressed; the reader keeps nothing of it.

        :raises StatusError: as :meth:`receive`, and INVALID_ARGUMENT for truncated gzip.
        """
        # A connection keeps its last request, and this with it, until the next one comes.
        buffer, self._buffer = self._buffer, bytearray()
        whole, self._whole = self._whole, None
        return buffer if whole is None else whole

    def close(self) -> None:
        """Release the bytes: somebody else has them now, or nobody. May be repeated."""
        self.closed = True
        if self._counted:
            self._in_flight.give_back(self._counted)
            self._counted = 0

    def _too_large(self, size: int) -> StatusError:
        return http_error(
            413, f"the body has at least {size} bytes; this server takes {self._limits.max_body}"
        )

    def _count(self, size: int, *, anyway: bool = False) -> None:
        """Count what is there.

        :param anyway: even if that is over the limit, by no more than one part.
        """
        size -= self._in_flight.free
        if size > self._counted and not self.closed:
            if anyway:
                self._in_flight.force(size - self._counted)
            else:
                self._in_flight.take(size - self._counted)
            self._counted = size


def write_to(file: BlockFile, piece: memoryview) -> None:
    """Write a piece of a body to its file.

    :raises StatusError: UNAVAILABLE if that cannot be done.
    """
    try:
        file.write(piece)
    except OSError as error:
        raise StatusError(
            Code.UNAVAILABLE, f"the body could not be written to a file: {error.strerror}"
        ) from None
