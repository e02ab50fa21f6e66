"""A population that is given back while another lease of it begins stays with that one."""

import asyncio

from fcp_core.rounds.machine import ManualClock
from fcp_core.server.services.members import Members
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


def test_what_was_given_of_one_lease_is_not_taken_from_the_next():
    """Seen in the simulation: a task of a member that was paused, and owned it, never ended."""

    async def main():
        storage, clock = MemoryStorage(), ManualClock()
        me = MemberRecord("m", "", "", "host", 1, 0.0, 0.0)
        members = Members(storage, me, seconds=9.0, offered=["p"], secrets=[], clock=clock)
        members._keeper = keeper = Keeper()
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
