"""Where a population is owned, as far as this process knows."""

from __future__ import annotations

import hashlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from fcp_core.admin.messages import Lease, Member, MemberList
from fcp_core.rounds.keys import DeploymentKeys
from fcp_core.rounds.machine import Clock
from fcp_core.rounds.membership import Holding, preferred
from fcp_core.rounds.membership import Lease as Holder
from fcp_core.rounds.token_parts import MARK_BYTES, TokenSource, mark_of, uuid_bytes
from fcp_core.storage.leases import View, patience
from fcp_core.storage.records import MemberRecord


class Owner(NamedTuple):
    """The owner of a population.

    :param population: its name.
    :param url: where the owner is called by other members; ``""``: it is this server.
    :param until: when that is not known any more, in seconds.
    :param giving: whether it gives the population back: what begins then is for the next owner.
    """

    population: str
    url: str
    until: float
    giving: bool = False


@dataclass
class RoutingTable:
    """Who owns what, as it was read last.

    :param owners: by the mark of the population; those that nobody owns at the moment are missing.
    :param known: the marks of all populations, owned or not, with their names.
    :param members: where the members that live are called, by id; this one is missing.
    :param secrets: what members sign the calls with that they pass on, the oldest first: that one
        signs, and any of them is good, so that keys can be rotated one member after another.
    :param seen: when the storage was asked for all this, by the clock of this host: what came to
        exist later is not in it.
    """

    me: str = ""
    owners: Mapping[bytes, Owner] = field(default_factory=dict)
    known: Mapping[bytes, str] = field(default_factory=dict)
    members: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[bytes, ...] = ()
    seen: float = float("-inf")

    def made_of(
        self,
        view: View,
        seen: float,
        seconds: float,
        offered: Iterable[str],
        leases: Iterable[Holder],
    ) -> RoutingTable:
        """Return the table anew.

        :param view: what the storage had.
        :param seen: when that was, by the clock of this host.
        :param seconds: how long a lease lasts.
        :param offered: populations that exist though nobody has a task for them yet.
        :param leases: this server's own.
        """
        owners: dict[bytes, Owner] = {}
        for name, lease in view.leases.items():
            holder = view.members.get(lease.holder)
            if holder is not None and lease.holder != self.me:
                until = seen + (lease.expires - view.now)
                owners[mark_of(name)] = Owner(name, holder.member_url, until)
        for mine in leases:
            if mine.state in (Holding.HELD, Holding.GIVING) and not mine.closed:
                giving = mine.state is Holding.GIVING
                owners[mark_of(mine.population)] = Owner(mine.population, "", mine.until, giving)
        members = {
            member.member_id: member.member_url
            for member in view.members.values()
            if member.member_id != self.me and not member.draining and lives(member, view, seconds)
        }
        known = {mark_of(name): name for name in (*offered, *view.leases)}
        return replace(self, owners=owners, known=known, members=members, seen=seen)

    def dump(self, now: float) -> dict[str, Any]:
        """Return the table as another process of this server reads it."""
        return {
            "me": self.me,
            "owners": [
                (mark, owner.population, owner.url, owner.until - now, owner.giving)
                for mark, owner in self.owners.items()
            ],
            "known": list(self.known.items()),
            "members": dict(self.members),
            "secrets": list(self.secrets),
            "seen": self.seen - now,
        }

    @classmethod
    def load(cls, dump: Mapping[str, Any], now: float) -> RoutingTable:
        """Return the table that another process dumped a moment ago."""
        owners = {
            mark: Owner(name, url, now + left, giving)
            for mark, name, url, left, giving in dump["owners"]
        }
        secrets, seen = tuple(dump["secrets"]), now + dump["seen"]
        return cls(dump["me"], owners, dict(dump["known"]), dump["members"], secrets, seen)

    def owner(self, mark: bytes, clock: Clock) -> Owner | None:
        """Return the owner of a population, or None if there is none at the moment."""
        owner = self.owners.get(mark)
        return owner if owner is not None and clock.now() < owner.until else None

    def settled(self, clock: Clock) -> bool:
        """Whether each population has an owner at the moment."""
        return all(self.owner(mark, clock) is not None for mark in self.known)

    def agrees(self, other: RoutingTable) -> bool:
        """Whether populations have the same owners in another table."""
        return {mark: owner.url for mark, owner in self.owners.items()} == {
            mark: owner.url for mark, owner in other.owners.items()
        }

    def population_of(self, task_id: str) -> str | None:
        """Return a task's population, if it is known."""
        return self.known.get(uuid_bytes(task_id)[:MARK_BYTES])

    def chosen(self, population: str) -> str:
        """Return where the member is called that is to take a new population; ``""``: here."""
        return self.members.get(preferred(population, [self.me, *self.members]) or "", "")

    def holders(self) -> list[str]:
        """Return where the other members are called that own a population, or may."""
        urls = dict.fromkeys(self.members.values())
        urls.update(dict.fromkeys(owner.url for owner in self.owners.values() if owner.url))
        return list(urls)

    def exists(self, mark: bytes, since: float) -> bool:
        """Whether a population exists, or may: only the storage knows that it does not.

        :param since: when somebody came and asked for it; what was read before does not tell.
        """
        return mark in self.known or self.seen < since

    def candidates(self, mark: bytes) -> list[str]:
        """Return where the members are called that may own a population that nobody seems to own.

        :returns: who is to take it comes first, if that is known, and ``""`` is this server.
        """
        population = self.known.get(mark)
        first = () if population is None else (self.chosen(population),)
        return list(dict.fromkeys((*first, *self.members.values())))


