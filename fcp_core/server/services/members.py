"""One member among those that share a storage: it shows that it lives, and keeps its leases.

The machine in ``rounds.membership`` says what changes; here is the loop that asks the storage, and
has populations taken and left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fcp_core.admin.messages import MemberList
from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import Clock, follow
from fcp_core.rounds.membership import (
    BEATS,
    Drop,
    Holding,
    Lease,
    Membership,
    Resume,
    Suspend,
    Take,
)
from fcp_core.rounds.token_parts import mark_of
from fcp_core.server.services.keeper import Keeper
from fcp_core.server.services.routing import RoutingTable, agree, listed, lives
from fcp_core.storage.contract import Storage, StorageError, Transaction
from fcp_core.storage.leases import Beat, View, beat, check, is_owned, leave, read
from fcp_core.storage.records import MemberRecord
from fcp_core.storage.shards import Fence

logger = logging.getLogger("fcp.services")

#: The shortest pause between two looks at the storage, in seconds.
PAUSE = 0.05
#: For how many lease times a population is held on to whose contributions are on their way.
SETTLING = 5.0
#: How often, in a lease's time, a storage is asked again that did not answer.
RETRIES = 12.0


class Members:
    """The part of one member.

    :param me: its record; the times in it are the storage's to set.
    :param seconds: how long a lease lasts.
    :param offered: populations that exist though nobody has a task for them yet.
    :param secrets: what members sign the calls with that they pass on; see ``RoutingTable``.
    :param clock: one whose steps move nothing.
    """

    def __init__(
        self,
        storage: Storage,
        me: MemberRecord,
        *,
        seconds: float,
        offered: Collection[str],
        secrets: Sequence[bytes],
        clock: Clock,
    ) -> None:
        self._storage, self._me, self._offered = storage, me, tuple(offered)
        self._keeper: Keeper
        self.seconds, self.clock = seconds, clock
        self._leases = Membership(seconds)
        #: The epochs that tasks were read under, by population.
        self.epochs: dict[str, int] = {}
        self._wanted: set[str] = set()
        self._busy: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._work: set[asyncio.Task[None]] = set()
        self._look = asyncio.Event()
        self._looked = asyncio.Condition()
        #: How many looks were begun, and the number of the last that has ended.
        self._begun = self._ended = 0
        self._loop: asyncio.Task[None] | None = None
        self._failing = False
        #: What was read last; None: nothing yet.
        self.view: View | None = None
        #: When that was, by the clock of this host.
        self.seen = float("-inf")
        self.table = RoutingTable(me=me.member_id, secrets=tuple(secrets))
        #: Called with a new table.
        self.on_change: list[Callable[[RoutingTable], None]] = []

    @property
    def member_id(self) -> str:
        """The member's id."""
        return self._me.member_id

    @property
    def in_touch(self) -> bool:
        """Whether the storage answered lately."""
        return self.behind < self.seconds

    @property
    def behind(self) -> float:
        """How long ago the storage was asked that answered last, in seconds."""
        return max(0.0, self.clock.now() - self.seen)

    async def read(self) -> MemberList:
        """Return who is there and who owns what, as the storage has it now.

        :raises StorageError: if it does not answer.
        """
        return listed(await self._storage.transact(read), self.seconds)

    @property
    def owned(self) -> list[str]:
        """The populations that this member acts for."""
        now = self.clock.now()
        return [lease.population for lease in self._leases if lease.acts(now)]

    def fence(self) -> Fence:
        """Return what checks, in a transaction that writes, that a population is this member's.

        It raises LeaseLostError if the population is another one's, or was since this call.
        """
        return partial(_check, dict(self.epochs))

    async def start(self, keeper: Keeper) -> None:
        """Join the others, and take what nobody owns.

        :param keeper: takes populations, and leaves them.
        :raises UsageError: if the others sign tokens with other keys.
        :raises StorageError: if the storage does not answer.
        """
        self._keeper = keeper
        await self._beat()
        assert self.view is not None  # it was read, or an error was raised
        for member in self.view.members.values():
            if not agree(member.keys, self._me.keys) and lives(member, self.view, self.seconds):
                await self._storage.transact(partial(leave, member_id=self.member_id, given={}))
                raise UsageError(
                    f"the server on {member.host} (process {member.pid}), which shares this "
                    f"storage, signs tokens with other keys ({member.keys}) than this one "
                    f"({self._me.keys}): give all of them one key file (token_keys_file), or "
                    "FCP_TOKEN_KEYS."
                )
        self._loop = asyncio.get_running_loop().create_task(self._run())
        await self.idle()

    async def stop(self) -> None:
        """Leave the others; what was not given back runs out."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            async with self._looked:
                self._looked.notify_all()  # nobody looks any more
        await self.idle()
        given = {}
        for lease in self._leases:
            await self._leave(lease, saved=self._leases.acts(lease.population, self.clock.now()))
            given[lease.population] = lease.epoch
        if self.view is not None:
            body = partial(leave, member_id=self.member_id, given=given)
            with contextlib.suppress(StorageError, asyncio.TimeoutError):
                await asyncio.wait_for(self._storage.transact(body), self.seconds)

    async def drain(self, timeout: float) -> None:
        """Give every population back, each as soon as no contribution is on its way to it.

        :param timeout: how long that may take; then it is given back all the same.
        """
        self._me = replace(self._me, draining=True)
        for lease in self._leases:
            self._leases.give(lease)
        self._publish()
        await asyncio.gather(*(self._give(lease, timeout) for lease in self._leases))

    async def look(self) -> None:
        """Have the storage asked who owns what, and wait for the answer."""
        wanted = self._begun + 1
        async with self._looked:
            self._look.set()
            await self._looked.wait_for(lambda: self._ended >= wanted or self._loop is None)

    async def claim(self, population: str) -> None:
        """Own a population that nobody owned so far.

        :raises StatusError: FAILED_PRECONDITION if another member owns it; UNAVAILABLE if that
            cannot be told, or this member stops.
        """
        for _ in range(2):
            if self._leases.acts(population, self.clock.now()):
                return
            self._wanted.add(population)
            try:
                await asyncio.wait_for(self.look(), self.seconds)
                await asyncio.wait_for(asyncio.shield(self.idle()), SETTLING * self.seconds)
            except asyncio.TimeoutError:
                break
            finally:
                self._wanted.discard(population)
        owner = self.table.owner(mark_of(population), self.clock)
        if self._leases.acts(population, self.clock.now()):
            return
        if owner is not None and owner.url:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"the population {population} is owned by the member at {owner.url}; ask that one",
            )
        raise StatusError(Code.UNAVAILABLE, f"nobody owns the population {population} now")

    async def idle(self) -> None:
        """Wait until everything that was found has been taken or left."""
        while self._work:
            await asyncio.gather(*self._work, return_exceptions=True)

    # Inside.

    async def _run(self) -> None:
        while True:
            wait = max(PAUSE, self._next() - self.clock.now())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._look.wait(), wait)
            self._look.clear()
            self._change(self._leases.tick(self.clock.now()))
            try:
                await self._beat()
            except StorageError as error:
                if not self._failing:
                    logger.error("the storage does not answer: %s", error.message)
                self._failing = True
            except Exception:
                logger.exception("the leases could not be renewed")
                self._failing = True
            await asyncio.sleep(PAUSE)

    def _next(self) -> float:
        """Return when to look at the storage next."""
        now = self.clock.now()
        if self._failing:
            return now + self.seconds / RETRIES
        times = [self.seen + self.seconds / BEATS]
        tick = self._leases.next_tick()
        if tick is not None:
            times.append(tick)
        # What another one holds is taken when its time is over.
        times += [owner.until for owner in self.table.owners.values() if owner.url]
        return min(times)

    async def _beat(self) -> None:
        """Ask the storage once.

        :raises StorageError: if it does not answer.
        """
        self._begun += 1
        number = self._begun
        try:
            await self._ask()
        finally:
            self._change(self._leases.tick(self.clock.now()))
            async with self._looked:
                self._ended = number
                self._looked.notify_all()

    async def _ask(self) -> None:
        asked = self.clock.now()
        held, given = self._leases.held(), self._leases.given()
        work = Beat(self._me, self.seconds, held, tuple(self._wanted), self._offered, given)
        limit = (1 if self.view else SETTLING) * self.seconds  # at the start nothing runs out yet
        try:
            view = await asyncio.wait_for(self._storage.transact(partial(beat, work=work)), limit)
        except asyncio.TimeoutError:
            raise StorageError(f"there was no answer in {limit:g} s") from None
        if self._failing:
            logger.info("the storage answers again")
        self._failing = False
        self.view, self.seen = view, asked
        follow(self.clock, view.now)
        # What nobody else took either is tried again.
        unable = (name for name in self._me.unable if is_owned(view, name, self.seconds))
        self._me = replace(self._me, unable=tuple(unable))
        leases = view.leases.items()
        mine = {name: lease.epoch for name, lease in leases if lease.holder == self.member_id}
        self._change(self._leases.found(asked, mine))
        self._publish()
        self._share()

    def _change(self, changes: list[Take | Drop | Suspend | Resume]) -> None:
        for change in changes:
            lease = change.lease
            if isinstance(change, Take):
                self._spawn(self._take(lease))
            elif isinstance(change, Drop):
                logger.warning(
                    "the population %s was taken over by another member; what this one knew of it "
                    "(epoch %d) is dropped",
                    lease.population,
                    lease.epoch,
                )
                self._spawn(self._leave(lease, saved=False))
            elif isinstance(change, Suspend):
                logger.warning(
                    "the lease of the population %s could not be renewed in time: nothing is done "
                    "for it until it is",
                    lease.population,
                )
            else:
                logger.info("the lease of the population %s is renewed", lease.population)
        if changes:
            self._publish()

    async def _take(self, lease: Lease) -> None:
        async with self._busy[lease.population]:
            began = time.perf_counter()
            self.epochs[lease.population] = lease.epoch
            while lease.state is Holding.TAKING and not (self._loop is None or self._me.draining):
                unable = True
                try:
                    await self._keeper.take(lease.population)
                except (StatusError, UsageError) as error:
                    unable = not isinstance(error, StorageError)
                    logger.error("population %s: %s", lease.population, error)
                except Exception:
                    logger.exception("the population %s could not be taken", lease.population)
                else:
                    self._leases.taken(lease)
                    logger.info(
                        "population %s is this server's, epoch %d, read in %.0f ms",
                        lease.population,
                        lease.epoch,
                        1000 * (time.perf_counter() - began),
                    )
                    self._publish()
                    return
                await self._keeper.leave(lease.population, saved=False)
                if unable:
                    self._decline(lease)
                    return
                await asyncio.sleep(self.seconds / BEATS)

    def _decline(self, lease: Lease) -> None:
        """Give back at once what cannot be read here; somebody else may have what it needs."""
        self.epochs.pop(lease.population, None)
        self._me = replace(self._me, unable=(*self._me.unable, lease.population))
        lease.released = True
        self._look.set()

    async def _leave(self, lease: Lease, *, saved: bool) -> None:
        async with self._busy[lease.population]:
            if not saved:
                self.epochs.pop(lease.population, None)
            await self._keeper.leave(lease.population, saved=saved)
            self.epochs.pop(lease.population, None)

    async def _give(self, lease: Lease, timeout: float) -> None:
        await self._keeper.settled(lease.population, timeout)
        if self._leases.get(lease.population) is not lease:
            return  # and what there is of the population now is another lease's
        saved = lease.acts(self.clock.now())
        lease.closed = True
        self._publish()
        await self._leave(lease, saved=saved)
        lease.released = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.look(), self.seconds)
        if self._leases.get(lease.population) is not lease:
            logger.info("population %s was given back", lease.population)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _publish(self) -> None:
        """Make the table anew of what is known."""
        if self.view is None:
            return
        self.table = self.table.made_of(
            self.view, self.seen, self.seconds, self._offered, self._leases
        )
        for callback in self.on_change:
            callback(self.table)

    def _share(self) -> None:
        """Give a population to a member that came since, if all agree that it is to own it."""
        if self._me.draining or any(lease.state is not Holding.HELD for lease in self._leases):
            return  # one after another
        for lease in self._leases:
            name, members = lease.population, self.view.members.values() if self.view else ()
            if self.table.chosen(name) and not any(name in each.unable for each in members):
                self._leases.give(lease)
                self._publish()
                self._spawn(self._give(lease, SETTLING * self.seconds))
                return


def _check(epochs: Mapping[str, int], tx: Transaction, population: str) -> None:
    check(tx, population, epochs.get(population, -1))
