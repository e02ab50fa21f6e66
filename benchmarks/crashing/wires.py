"""The connections between members: bytes arrive in order and late, and any may be the last."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from benchmarks.crashing.virtual import MEMBER, LostError
from fcp_core.aggregation.engine import Engine
from fcp_core.aggregation.local import LocalEngine
from fcp_core.protocol.status import StatusError
from fcp_core.server.processes.link import Link
from fcp_core.server.processes.linked_media import LinkedMedia
from fcp_core.server.processes.member_links import MemberLinks
from fcp_core.server.processes.placing import Placing
from fcp_core.server.processes.process_engine import ProcessEngine
from fcp_core.server.services.media import Media

if TYPE_CHECKING:
    from benchmarks.crashing.member import Member
    from fcp_core.server.services import Services

#: How long a message is under way at most, and how long an end does not hear that the other one is
#: gone, in virtual seconds.
DELAY, LATE = 0.01, 8.0


class _End:
    """One end: what a link writes to."""

    def __init__(self, wire: Wire, member: Member, link: Link) -> None:
        self._wire, self.member, self.link = wire, member, link
        self.context = copy_context()
        self.context.run(MEMBER.set, member)
        self.other: _End
        #: When the last message arrives here.
        self.last = 0.0
        self.closed = self.lost = False

    def write(self, data: bytes) -> None:
        """Send."""
        if not self.closed:
            self._wire.send(self, data)

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self.closed

    def close(self) -> None:
        """Close the connection: what was sent arrives."""
        self._wire.hang_up(self)

    abort = close


class Wire:
    """A connection between two members."""

    def __init__(self, wires: Wires, here: Member, link: Link, there: Member, other: Link) -> None:
        self._wires = wires
        self.ends = (_End(self, here, link), _End(self, there, other))
        for end, another in (self.ends, self.ends[::-1]):
            end.other = another
            end.context.run(end.link.connection_made, end)  # type: ignore[arg-type]
        #: After how many messages it breaks; None: it does not.
        self.left: int | None = None
        self.broken = False

    @property
    def members(self) -> set[int]:
        """The numbers of the two members."""
        return {end.member.number for end in self.ends}

    def send(self, end: _End, data: bytes) -> None:
        """Carry a message to the other end, unless it is lost."""
        if self.broken or end.member.dead.done():
            return
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.sever()
                return
        self._later(end.other, lambda: self._arrive(end.other, data))

    def sever(self) -> None:
        """Break: what is under way is lost, and each end hears of it at some time."""
        if not self.broken:
            self.broken = True
            self._wires.effects["link broken"] += 1
            for end in self.ends:
                late = self._wires.rng.uniform(0.0, LATE)
                self._wires.loop.call_later(late, self._lost, end, context=end.context.copy())

    def hang_up(self, end: _End) -> None:
        """Close one end; the other one hears of it after all that was sent."""
        if end.closed:
            return
        end.closed = True
        self._wires.loop.call_soon(self._lost, end, context=end.context.copy())
        if not self.broken:
            self._later(end.other, lambda: self._lost(end.other))

    def _later(self, end: _End, work: Callable[[], None]) -> None:
        loop = self._wires.loop
        end.last = max(end.last + 1e-6, loop.time() + self._wires.rng.uniform(0.0005, DELAY))
        loop.call_at(end.last, work, context=end.context.copy())

    def _arrive(self, end: _End, data: bytes) -> None:
        if not (self.broken or end.closed or end.lost or end.member.dead.done()):
            end.link.data_received(data)

    def _lost(self, end: _End) -> None:
        end.closed = True
        if not end.lost:
            end.lost = True
            self._wires.forget(self)
            if not end.member.dead.done():
                end.link.connection_lost(None)


class Wires:
    """All connections, and what is wrong with them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random, effects: Any) -> None:
        self.loop, self.rng, self.effects = loop, rng, effects
        self._open: list[Wire] = []
        #: Until when two members cannot connect.
        self._cut: dict[frozenset[int], float] = {}

    async def dial(self, here: Member, link: Link, there: Member | None) -> None:
        """Connect two members.

        :raises OSError: if that cannot be.
        """
        await asyncio.sleep(self.rng.uniform(0.001, 0.05))
        if there is None or there.links is None or not there.ready:
            raise ConnectionError
        if self._cut.get(frozenset((here.number, there.number)), 0.0) > self.loop.time():
            raise ConnectionError
        try:
            other = await there.call(lambda: there.links.accept(here.services.members.member_id))
        except (StatusError, LostError):
            raise ConnectionError from None
        wire = Wire(self, here, link, there, other.link)
        self._open.append(wire)
        wire.ends[1].context.run(there.links.joined, other)

    def break_soon(self, number: int, other: int, after: int, seconds: float) -> None:
        """Have the connection of two members break after so many messages, and stay away."""
        pair = {number, other}
        self._cut[frozenset(pair)] = self.loop.time() + seconds
        for wire in self._open:
            if wire.members == pair:
                wire.left = after

    def dies(self, member: Member) -> None:
        """Break all connections of a member, as the others see it."""
        for wire in [*self._open]:
            for end in wire.ends:
                if end.member is member:
                    wire.hang_up(end)

    def forget(self, wire: Wire) -> None:
        """Forget a connection that has ended."""
        if wire in self._open:
            self._open.remove(wire)


def engine_of(aggregators: Any, *, shared: bool) -> Engine:
    """Return the engine of a member, which folds where it is called."""
    local = LocalEngine(aggregators, workers=0)
    return ProcessEngine(local, 1) if shared else local


def links_of(member: Member, services: Services, engine: Engine) -> MemberLinks:
    """Return the links of a member, and have its uploads go over them."""
    media, members = services.media, services.members
    assert members is not None
    assert isinstance(engine, ProcessEngine)
    assert isinstance(media, Media)

    links = MemberLinks(members, engine, services.store, media, member.url, Placing(), media.freed)
    services.media = LinkedMedia(media, members, links)
    return links
