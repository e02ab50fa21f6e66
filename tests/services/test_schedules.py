"""Tasks that the server offers once in each period, over restarts and whatever the clock does."""

import asyncio

import pytest

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.services import schedules as module
from fcp_core.storage.contract import StorageError
from fcp_core.storage.records import ScheduleRecord
from fcp_core.tasks.schedule import Schedule
from tests.services.test_releases import Plugin, ToyLedger

DAY = 86400.0
DAILY = Schedule(DAY)


async def settled(world):
    """Wait until nothing is being offered."""
    while offering := [*world.services.schedules._offering.values()]:
        await asyncio.gather(*offering, return_exceptions=True)
        await asyncio.sleep(0)


async def pass_time(world, seconds):
    world.advance(seconds)
    await settled(world)


async def offered(world):
    return [status.task_id for status in await world.services.tasks.list()]


def test_a_task_is_offered_once_in_each_period(kit, sqlite):
    async def main():
        async with sqlite(task_deadline="30d") as world:
            schedules = world.services.schedules
            first = await schedules.set(world.spec(), DAILY)
            assert await offered(world) == [first.task_id]
            # Whoever submits the same period's task gets this one.
            key = DAILY.key(first.schedule_id, world.clock.now())
            assert await world.services.tasks.submit(world.spec(), key=key) == first.task_id
            for count in (2, 3):
                await pass_time(world, DAY)
                assert len(await offered(world)) == count
                await pass_time(world, DAY / 1000)
                assert len(await offered(world)) == count
            (record,) = schedules.list()
            assert record.task_id == (await offered(world))[-1]
            assert record.last == DAILY.begin(world.clock.now())

    asyncio.run(main())


def test_the_server_keeps_it_and_misses_what_was_due_while_it_was_down(kit, sqlite):
    async def main():
        async with sqlite(task_deadline="30d") as world:
            await world.services.schedules.set(world.spec(name="daily"), DAILY)
            now = world.clock.now()
        for days, count in ((0.0, 1), (5.0, 2), (5.0, 2)):
            async with sqlite(task_deadline="30d") as world:
                world.clock.advance(now + days * DAY - world.clock.now())
                world.services.ticker.run_due()
                await settled(world)
                assert len(await offered(world)) == count
        async with sqlite(task_deadline="30d") as world:
            await world.services.schedules.remove("phones/all", "daily")
            await pass_time(world, 9 * DAY)
            assert len(await offered(world)) == 2
            with pytest.raises(StatusError, match="has no schedule here"):
                await world.services.schedules.remove("phones/all", "daily")
        async with sqlite(task_deadline="30d") as world:
            assert world.services.schedules.list() == []

    asyncio.run(main())


def test_a_crash_between_the_offer_and_the_record_offers_nothing_twice(kit, sqlite):
    async def main():
        async with sqlite(task_deadline="30d") as world:
            record = await world.services.schedules.set(world.spec(), DAILY)
            await pass_time(world, DAY)
            now, before = world.clock.now(), await offered(world)
            # As it was before the second period's task was written down.
            await world.services._storage.transact(lambda tx: tx.put(record))
        async with sqlite(task_deadline="30d") as world:
            world.clock.advance(now - world.clock.now())
            world.services.ticker.run_due()
            await settled(world)
            assert await offered(world) == before
            (record,) = world.services.schedules.list()
            assert record.task_id == before[-1]

    asyncio.run(main())


def test_a_clock_that_is_set_back_offers_nothing_twice(kit, sqlite):
    async def main():
        async with sqlite(task_deadline="30d") as world:
            await world.services.schedules.set(world.spec(), DAILY)
            await pass_time(world, 3 * DAY)
            world.clock._now -= 2 * DAY
            await pass_time(world, 0.0)
            await pass_time(world, 1.5 * DAY)
            assert len(await offered(world)) == 2
            await pass_time(world, 2 * DAY)
            assert len(await offered(world)) == 3

    asyncio.run(main())


def test_a_task_that_is_refused_is_not_stored_and_later_refusals_are_shown(kit, sqlite, caplog):
    async def main():
        async with sqlite(task_deadline="30d") as world:
            schedules = world.services.schedules
            with pytest.raises(StatusError, match="aggregation"):
                await schedules.set(world.spec(aggregation=b"nothing"), DAILY)
            assert schedules.list() == []
            await schedules.set(world.spec(), DAILY)

            async def refuse(spec, *, key=None):
                raise StatusError(Code.INVALID_ARGUMENT, "the budget is used up")

            submit, world.services.tasks.submit = world.services.tasks.submit, refuse
            await pass_time(world, DAY)
            (record,) = schedules.list()
            assert (record.task_id, record.problem) == ("", "the budget is used up")
            world.services.tasks.submit = submit
            await pass_time(world, DAY)
            (record,) = schedules.list()
            assert record.task_id
            assert not record.problem

    asyncio.run(main())
    assert "the budget is used up" in caplog.text


def test_what_fails_through_no_fault_of_the_task_is_tried_again(kit, sqlite, caplog):
    async def main():
        async with sqlite(task_deadline="30d") as world:
            schedules = world.services.schedules
            await schedules.set(world.spec(), DAILY)

            async def fail(spec, *, key=None):
                raise StorageError("its disk is full")

            submit, world.services.tasks.submit = world.services.tasks.submit, fail
            await pass_time(world, DAY)
            world.services.tasks.submit = submit
            await pass_time(world, 1.0)
            assert len(await offered(world)) == 1
            await pass_time(world, module.AGAIN)
            assert len(await offered(world)) == 2

    asyncio.run(main())
    assert "its disk is full" in caplog.text


class Budget(ToyLedger):
    """Refuses a task if there are so many others."""

    def check(self, planned, accounts, others):
        assert [other.created for other in others] == sorted(other.created for other in others)
        if len(others) >= self.most:
            yield "it is used up"


def test_the_forecast_counts_until_a_ledger_refuses(kit, sqlite):
    async def main():
        ledger = Budget(5000)
        async with sqlite(task_deadline="30d", extra=[Plugin(ledger)]) as world:
            record = await world.services.schedules.set(world.spec(), DAILY)
            # One is open already, and counts among the others.
            for most, left in ((0, 0), (1, 0), (2, 1), (700, 699), (1000, 999), (5000, None)):
                ledger.most = most
                assert await world.services.schedules.repetitions(record) == left
        async with sqlite(task_deadline="30d") as world:
            assert await world.services.schedules.repetitions(record) is None

    asyncio.run(main())


def test_another_schedule_of_a_name_takes_the_place_of_the_first(kit, sqlite):
    async def main():
        async with sqlite(task_deadline="30d") as world:
            schedules = world.services.schedules
            await schedules.set(world.spec(), DAILY)
            await schedules.set(world.spec(goal=7), Schedule(2 * DAY))
            (record,) = await world.services._storage.transact(
                lambda tx: list(tx.select(ScheduleRecord))
            )
            assert record.every == 2 * DAY
            await pass_time(world, 2 * DAY)
            last = await world.status((await offered(world))[-1])
            assert last.goal_count == 7

    asyncio.run(main())
