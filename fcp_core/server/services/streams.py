"""What other members accumulate and store of one task, and how its owner takes that in.

A member that receives uploads for an owner accumulates them as the owner would, and writes shards
of its own: a *stream*. It says of each contribution that it is stored, and the owner counts it.
What is in a stream is the owner's to read: when the task ends, when the member stops, or when it is
heard of no more. The storage then takes nothing more of that stream, and what it has of it decides
about the contributions whose answer was lost. So it does not matter where the member, or the link
to it, was when it broke.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from enum import Enum
from typing import Any, Protocol

from fcp_core.aggregation.engine import FoldJob, HeldBody
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import Machine

#: What a member answers whose stream takes nothing more, whatever came of the contribution.
OVER = 410


class Helper(Protocol):
    """A member, as long as one link to it lasts.

    :ivar gone: set once that has ended.
    :ivar streams: what it writes for this member.
    """

    gone: asyncio.Event
    streams: set[Stream]

    def begin_stream(self, task_id: str, name: str, population: str, job: FoldJob) -> str:
        """Have it begin a stream of a task; return the name that no other stream of it has."""
        ...

    def tell(self, name: str, *arguments: Any) -> None:
        """Call it and do not wait."""
        ...


class StreamState(Enum):
    """Where a stream stands."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


MOVES: dict[StreamState, tuple[StreamState, ...]] = {
    # Nothing new goes in; what is on its way is waited for, if its member is there.
    StreamState.OPEN: (StreamState.CLOSING,),
    # The storage takes nothing more of it, and this member has what is in it.
    StreamState.CLOSING: (StreamState.CLOSED,),
    StreamState.CLOSED: (),
}


class Stream(Machine[StreamState]):
    """What one member writes of one task.

    :param name: no other stream of the task has it, ever.
    :param owner: has all streams of the task.
    """

    MOVES = MOVES

    def __init__(self, helper: Helper, name: str, owner: Streams) -> None:
        super().__init__(StreamState.OPEN)
        self.helper, self.name, self._owner = helper, name, owner
        #: The contributions that are on their way into it.
        self._adding: set[str] = set()
        #: Those of which the member has said that they are stored.
        self._stored: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._ending: asyncio.Task[frozenset[str]] | None = None
        helper.streams.add(self)

    async def add(self, contribution: str, body: HeldBody, counts: Sequence[int]) -> None:
        """Have the member accumulate and store what it holds.

        :param counts: the numbers of devices that were dropped and that came too late.
        :raises StatusError: if it is not stored.
        """
        self._adding.add(contribution)
        self._idle.clear()
        try:
            await body.contribute(self.name, contribution, counts)
        except StatusError as error:
            if self._is_refusal(error):
                raise
        else:
            self._stored.add(contribution)
            return
        finally:
            self._adding.discard(contribution)
            if not self._adding:
                self._idle.set()
        if contribution not in await asyncio.shield(self.end()):
            raise StatusError(
                Code.ABORTED, "the member of the server that had this contribution has ended"
            )

    def _is_refusal(self, error: StatusError) -> bool:
        """Whether a member says that a contribution does not do, and all goes on."""
        there = self._state is StreamState.OPEN and not self.helper.gone.is_set()
        return there and error.http != OVER

    def hear(self, what: str, *arguments: Any) -> None:
        """Take what its member tells of it.

        :param what: ``folded`` or ``committed``.
        """
        self._owner.hear(what, *arguments)

    def end(self) -> asyncio.Task[frozenset[str]]:
        """Close it, and take in what was stored of it; its result is the ids of that."""
        if self._ending is None:
            self.move(StreamState.CLOSING)
            self._owner.leave(self)
            self._ending = asyncio.get_running_loop().create_task(self._end())
            # Perhaps nobody waits for it; the owner hears of an error in any case.
            self._ending.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._ending

    async def _end(self) -> frozenset[str]:
        gone = asyncio.ensure_future(self.helper.gone.wait())
        idle = asyncio.ensure_future(self._idle.wait())
        try:
            await asyncio.wait((gone, idle), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            idle.cancel()
        stored = await self._owner.take(self.name, self._stored)
        self.move(StreamState.CLOSED)
        self._owner.closed(self)
        self._drop()
        return stored

    def abort(self) -> None:
        """Let go of it, whatever is in it."""
        if self._ending is not None:
            self._ending.cancel()
        self._drop()

    def _drop(self) -> None:
        self.helper.streams.discard(self)
        self.helper.tell("drop_stream", self.name)

    async def settled(self) -> None:
        """Wait until nothing is on its way into it."""
        await self._idle.wait()
        if self._ending is not None:
            await asyncio.wait((self._ending,))


class Streams:
    """All streams of one task.

    :param begin: has a member begin one; returns its name.
    :param take: closes one in the storage, takes in what is in it, and returns the ids of those
        contributions; it is given the ids of those that must be there.
    :param heard: what is called with what members tell: ``folded``, with the ids of contributions
        whose bytes are not needed any more; ``committed``, after each write.
    """

    def __init__(
        self,
        begin: Callable[[Any], str],
        take: Callable[[str, Set[str]], Awaitable[frozenset[str]]],
        heard: Mapping[str, Callable[..., None]],
    ) -> None:
        self._begin, self.take, self._heard = begin, take, heard
        self._open: dict[Helper, Stream] = {}
        self._closing: dict[Stream, None] = {}

    @property
    def names(self) -> list[str]:
        """The names of those that are not closed."""
        return [stream.name for stream in (*self._open.values(), *self._closing)]

    async def add(self, contribution: str, body: HeldBody, counts: Sequence[int]) -> None:
        """Have whoever holds a contribution accumulate and store it.

        :raises StatusError: if it is not stored.
        """
        helper = body.helper
        stream = self._open.get(helper)
        if stream is None:
            stream = self._open[helper] = Stream(helper, self._begin(helper), self)
        await stream.add(contribution, body, counts)

    def hear(self, what: str, *arguments: Any) -> None:
        """Take what a member tells."""
        self._heard[what](*arguments)

    def leave(self, stream: Stream) -> None:
        """Note that a stream takes nothing more: the next contribution begins another."""
        self._open.pop(stream.helper, None)
        self._closing[stream] = None

    def closed(self, stream: Stream) -> None:
        """Forget a stream that was taken in."""
        self._closing.pop(stream, None)

    async def end(self) -> None:
        """Close all, and take in what is in them.

        :raises StatusError: if that cannot be done.
        """
        for stream in list(self._open.values()):
            stream.end()
        await asyncio.gather(*(asyncio.shield(stream.end()) for stream in [*self._closing]))

    async def settled(self) -> None:
        """Wait until nothing is on its way into any."""
        for stream in (*self._open.values(), *self._closing):
            await stream.settled()

    def abort(self) -> None:
        """Let go of all. What is stored stays."""
        streams = (*self._open.values(), *self._closing)
        self._open.clear()
        self._closing.clear()
        for stream in streams:
            stream.abort()
