"""Receives one request body: into one buffer, decompressed, within the limits."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable
from concurrent.futures import Executor

import numpy as np

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.limits import InFlight, Limits, http_error

#: Compressed bytes that are gathered before they are decompressed.
GATHER = 256 << 10
#: Decompressed bytes that are made in one go.
STEP = 1 << 20
#: Compressed bodies up to this size are decompressed on the event loop; a hop costs more.
INLINE = 4 << 10
#: Compressed bytes that are handed to zlib at once.
SLICE = 16 << 10


class BodyReader:
    """Takes the pieces of a body as they come and gives back the whole.

    :param encoding: the request's Content-Encoding, ``""`` if it has none.
    :param length: the announced Content-Length; None for a chunked body.
    :param in_flight: where the bytes are counted until :meth:`close`.
    :param executor: where larger bodies are decompressed.
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
        self._received = 0
        self._counted = 0
        self._closed = False
        self._gathered = bytearray()
        self._inflater = _Inflater() if coding.endswith("gzip") else None
        self._check_received(length or 0)
        self._count(length or 0)
        self._buffer = bytearray()
        # The buffer has its final size from the start if that is known. Not a bytearray, which
        # would be filled with zeros first: for a large body that costs as much as receiving it.
        self._whole: memoryview | None = None
        if self._inflater is None and length is not None:
            self._whole = np.empty(length, np.uint8).data

    @property
    def received(self) -> int:
        """How many bytes came, as they were sent."""
        return self._received

    def receive(self, piece: bytes) -> Awaitable[None] | None:
        """Take the next piece; wait for what is returned before giving another.

        :raises StatusError: HTTP 413 over a limit; UNAVAILABLE if too much is in flight;
            INVALID_ARGUMENT for bytes that are not gzip (these also from the awaitable).
        """
        if self._closed:
            return None
        start = self._received
        self._received += len(piece)
        if self._whole is not None:
            self._whole[start : self._received] = piece
            return None
        self._check_received(self._received)
        if self._inflater is None:
            self._count(self._received)
            self._buffer += piece
            return None
        self._gathered += piece
        self._count(len(self._buffer) + len(self._gathered))
        return self._inflate(self._inflater) if len(self._gathered) >= GATHER else None

    async def finish(self) -> bytearray | memoryview:
        """Return the whole body, decompressed.

        :raises StatusError: as :meth:`receive`, and INVALID_ARGUMENT for truncated gzip.
        """
        if self._inflater is not None and self._received:
            await self._inflate(self._inflater)
            if not self._inflater.complete:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"the gzip body is truncated: {self._received} bytes came and the stream does "
                    "not end",
                )
        return self._buffer if self._whole is None else self._whole

    def close(self) -> None:
        """Stop counting the bytes: somebody else has them now, or nobody. May be repeated."""
        self._closed = True
        self._in_flight.give_back(self._counted)
        self._counted = 0

    async def _inflate(self, inflater: _Inflater) -> None:
        inflater.feed(bytes(self._gathered))
        self._gathered.clear()
        inline = self._received <= INLINE
        more = True
        while more and not self._closed:
            # One byte more than the limit, to tell "full" from "too much".
            room = min(STEP, self._limits.max_decompressed + 1 - len(self._buffer))
            if inline:
                more = inflater.step(room, self._buffer)
                inline = False  # so little that makes more than one step is a bomb, or close to it
            else:
                more = await asyncio.get_running_loop().run_in_executor(
                    self._executor, inflater.step, room, self._buffer
                )
            if len(self._buffer) > self._limits.max_decompressed:
                raise http_error(
                    413,
                    f"the body is larger than {self._limits.max_decompressed} bytes after "
                    "decompression, the limit of this server",
                )
            self._count(len(self._buffer) + inflater.waiting)

    def _check_received(self, size: int) -> None:
        if size > self._limits.max_body:
            raise http_error(
                413,
                f"the body has at least {size} bytes; this server takes {self._limits.max_body}",
            )

    def _count(self, size: int) -> None:
        if size > self._counted and not self._closed:
            self._in_flight.take(size - self._counted)
            self._counted = size


class _Inflater:
    """Undoes gzip step by step; several members in a row are one body, as RFC 1952 says."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)
        self._data = b""
        self._position = 0
        self._tail = b""
        self._filled = False

    @property
    def complete(self) -> bool:
        """Whether the last member has ended."""
        return self._stream.eof

    @property
    def waiting(self) -> int:
        """How many compressed bytes were not used yet."""
        return len(self._data) - self._position + len(self._tail)

    def feed(self, data: bytes) -> None:
        """Give more input; the input before it has been used up."""
        self._data = data
        self._position = 0

    def step(self, room: int, output: bytearray) -> bool:
        """Append up to *room* bytes to *output*; return False once the input is used up."""
        end = len(output) + room
        while len(output) < end:
            if self._tail:
                piece = self._tail
            else:
                # In slices, because zlib copies what it leaves of its input.
                piece = self._data[self._position : self._position + SLICE]
                self._position += len(piece)
            if self._stream.eof:
                if not piece:
                    return False
                self._stream = zlib.decompressobj(wbits=31)
            elif not piece and not self._filled:
                return False
            wanted = end - len(output)
            try:
                made = self._stream.decompress(piece, wanted)
            except zlib.error as error:
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"the body is not valid gzip: {error}"
                ) from None
            output += made
            # A full output may leave some more inside the stream, even without input.
            self._filled = len(made) == wanted
            self._tail = (
                self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            )
        return True
