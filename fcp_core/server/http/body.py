"""Receives one request body: into one buffer, decompressed, within the limits."""

from __future__ import annotations

import asyncio
import importlib
import time
import zlib
from collections.abc import Awaitable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from tornado.iostream import IOStream

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.buffers import Buffers
from fcp_core.server.http.limits import InFlight, Limits, http_error

#: Bodies from this size on are read straight off the socket, if their length was announced.
DIRECT = 64 << 10
#: Bytes that are read straight off the socket at once.
PART = 256 << 10
#: Seconds of reading, shared by the bodies that come, before other requests have their turn.
TURN = 1e-3
#: Compressed bytes that are gathered before they are decompressed.
GATHER = 1 << 20
#: Decompressed bytes that are made in one go.
STEP = 4 << 20
#: Compressed bodies up to this size are decompressed on the event loop; a hop costs more.
INLINE = 4 << 10
#: Compressed bytes that are handed to the decompressor at once, and decompressed bytes that it
#: makes at once: they stay in the processor's cache until they are copied to where they belong.
SLICE = 128 << 10
PIECE = 256 << 10
#: How each gzip member begins.
MAGIC = b"\x1f\x8b"


def _decompressor() -> Any:
    """Return the fastest module that has the interface of :mod:`zlib`."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:  # there is no wheel for every machine
        return zlib


_zlib = _decompressor()


class BodyReader:
    """Takes the pieces of a body as they come and gives back the whole.

    :param encoding: the request's Content-Encoding, ``""`` if it has none.
    :param length: the announced Content-Length; None for a chunked body.
    :param in_flight: where the bytes are counted until :meth:`close`.
    :param executor: where larger bodies are decompressed.
    :param buffers: where the memory of larger bodies comes from.
    :raises StatusError: INVALID_ARGUMENT for an unknown encoding; HTTP 413 if the announced length
        is over the limit; UNAVAILABLE if too much is in flight.
    """

    def __init__(
        self,
        encoding: str,
        length: int | None,
        limits: Limits,
        in_flight: InFlight,
        executor: Executor,
        buffers: Buffers,
    ) -> None:
        coding = encoding.strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip"):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the Content-Encoding {encoding!r} is not supported; send gzip or none",
            )
        self._limits = limits
        self._in_flight = in_flight
        self._executor = executor
        self._buffers = buffers
        self._length = length
        self._received = 0
        self._counted = 0
        self._closed = False
        self._gathered = bytearray()
        self._inflater = _Inflater() if coding.endswith("gzip") else None
        self._check_received(length or 0)
        in_flight.admit(max(0, (length or 0) - in_flight.free))
        self._buffer: bytearray | _Output = bytearray()
        self._whole: memoryview | None = None

    @property
    def received(self) -> int:
        """How many bytes came, as they were sent."""
        return self._received

    @property
    def direct(self) -> bool:
        """Whether :meth:`receive_from` is to take the body."""
        return self._length is not None and self._length >= DIRECT

    async def receive_from(self, stream: IOStream) -> None:
        """Take the whole body off a connection, with one copy.

        What was announced takes no memory before it comes: the system gives pages as they are
        written.

        :raises StatusError: as :meth:`receive`; the rest of the body has not been read then.
        :raises StreamClosedError: if the connection breaks.
        """
        assert self._length is not None  # see direct
        if self._inflater is not None:
            await self._inflate_from(stream, self._length)
            return
        whole = self._buffers.take(self._length)
        self._in_flight.readers += 1
        try:
            begun = time.perf_counter()
            while self._received < self._length:
                piece = whole[self._received : self._received + PART]
                self._received += await stream.read_into(piece, partial=True)  # type: ignore[arg-type]
                self._count(self._received)
                if time.perf_counter() - begun >= TURN / self._in_flight.readers:
                    await asyncio.sleep(0)
                    begun = time.perf_counter()
        finally:
            self._in_flight.readers -= 1
        self._whole = whole

    async def _inflate_from(self, stream: IOStream, length: int) -> None:
        """Take a compressed body: the next piece comes while the last one is decompressed."""
        job: asyncio.Future[None] | None = None
        self._buffer = _Output(self._buffers, length + length // 4)
        try:
            while self._received < length:
                size = min(GATHER, length - self._received)
                piece = self._buffers.take(size)
                await self._fill(piece, stream)
                if job is not None:
                    await job
                job = asyncio.ensure_future(self._inflate(piece))
                job.add_done_callback(_retrieve)  # nobody asks after the connection broke
                await asyncio.sleep(0)
            if job is not None:
                await job
        finally:
            if job is not None and not job.done():
                self.close()  # which ends it soon
                await asyncio.wait((job,))

    async def _fill(self, piece: memoryview, stream: IOStream) -> None:
        """Read a piece of a compressed body, and count it as it comes."""
        assert self._inflater is not None  # nothing else is read like this
        filled = 0
        while filled < len(piece):
            more = await stream.read_into(piece[filled:], partial=True)  # type: ignore[arg-type]
            filled += more
            self._received += more
            self._count(len(self._buffer) + self._inflater.waiting + filled)

    def receive(self, piece: bytes) -> Awaitable[None] | None:
        """Take the next piece; wait for what is returned before giving another.

        :raises StatusError: HTTP 413 over a limit; UNAVAILABLE if too much is in flight;
            INVALID_ARGUMENT for bytes that are not gzip (these also from the awaitable).
        """
        if self._closed:
            return None
        self._received += len(piece)
        self._check_received(self._received)
        if self._inflater is None:
            self._count(self._received)
            assert isinstance(self._buffer, bytearray)  # the other is for what is decompressed
            self._buffer += piece
            return None
        self._gathered += piece
        self._count(len(self._buffer) + len(self._gathered))
        return self._inflate_gathered() if len(self._gathered) >= GATHER else None

    async def finish(self) -> bytearray | memoryview:
        """Return the whole body, decompressed.

        :raises StatusError: as :meth:`receive`, and INVALID_ARGUMENT for truncated gzip.
        """
        if self._inflater is not None and self._received:
            if self._gathered:
                await self._inflate_gathered()
            if not self._inflater.complete:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"the gzip body is truncated: {self._received} bytes came and the stream does "
                    "not end",
                )
        if isinstance(self._buffer, _Output):
            return await self._buffer.whole(self._executor)
        return self._buffer if self._whole is None else self._whole

    def close(self) -> None:
        """Release the bytes: somebody else has them now, or nobody. May be repeated."""
        self._closed = True
        self._in_flight.give_back(self._counted)
        self._counted = 0

    async def _inflate_gathered(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        await self._inflate(memoryview(gathered))

    async def _inflate(self, packed: memoryview) -> None:
        inflater, output = self._inflater, self._buffer
        assert inflater is not None  # or nobody would call this
        inflater.feed(packed)
        inline = self._received <= INLINE
        more = True
        while more and not self._closed:
            # One byte more than the limit, to tell "full" from "too much".
            room = min(STEP, self._limits.max_decompressed + 1 - len(output))
            if isinstance(output, _Output):
                room = min(room, await output.reserve(self._executor))
            if inline:
                more = inflater.step(room, output)
                inline = False  # so little that makes more than one step is a bomb, or close to it
            else:
                more = await asyncio.get_running_loop().run_in_executor(
                    self._executor, inflater.step, room, output
                )
            if len(output) > self._limits.max_decompressed:
                raise http_error(
                    413,
                    f"the body is larger than {self._limits.max_decompressed} bytes after "
                    "decompression, the limit of this server",
                )
            self._count(len(output) + inflater.waiting)

    def _check_received(self, size: int) -> None:
        if size > self._limits.max_body:
            raise http_error(
                413,
                f"the body has at least {size} bytes; this server takes {self._limits.max_body}",
            )

    def _count(self, size: int) -> None:
        size -= self._in_flight.free
        if size > self._counted and not self._closed:
            self._in_flight.take(size - self._counted)
            self._counted = size


def _retrieve(job: asyncio.Future[None]) -> None:
    if not job.cancelled():
        job.exception()


class _Output:
    """Decompressed bytes, in memory that is used again.

    What a ``bytearray`` takes in one thread and gives back in another is fresh each time, and then
    costs a tenth of the decompression.
    """

    def __init__(self, buffers: Buffers, size: int) -> None:
        self._buffers = buffers
        self._memory = buffers.take(size)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iadd__(self, made: bytes) -> _Output:
        end = self._size + len(made)
        self._memory[self._size : end] = made
        self._size = end
        return self

    async def reserve(self, executor: Executor) -> int:
        """Return how many bytes may be added, of which there is at least one."""
        if self._size == len(self._memory):
            await self._move(2 * self._size, executor)
        return len(self._memory) - self._size

    async def whole(self, executor: Executor) -> memoryview:
        """Return all, in memory that is not much larger."""
        if len(self._memory) > self._size + self._size // 2:
            await self._move(self._size, executor)
        return self._memory[: self._size]

    async def _move(self, size: int, executor: Executor) -> None:
        # In a thread, with a copy that lets others run: 200 MB take a tenth of a second.
        memory = self._buffers.take(size)
        source, target = (np.frombuffer(m, np.uint8, self._size) for m in (self._memory, memory))
        await asyncio.get_running_loop().run_in_executor(executor, np.copyto, target, source)
        self._memory = memory


class _Inflater:
    """Undoes gzip step by step; several members in a row are one body, as RFC 1952 says."""

    def __init__(self) -> None:
        self._stream = _zlib.decompressobj(wbits=31)
        self._data = memoryview(b"")
        self._position = 0
        self._tail = b""
        self._filled = False
        self._begun = False

    @property
    def complete(self) -> bool:
        """Whether the last member has ended."""
        return bool(self._stream.eof)

    @property
    def waiting(self) -> int:
        """How many compressed bytes were not used yet."""
        return len(self._data) - self._position + len(self._tail)

    def feed(self, data: memoryview) -> None:
        """Give more input; the input before it has been used up."""
        self._data = data
        self._position = 0

    def step(self, room: int, output: bytearray | _Output) -> bool:
        """Append up to *room* bytes to *output*; return False once the input is used up."""
        end = len(output) + room
        while len(output) < end:
            piece: bytes | memoryview = self._tail
            if not piece:
                # In slices, because the decompressor copies what it leaves of its input.
                piece = self._data[self._position : self._position + SLICE]
                self._position += len(piece)
            if self._stream.eof:
                if not piece:
                    break
                self._stream = _zlib.decompressobj(wbits=31)
                self._begun = False
            elif not piece and not self._filled:
                break
            if piece and not self._begun:
                # Some decompressors wait for more before they look.
                if not MAGIC.startswith(bytes(piece[:2])):
                    raise StatusError(
                        Code.INVALID_ARGUMENT, "the body is not valid gzip: it begins differently"
                    )
                self._begun = True
            wanted = min(PIECE, end - len(output))
            try:
                made = self._stream.decompress(piece, wanted)
            except _zlib.error as error:
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"the body is not valid gzip: {error}"
                ) from None
            output += made
            # A full output may leave some more inside the stream, even without input.
            self._filled = len(made) == wanted
            self._tail = (
                self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            )
        else:
            return True
        self._data = memoryview(b"")  # its memory may be used again
        self._position = 0
        return False
