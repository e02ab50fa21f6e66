"""A population that is given back while another lease of it begins, or is not taken at once."""

import asyncio
import contextlib

from fcp_core.errors import UsageError
from fcp_core.rounds.machine import ManualClock
from fcp_core.rounds.membership import preferred
from fcp_core.server.services.members import Members
from fcp_core.storage.contract import StorageError
from fcp_core.storage.records import LeaseRecord, MemberRecord
from fcp_plugins.storage_memory import MemoryStorage


class Keeper:
    def __init__(self):
        self.calls, self.quiet = [], asyncio.Event()

    async def take(self, population):
        self.calls.append("take")

    async def leave(self, population, *, saved):
        self.calls.append("leave")

    async def settled(self, population, timeout):
        await self.quiet.wait()


@contextlib.asynccontextmanager
async def member(keeper, storage, seconds, name="m"):
    """Make a member that looks at the storage only when it is told to."""
    me = MemberRecord(name, "", "", "host", 1, 0.0, 0.0)
    members = Members(storage, me, seconds=seconds, offered=["p"], secrets=[], clock=ManualClock())
    members._keeper, members._loop = keeper, asyncio.ensure_future(asyncio.sleep(3600))
    try:
        yield members
    finally:
        members._loop.cancel()


def test_what_was_given_of_one_lease_is_not_taken_from_the_next():
    """Seen in the simulation: a task of a member that was paused, and owned it, never ended."""

    async def main():
        storage, keeper = MemoryStorage(), Keeper()
        async with member(keeper, storage, 9.0) as members:
            await members._beat()
            await members.idle()
            (lease,) = members._leases
            members._leases.give(lease)
            giving = asyncio.ensure_future(members._give(lease, 60.0))
            await asyncio.sleep(0)
            # Meanwhile it ran out, another member had the population, and has given it back.
            await storage.transact(lambda tx: tx.put(LeaseRecord("p", "", 2, 0.0, 0.0)))
            await members._beat()
            await members.idle()
            assert keeper.calls == ["take", "leave", "take"]
            keeper.quiet.set()
            await giving
            assert keeper.calls == ["take", "leave", "take"]
            assert members.owned == ["p"]
            assert members.epochs == {"p": 3}

    asyncio.run(main())


class Failing(Keeper):
    def __init__(self, error):
        super().__init__()
        self.error = error

    async def take(self, population):
        await super().take(population)
        if self.error is not None:
            raise self.error


def test_a_mistake_that_keeps_a_population_from_being_taken_is_told_and_another_one_takes_it(
    caplog,
):
    async def main():
        storage, keeper = MemoryStorage(), Failing(UsageError("mend the configuration"))
        # All agree that the first is to own it.
        names = sorted(("m", "n"), key=lambda name: name != preferred("p", ("m", "n")))
        async with (
            member(keeper, storage, 60.0, names[0]) as first,
            member(Keeper(), storage, 60.0, names[1]) as second,
        ):
            for each in (first, first, second, first, second):
                await each._beat()
                await each.idle()
            assert (first.owned, second.owned) == ([], ["p"])
            assert keeper.calls == ["take", "leave"]

    asyncio.run(main())
    (told,) = (each for each in caplog.records if each.levelname == "ERROR")
    assert told.getMessage() == "population p: mend the configuration"
    assert told.exc_info is None


def test_what_nobody_could_take_is_tried_again():
    async def main():
        keeper = Failing(UsageError("mend the configuration"))
        async with member(keeper, MemoryStorage(), 0.01) as members:
            while len(keeper.calls) < 5:
                await members._beat()
                await members.idle()
                keeper.error = keeper.error if len(keeper.calls) < 4 else None
                await asyncio.sleep(0.02)
            assert keeper.calls == ["take", "leave", "take", "leave", "take"]
            assert members.owned == ["p"]

    asyncio.run(main())


def test_a_member_that_cannot_read_a_population_yet_stops_all_the_same():
    async def main():
        keeper = Failing(StorageError("it does not answer"))
        async with member(keeper, MemoryStorage(), 0.01) as members:
            keeper.quiet.set()
            await members._beat()
            await asyncio.wait_for(members.drain(0), 60)
            assert members.owned == []

    asyncio.run(main())
