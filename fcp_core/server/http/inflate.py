"""Reads bodies in gzip: undoes it step by step, into memory that is used again."""

from __future__ import annotations

import asyncio
import functools
import importlib
import zlib
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from tornado.iostream import IOStream

from fcp_core.protocol.blocks import BlockFile
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.body import BodyReader, InFlight, write_to
from fcp_core.server.http.buffers import Buffers
from fcp_core.server.http.limits import Limits, http_error

#: Compressed bytes that are handed to the decompressor at once, and decompressed bytes that it
#: makes at once: they stay in the processor's cache until they are copied to where they belong, and
#: the memory of more than this would be fresh each time.
SLICE = 256 << 10
PIECE = 256 << 10
#: Compressed bytes that are gathered before they are decompressed.
GATHER = 1 << 20
#: Compressed bytes that are read off the socket into one piece of memory. Less of it is
#: decompressed if that would else stand still.
PIECES = 1 << 20
#: Compressed bytes of one body that may wait for it.
AHEAD = 4 << 20
#: Decompressed bytes that are made in one go.
STEP = 4 << 20
#: Compressed bodies up to this size are decompressed on the event loop; a hop costs more.
INLINE = 4 << 10
#: How each gzip member begins.
MAGIC = b"\x1f\x8b"


def _decompressor() -> Any:
    """Return the fastest module that has the interface of :mod:`zlib`."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:  # there is no wheel for every machine
        return zlib


_zlib = _decompressor()


class Output:
    """Decompressed bytes, in memory that is used again, or in a file.

    What a ``bytearray`` takes in one thread and gives back in another is fresh each time, and then
    costs a tenth of the decompression.

    :param size: how many bytes there may be, as far as one can tell.
    :param in_file: whether they go to a file once they are more than the buffers keep.
    """

    def __init__(self, buffers: Buffers, size: int, *, in_file: bool) -> None:
        self._buffers = buffers
        self._in_file = in_file
        self._kept, self._likely = buffers.kept, size
        if in_file and size > buffers.kept:
            size, self._kept = STEP, 0  # until there is a file
        self._memory = buffers.take(size)
        self._file: BlockFile | None = None
        self._size, self._end = 0, size

    def __len__(self) -> int:
        return self._size

    def __iadd__(self, made: bytes) -> Output:
        size = self._size + len(made)
        if self._file is None:
            self._memory[self._size : size] = made
        else:
            write_to(self._file, memoryview(made))
        self._size = size
        return self

    async def reserve(self, executor: Executor) -> int:
        """Return how many bytes may be added, of which there is at least one."""
        if self._size == self._end:
            if self._in_file and 2 * self._size > self._kept:
                run = asyncio.get_running_loop().run_in_executor
                self._in_file = await run(executor, self._grow)
            if not self._in_file or self._file is None:
                await self._move(max(self._likely, 2 * self._size), executor)
        return self._end - self._size

    async def whole(self, executor: Executor) -> memoryview:
        """Return all, in memory that is not much larger; nothing is left here."""
        file, self._file = self._file, None
        if file is not None:
            return await asyncio.get_running_loop().run_in_executor(executor, file.block)
        if len(self._memory) > self._size + self._size // 2:
            await self._move(self._size, executor)
        return self._memory[: self._size]

    def close(self) -> None:
        """Drop the file, if there is one."""
        if self._file is not None:
            self._file.close()

    def _grow(self) -> bool:
        """Make room in a file; return whether there is any. In a thread."""
        more = max(STEP, self._size // 4)
        if self._file is None:
            self._file = self._buffers.file(self._size + more)
            if self._file is None:
                return False
            write_to(self._file, self._memory[: self._size])
            self._memory = memoryview(b"")
        else:
            try:
                self._file.grow(more)
            except OSError:
                file, self._file = self._file, None
                self._memory = file.block()
                return False
        self._end = self._file.size
        return True

    async def _move(self, size: int, executor: Executor) -> None:
        # In a thread, with a copy that lets others run: 200 MB take a tenth of a second.
        memory = self._buffers.take(size)
        source, target = (np.frombuffer(m, np.uint8, self._size) for m in (self._memory, memory))
        await asyncio.get_running_loop().run_in_executor(executor, np.copyto, target, source)
        self._memory, self._end = memory, size


class Inflater:
    """Undoes gzip step by step; several members in a row are one body, as RFC 1952 says.

    :ivar on_piece: called by the thread that steps whenever it begins with another piece.
    """

    def __init__(self) -> None:
        self.on_piece: Callable[[], object] | None = None
        self._stream = _zlib.decompressobj(wbits=31)
        self._pieces: deque[memoryview] = deque()
        self._data = memoryview(b"")
        self._position = 0
        self._fed = self._taken = 0
        self._tail = b""
        self._filled = False
        self._begun = False

    @property
    def complete(self) -> bool:
        """Whether the last member has ended."""
        return bool(self._stream.eof)

    @property
    def waiting(self) -> int:
        """How many compressed bytes were not used yet; about, while another thread uses some."""
        return self._fed - self._taken + len(self._tail)

    def feed(self, piece: memoryview) -> None:
        """Give more input, also while another thread is in :meth:`step`, which then goes on."""
        self._fed += len(piece)
        self._pieces.append(piece)

    def step(self, room: int, output: bytearray | Output) -> bool:
        """Append up to *room* bytes to *output*; return False once the input is used up."""
        end = len(output) + room
        while len(output) < end:
            piece = self._tail or self._slice()
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
        return False

    def _slice(self) -> bytes | memoryview:
        """Return the next input; only so much, because the decompressor copies what it leaves."""
        if self._position == len(self._data):
            self._data = memoryview(b"")  # its memory may be used again
            if not self._pieces:
                self._position = 0
                return b""
            on_piece = self.on_piece  # which the other thread may take away
            if on_piece is not None:
                on_piece()
            self._data = self._pieces.popleft()
            self._position = 0
        piece = self._data[self._position : self._position + SLICE]
        self._position += len(piece)
        self._taken += len(piece)
        return piece


class GzipReader(BodyReader):
    """Decompresses a body as it comes; a large one whose length was announced into a file."""

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
        super().__init__(length, limits, in_flight, executor, buffers, in_file=in_file)
        self._inflater = Inflater()
        self._gathered = bytearray()
        self._output: bytearray | Output = bytearray()
        #: Whether a thread may be at it.
        self._inflating = False

    async def receive_from(self, stream: IOStream) -> None:
        """Take the whole body off a connection: more comes while what has come is decompressed."""
        assert self._length is not None  # see direct
        await self._inflate_from(stream, self._length)

    def receive(self, piece: bytes) -> Awaitable[None] | None:
        """Take the next piece; wait for what is returned before giving another."""
        if self.closed:
            return None
        self.received += len(piece)
        if self.received > self._limits.max_body:
            raise self._too_large(self.received)
        self._gathered += piece
        self._count(len(self._output) + len(self._gathered))
        return self._inflate_gathered() if len(self._gathered) >= GATHER else None

    async def finish(self) -> bytearray | memoryview:
        """Return the whole body, decompressed; the reader keeps nothing of it."""
        if self.received:
            if self._gathered:
                await self._inflate_gathered()
            if not self._inflater.complete:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"the gzip body is truncated: {self.received} bytes came and the stream does "
                    "not end",
                )
        output, self._output = self._output, bytearray()
        return await output.whole(self._executor) if isinstance(output, Output) else output

    def close(self) -> None:
        """Release the bytes: somebody else has them now, or nobody. May be repeated."""
        super().close()
        if isinstance(self._output, Output) and not self._inflating:
            self._output.close()

    async def _inflate_from(self, stream: IOStream, length: int) -> None:
        """Take a compressed body: more of it comes while what has come is decompressed."""
        inflater, loop, news = self._inflater, asyncio.get_running_loop(), asyncio.Event()
        call = functools.partial(loop.call_soon_threadsafe, news.set)
        self._output = Output(self._buffers, length + length // 4, in_file=self._in_file)
        job: asyncio.Future[None] | None = None
        self._inflating = True
        try:
            piece, begin, end = memoryview(b""), 0, 0
            while self.received < length:
                if end == len(piece):
                    piece = self._buffers.take(min(PIECES, length - self.received))
                    begin = end = 0
                more = await stream.read_into(piece[end:], partial=True)  # type: ignore[arg-type]
                end, self.received = end + more, self.received + more
                self._count(len(self._output) + inflater.waiting + end - begin)
                if job is not None and job.done():
                    job.result()  # or the next one would go on behind what this one did not take
                    job = None
                if end < len(piece) and (job is not None or end - begin < SLICE):
                    continue
                inflater.feed(piece[begin:end])
                begin = end
                if job is None:
                    job = asyncio.ensure_future(self._inflate())
                    job.add_done_callback(_retrieve)  # nobody asks after the connection broke
                    job.add_done_callback(lambda job: news.set())
                await asyncio.sleep(0)
                while inflater.waiting >= AHEAD and not job.done():
                    inflater.on_piece = call
                    await news.wait()
                    news.clear()
                inflater.on_piece = None
                if job.done():
                    job.result()
            if job is not None:
                await job
        finally:
            if job is not None and not job.done():
                self.close()  # which ends it soon
                await asyncio.wait((job,))
            self._inflating = False
            if self.closed:
                self.close()

    async def _inflate_gathered(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        self._inflater.feed(memoryview(gathered))
        await self._inflate()

    async def _inflate(self) -> None:
        """Decompress until nothing is left, whatever comes meanwhile."""
        inflater, output = self._inflater, self._output
        inline = self.received <= INLINE
        more = True
        while (more or inflater.waiting) and not self.closed:
            # One byte more than the limit, to tell "full" from "too much".
            room = min(STEP, self._limits.max_decompressed + 1 - len(output))
            if isinstance(output, Output):
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


def reader_of(
    encoding: str,
    length: int | None,
    limits: Limits,
    in_flight: InFlight,
    executor: Executor,
    buffers: Buffers,
    *,
    in_file: bool = False,
) -> BodyReader:
    """Return what reads a body.

    :param encoding: the request's Content-Encoding, ``""`` if it has none.
    :param in_file: whether a large body may lie in a file.
    :raises StatusError: INVALID_ARGUMENT for an unknown encoding; and as :class:`BodyReader`.
    """
    coding = encoding.strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip"):
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"the Content-Encoding {encoding!r} is not supported; send gzip or none",
        )
    make = GzipReader if coding.endswith("gzip") else BodyReader
    return make(length, limits, in_flight, executor, buffers, in_file=in_file)


def _retrieve(job: asyncio.Future[None]) -> None:
    if not job.cancelled():
        job.exception()
