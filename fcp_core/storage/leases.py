"""Leases in storage: the transactions with which members take, renew and give back populations.

Time is the storage's own, so that no two members' clocks are ever compared. Whatever a member
writes of a population it writes together with :func:`check`: a member that was paused, or cut off,
while another one took the population over cannot change anything any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.membership import preferred
from fcp_core.storage.contract import Transaction
from fcp_core.storage.records import LeaseRecord, MemberRecord

#: After how many lease times without a sign of life a member is forgotten.
FORGOTTEN = 10.0


class LeaseLostError(StatusError):
    """Another member owns the population by now: nothing was written.

    :param population: its name.
    :param epoch: of the lease that the writer had.
    """

    def __init__(self, population: str, epoch: int) -> None:
        super().__init__(
            Code.ABORTED, f"another member of the server has taken the population {population} over"
        )
        self.population = population
        self.epoch = epoch

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from another process."""
        return (LeaseLostError, (self.population, self.epoch))


def check(tx: Transaction, population: str, epoch: int) -> None:
    """Check, in the transaction that writes, that a population is still the writer's.

    :param epoch: of the writer's lease; 0 where there are no leases, since the storage has one
        server.
    :raises LeaseLostError: if another member has taken it since.
    """
    if epoch == 0:
        return
    lease = tx.get(LeaseRecord, population)
    if lease is None or lease.epoch != epoch:
        raise LeaseLostError(population, epoch)


@dataclass(frozen=True)
class Beat:
    """What a member does in one transaction.

    :param member: its record; the times in it are the storage's.
    :param seconds: how long a lease lasts.
    :param held: the epochs of the populations that it owns.
    :param wanted: populations that it takes if nobody owns them, whoever is preferred.
    :param offered: populations that whoever is preferred takes if nobody owns them.
    :param given: the epochs of those that it gives back.
    """

    member: MemberRecord
    seconds: float
    held: Mapping[str, int] = field(default_factory=dict)
    wanted: Sequence[str] = ()
    offered: Sequence[str] = ()
    given: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """What a transaction found, with what it changed.

    :param now: by the storage's clock.
    :param members: all that are not forgotten, this one among them, by id.
    :param leases: by population.
    """

    now: float
    members: Mapping[str, MemberRecord]
    leases: Mapping[str, LeaseRecord]


def beat(tx: Transaction, work: Beat) -> View:
    """Show that a member lives; renew, give back and take what it can. May run twice."""
    now = tx.now()
    known = tx.get(MemberRecord, work.member.member_id)
    started = now if known is None else known.started
    me = replace(work.member, started=started, heartbeat=now, lease_seconds=work.seconds)
    tx.put(me)
    members = {me.member_id: me}
    for member in list(tx.select(MemberRecord)):
        if member.member_id == me.member_id:
            continue
        if now - member.heartbeat > FORGOTTEN * patience(member, work.seconds):
            tx.delete(MemberRecord, member.member_id)
            continue
        if member.heartbeat > now:
            # The storage's clock was set back: what is in the future counts from now on.
            member = replace(member, heartbeat=now)
            tx.put(member)
        members[member.member_id] = member
    living = [
        member.member_id
        for member in members.values()
        if not member.draining and now - member.heartbeat < patience(member, work.seconds)
    ]
    leases = {lease.population: lease for lease in tx.select(LeaseRecord)}
    for population in {**leases, **dict.fromkeys((*work.wanted, *work.offered))}:
        lease = leases.get(population)
        holder = None if lease is None else members.get(lease.holder)
        longest = now + (work.seconds if holder is None else patience(holder, work.seconds))
        if lease is not None and lease.expires > longest:
            # So is this one: a holder that lives renews it long before.
            lease = replace(lease, expires=longest)
            tx.put(lease)
            leases[population] = lease
        able = [name for name in living if population not in members[name].unable]
        changed = _next(population, lease, work, able, now)
        if changed is not None:
            tx.put(changed)
            leases[population] = changed
    return View(now, members, leases)


def is_owned(view: View, population: str, seconds: float) -> bool:
    """Return whether a population has an owner, or had one less than a lease's time ago."""
    lease = view.leases.get(population)
    return lease is not None and view.now - lease.expires < seconds


def patience(member: MemberRecord, seconds: float) -> float:
    """Return how long a member may give no sign of life, in seconds.

    :param seconds: how long a lease lasts for the one who asks. While ``lease_seconds`` is changed,
        one member after another, it is less than what another one still keeps to.
    """
    return max(seconds, member.lease_seconds)


def leave(tx: Transaction, member_id: str, given: Mapping[str, int]) -> None:
    """Give everything back and go. May run twice."""
    for population, epoch in given.items():
        lease = tx.get(LeaseRecord, population)
        if lease is not None and (lease.holder, lease.epoch) == (member_id, epoch):
            tx.put(replace(lease, holder="", expires=tx.now()))
    tx.delete(MemberRecord, member_id)


def _next(
    population: str, lease: LeaseRecord | None, work: Beat, living: Sequence[str], now: float
) -> LeaseRecord | None:
    """Return what becomes of a lease; None: it stays."""
    me = work.member.member_id
    if lease is not None and lease.holder == me:
        if work.given.get(population) == lease.epoch:
            return replace(lease, holder="", expires=now)
        if work.held.get(population) == lease.epoch:
            # One that has run out and that nobody took is as good as before.
            return replace(lease, expires=now + work.seconds)
    elif lease is not None and lease.holder and now < lease.expires:
        return None
    wanted = population in work.wanted or preferred(population, living) == me
    if wanted and not work.member.draining:
        epoch = 1 if lease is None else lease.epoch + 1
        return LeaseRecord(population, me, epoch, now + work.seconds, now)
    if lease is not None and lease.holder == me:
        # It was taken in a transaction whose answer was lost.
        return replace(lease, holder="", expires=now)
    return None


def read(tx: Transaction) -> View:
    """Return who is there and who owns what."""
    members = {member.member_id: member for member in tx.select(MemberRecord)}
    leases = {lease.population: lease for lease in tx.select(LeaseRecord)}
    return View(tx.now(), members, leases)