class Routes(Protocol):
    """What knows the table, and reads it anew.

    :ivar seconds: how long a lease lasts.
    :ivar clock: what the times in the table are times of.
    """

    table: RoutingTable
    seconds: float
    clock: Clock

    async def look(self) -> None:
        """Have the storage asked who owns what, and wait for the answer."""
        ...


def lives(member: MemberRecord, view: View, seconds: float) -> bool:
    """Whether a member has shown that it lives within the time of a lease."""
    return view.now - member.heartbeat < patience(member, seconds)


def secrets_of(keys: DeploymentKeys) -> list[bytes]:
    """Return what members sign calls with that they pass on; see :class:`RoutingTable`."""
    ids = reversed(keys.keyring.ids)
    return [keys.keyring.keys[key].sign(b"fcp member\0" + keys.deployment) for key in ids]


def fingerprint(keys: DeploymentKeys) -> str:
    """Return what tells keys apart, and nothing about them: of each, the oldest first."""
    return " ".join(
        hashlib.sha256(b"fcp fingerprint\0" + secret).hexdigest()[:12]
        for secret in secrets_of(keys)
    )


def agree(one: str, other: str) -> bool:
    """Whether two members have a key in common, given their fingerprints."""
    return bool({*one.split()} & {*other.split()})


def this_member(
    url: str, member_url: str, keys: DeploymentKeys, source: TokenSource
) -> MemberRecord:
    """Return the record of a member that begins; its id comes from *source*."""
    return MemberRecord(
        member_id=source.bytes(8).hex(),
        url=url,
        member_url=member_url,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=0.0,
        heartbeat=0.0,
        keys=fingerprint(keys),
    )


def listed(view: View, seconds: float) -> MemberList:
    """Return what an operator is shown, with leases of so many seconds."""
    owns = Counter(lease.holder for lease in view.leases.values())
    members = [
        Member(
            member_id=member.member_id,
            host=member.host,
            pid=member.pid,
            url=member.url,
            member_url=member.member_url,
            started=member.started,
            behind=max(0.0, view.now - member.heartbeat),
            draining=member.draining,
            lives=lives(member, view, seconds),
            owns=owns[member.member_id],
        )
        for member in sorted(view.members.values(), key=lambda member: member.started)
    ]
    leases = []
    for name, lease in sorted(view.leases.items()):
        holder = view.members.get(lease.holder)
        leases.append(
            Lease(
                population=name,
                member_id=lease.holder,
                host="" if holder is None else holder.host,
                pid=0 if holder is None else holder.pid,
                epoch=lease.epoch,
                since=lease.since,
                left=max(0.0, lease.expires - view.now),
            )
        )
    return MemberList(members, leases)


def alone(url: str, started: float, populations: Sequence[str]) -> MemberList:
    """Return the same of a server that shares its storage with no other."""
    host, pid = socket.gethostname(), os.getpid()
    me = Member(
        member_id="",
        host=host,
        pid=pid,
        url=url,
        member_url="",
        started=started,
        behind=0.0,
        draining=False,
        lives=True,
        owns=len(populations),
    )
    leases = [
        Lease(population=name, member_id="", host=host, pid=pid, epoch=0, since=started, left=0.0)
        for name in sorted(populations)
    ]
    return MemberList([me], leases)
