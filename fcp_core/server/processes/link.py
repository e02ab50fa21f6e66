"""Calls between two processes of one server, or two members: frames over a connection.

A frame is a length of four bytes and as many bytes of MessagePack, an array of three:

    [number, name, arguments]            a call, answered under its number; 0: it wants no answer
    [-number, None, result]              its answer
    [-number, [code, message, http], None]   what it failed with

Either side calls, many calls are in progress at a time, and answers come in any order; frames are
handled in the order in which they were sent. The bytes of uploads are in none of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import types
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Mapping
from typing import Any, TypeAlias, cast

import msgspec

from fcp_core.errors import plugin_errors
from fcp_core.protocol.status import Code, StatusError

logger = logging.getLogger("fcp.server")

#: Answers a call: its arguments to its result, which MessagePack can carry.
Handler: TypeAlias = Callable[..., Awaitable[Any]]

_HEADER = 4
#: The longest frame, in bytes.
MAX_FRAME = (1 << 32) - 1


def encode_frame(number: int, head: Any, payload: Any) -> bytes:
    """Return a frame.

    :raises ValueError: if it would be longer than :data:`MAX_FRAME`.
    """
    data = _ENCODER.encode((number, head, payload))
    if len(data) > MAX_FRAME:
        raise ValueError(f"a frame of {len(data)} bytes is too long for a link of processes")
    return len(data).to_bytes(_HEADER, "big") + data


class FrameReader:
    """Puts frames together from the pieces that a socket gives."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = _HEADER

    def feed(self, piece: bytes) -> list[Any]:
        """Take the next piece; return the frames that are whole with it.

        :raises ValueError: for bytes that are no frame.
        """
        buffer = self._buffer
        buffer += piece
        frames = []
        at = 0
        with memoryview(buffer) as view:
            while len(view) - at >= self._wanted:
                end = at + _HEADER + int.from_bytes(view[at : at + _HEADER], "big")
                if end > len(view):
                    self._wanted = end - at
                    break
                frame = _DECODER.decode(view[at + _HEADER : end])
                if not isinstance(frame, list) or len(frame) != 3 or type(frame[0]) is not int:
                    raise ValueError("a link of processes carried something that is no frame")
                frames.append(frame)
                at = end
                self._wanted = _HEADER
        del buffer[:at]
        return frames


class Link(asyncio.Protocol):
    """One end of the socket between two processes.

    :param handlers: what the other side may call, by name.
    :param on_lost: called once when the other side is gone.
    :param prompt: handlers, by name, that are begun as soon as a call is there, before any task is
        made for it; they must not ask for the current task, as time limits of asyncio do.
    """

    #: Whether the other side stores what it accumulates; only members do.
    stores = False

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        on_lost: Callable[[], None],
        prompt: Collection[str] = (),
    ) -> None:
        self._handlers = {"beat": _nothing, **handlers}
        self._on_lost = on_lost
        self._prompt = frozenset(prompt)
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._last = 0
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost = False
        #: How many beats of this side's own it was not heard: who was paused counts none of them.
        self.silence = 0
        self._out: list[bytes] = []

    def serve(self, **handlers: Handler) -> None:
        """Add handlers that the other side may call."""
        self._handlers.update(handlers)

    async def call(self, name: str, *arguments: Any) -> Any:
        """Call a handler of the other side.

        :raises StatusError: what it failed with; UNAVAILABLE if the other side is gone.
        """
        if self._lost:
            raise _gone()
        self._last = number = self._last + 1
        answer = self._calls[number] = self._loop.create_future()
        try:
            self._send(number, name, arguments)
            return await answer
        finally:
            del self._calls[number]

    def tell(self, name: str, *arguments: Any) -> None:
        """Call a handler without waiting for an answer; does nothing if the other side is gone."""
        if not self._lost:
            self._send(0, name, arguments)

    async def watch(self, beat: float, patience: float, on_silence: Callable[[], None]) -> None:
        """Say to the other side that this one lives, and watch whether that one does.

        :param beat: how often, in seconds.
        :param patience: for how many seconds without a word; then *on_silence* is called, and again
            after as many more.
        """
        while not self._lost:
            await asyncio.sleep(beat)
            self.tell("beat")
            self.silence += 1
            if self.silence * beat > patience:
                self.silence = 0
                on_silence()

    def give_up(self) -> None:
        """Fail the calls that wait for an answer; others may be made."""
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(_gone())

    def close(self) -> None:
        """Close the socket; calls of the other side that are in progress are cancelled."""
        for task in self._tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take answers, and begin to answer calls."""
        self.silence = 0
        try:
            frames = self._reader.feed(data)
        except ValueError:  # also what MessagePack raises
            logger.exception("a link between processes of the server is broken")
            assert self._transport is not None  # it gave the data
            self._transport.abort()
            return
        for number, head, payload in frames:
            if number < 0:
                self._take(-number, head, payload)
                continue
            work = self._serve(number, head, payload)
            if head in self._prompt:
                try:
                    waits_for = work.send(None)
                except StopIteration:
                    continue  # most calls wait for nothing: a task would cost more than they do
                work = _go_on(work, waits_for)
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the calls that wait for an answer."""
        self._lost = True
        self._on_lost()
        self.give_up()

    # Inside.

    def _send(self, number: int, head: Any, payload: Any) -> None:
        frame = encode_frame(number, head, payload)
        # What is said in one turn of the loop goes out in one write.
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame)

    def _flush(self) -> None:
        frames, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def _take(self, number: int, error: Any, result: Any) -> None:
        answer = self._calls.get(number)
        if answer is None or answer.done():
            return  # whoever asked has gone
        if error is None:
            answer.set_result(result)
        else:
            code, message, http = error
            answer.set_exception(StatusError(Code(code), message, http=http))

    async def _serve(self, number: int, name: str, arguments: list[Any]) -> None:
        error: Any = None
        result: Any = None
        try:
            result = await self._handlers[name](*arguments)
        except StatusError as refusal:
            error = (int(refusal.code), refusal.message, refusal.http)
        except plugin_errors(awaited=True):
            logger.exception("the call %r of another process of the server failed", name)
            message = "another process of the server failed; its log says why"
            error = (int(Code.INTERNAL), message, None)
        if number and not self._lost:
            self._send(-number, error, result)


async def _go_on(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    """Run the rest of a coroutine that was begun and waits for something."""
    # From Python 3.12 on a task takes nothing but a real coroutine.
    await _rest(work, waits_for)


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Yield what a coroutine that was begun waits for, until it ends."""
    try:
        while True:
            try:
                value = yield waits_for
            except BaseException as error:
                waits_for = work.throw(error)
            else:
                waits_for = work.send(value)
    except StopIteration:
        return


async def _nothing() -> None:
    """Do nothing: that something came is all that there is to know."""


def _gone() -> StatusError:
    return StatusError(Code.UNAVAILABLE, "a process of the server has ended; ask again")


def _plain(value: Any) -> Any:
    """Return something of the configuration as MessagePack carries it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be sent to another process of the server")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder()
