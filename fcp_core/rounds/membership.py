"""Which populations a member owns: its leases, as far as it knows of them.

All that is known comes from transactions of the storage, which may come late or not at all. A lease
counts here from when the transaction was *begun*, by a clock of this host that nobody sets, and a
little less long than in the storage: so a member that cannot renew it stops to act before another
one can take the population, however long it was paused in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from fcp_core.rounds.machine import Machine

#: Which part of a lease a member does not use: clocks do not all run at the same speed.
MARGIN = 0.1
#: How often a member shows that it lives, and renews, in a lease's time.
BEATS = 3.0


class Holding(Enum):
    """Where a lease stands, as its holder knows."""

    #: It is the member's, and what the one before left in the storage is being read.
    TAKING = "taking"
    HELD = "held"
    #: It could not be renewed in time: nobody may act, and somebody else may have it by now.
    SUSPENDED = "suspended"
    #: What is in progress comes to an end; then it is given back.
    GIVING = "giving"
    ENDED = "ended"


class Lease(Machine[Holding]):
    """One population in the hands of one member, from the taking to the end.

    :param until: when it may not act any more, by the clock of the host.
    :ivar closed: whether nothing is answered for it any more, since it is about to be given back.
    :ivar released: whether nothing of it is in progress, so that it can be given back.
    """

    __slots__ = ("closed", "epoch", "population", "released", "until")

    MOVES: ClassVar[Mapping[Holding, Sequence[Holding]]] = {
        Holding.TAKING: (Holding.HELD, Holding.ENDED),
        Holding.HELD: (Holding.SUSPENDED, Holding.GIVING, Holding.ENDED),
        Holding.SUSPENDED: (Holding.HELD, Holding.GIVING, Holding.ENDED),
        Holding.GIVING: (Holding.ENDED,),
        Holding.ENDED: (),
    }

    def __init__(self, population: str, epoch: int, until: float) -> None:
        super().__init__(Holding.TAKING)
        self.population = population
        self.epoch = epoch
        self.until = until
        self.closed = self.released = False

    def acts(self, now: float) -> bool:
        """Whether the member may assign, accumulate and answer for the population."""
        open_ = not (self.closed or self.released)
        return open_ and self.state in (Holding.HELD, Holding.GIVING) and now < self.until

    def __repr__(self) -> str:
        return f"Lease({self.population!r}, epoch {self.epoch})"


@dataclass(frozen=True)
class Take:
    """Read what the storage holds of a population, and act for it."""

    lease: Lease


@dataclass(frozen=True)
class Drop:
    """Forget a population without another word: somebody else owns it."""

    lease: Lease


@dataclass(frozen=True)
class Suspend:
    """Do nothing for a population for now: its lease could not be renewed in time."""

    lease: Lease


@dataclass(frozen=True)
class Resume:
    """Go on with a population: nobody took it meanwhile."""

    lease: Lease


Change = Take | Drop | Suspend | Resume


class Membership:
    """The leases of one member.

    :param seconds: how long a lease lasts.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._leases: dict[str, Lease] = {}

    def __iter__(self) -> Iterator[Lease]:
        """Iterate over the leases that have not ended."""
        return iter(list(self._leases.values()))

    def get(self, population: str) -> Lease | None:
        """Return the lease of a population, or None."""
        return self._leases.get(population)

    def acts(self, population: str, now: float) -> bool:
        """Whether the member may act for a population."""
        lease = self._leases.get(population)
        return lease is not None and lease.acts(now)

    def held(self) -> dict[str, int]:
        """Return the epochs of the leases to be renewed."""
        return {lease.population: lease.epoch for lease in self if not lease.released}

    def given(self) -> dict[str, int]:
        """Return the epochs of the leases to be given back."""
        return {lease.population: lease.epoch for lease in self if lease.released}

    def found(self, asked: float, mine: Mapping[str, int]) -> list[Change]:
        """Take what a transaction found.

        :param asked: when it was begun, by the clock of the host.
        :param mine: the epochs of all populations that are this member's now.
        :returns: what is to be done, in order.
        """
        until = asked + self.seconds * (1 - MARGIN)
        changes: list[Change] = []
        for lease in self:
            if mine.get(lease.population) == lease.epoch:
                lease.until = max(lease.until, until)
                if lease.state is Holding.SUSPENDED:
                    lease.move(Holding.HELD)
                    changes.append(Resume(lease))
                continue
            lease.move(Holding.ENDED)
            del self._leases[lease.population]
            if not lease.released:
                changes.append(Drop(lease))
        for population, epoch in mine.items():
            if population not in self._leases:
                lease = self._leases[population] = Lease(population, epoch, until)
                changes.append(Take(lease))
        return changes

    def taken(self, lease: Lease) -> None:
        """Act for a population from now on: what the storage holds of it was read."""
        if lease.state is Holding.TAKING:
            lease.move(Holding.HELD)

    def give(self, lease: Lease) -> None:
        """Begin to give a population back; it is once the lease is ``released``."""
        if lease.state in (Holding.HELD, Holding.SUSPENDED):
            lease.move(Holding.GIVING)

    def tick(self, now: float) -> list[Change]:
        """Suspend what was not renewed in time."""
        changes: list[Change] = []
        for lease in self:
            if lease.state is Holding.HELD and now >= lease.until:
                lease.move(Holding.SUSPENDED)
                changes.append(Suspend(lease))
        return changes

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        held = [lease.until for lease in self if lease.state is Holding.HELD]
        return min(held, default=None)


def preferred(population: str, members: Iterable[str]) -> str | None:
    """Return which of some members is to own a population: by rendezvous hashing.

    All members come to the same answer, and one that comes or goes changes as few as can be.
    """

    def weight(member: str) -> bytes:
        return hashlib.sha256(f"{member}\0{population}".encode()).digest()

    return max(members, key=weight, default=None)
