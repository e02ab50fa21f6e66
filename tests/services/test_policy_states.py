"""What selection policies keep outlives the server; when they want devices back reaches devices."""

import asyncio
import functools

import pytest

from fcp_core.plugins import hookimpl
from fcp_core.rounds.machine import ManualClock
from fcp_core.rounds.policies import Assign, Selection, SelectionPolicy, SelectionPolicyFactory
from fcp_core.rounds.tasks import AssignmentMode
from fcp_core.server.services import policy_states
from fcp_core.server.services.policy_states import LIFETIME, PolicyStates
from fcp_core.server.services.writes import Writes
from fcp_core.storage.contract import StorageError
from fcp_core.storage.records import PolicyStateRecord
from fcp_plugins.storage_memory import MemoryStorage
from tests.services.worlds import stored

CAPPED = {
    "selection": "rate_capped",
    "selection__rate_capped__limit": "2",
    "selection__rate_capped__period": "1h",
    "task_deadline": "60d",
}


class Counting(SelectionPolicy):
    """Keeps how many it has assigned, as *shape* makes it; it knows no other shape."""

    def __init__(self, shape):
        self.shape = shape

    def select(self, view):
        count = self.shape() if view.state is None else view.state
        decisions = [
            Assign(candidate.id, view.tasks[0].task_id) for candidate in view.candidates[:1]
        ]
        return Selection(decisions, self.shape(count, len(decisions)))


class Plugin:
    def __init__(self, shape):
        self.shape = shape

    @hookimpl
    def fcp_register_selection_policies(self):
        make = lambda options: Counting(self.shape)  # noqa: E731
        return [SelectionPolicyFactory("counting", "counts", make)]


def number(count=0, more=0):
    return count + more


def mapping(count=None, more=0):
    return {"count": (count or {"count": 0})["count"] + more}


@pytest.fixture
def sqlite(sqlite):
    """Return a way to start services on one SQLite file; the clock goes on."""
    return functools.partial(sqlite, clock=ManualClock())


def records(world):
    return stored(world, PolicyStateRecord)


def test_a_rate_cap_holds_over_a_restart(sqlite):
    async def main():
        async with sqlite(**CAPPED) as world:
            await world.submit(goal=9)
            assert await world.device().assignment() is not None
            assert await world.device().assignment() is not None
        async with sqlite(**CAPPED) as world:
            assert await world.device().assignment() is None
            world.advance(3600 + 61)
            assert await world.device().assignment() is not None
            (record,) = await records(world)
        # With other options it is another policy.
        async with sqlite(**{**CAPPED, "selection__rate_capped__limit": "3"}) as world:
            assert await world.device().assignment() is not None
            world.advance(2)
            await world.services._states.flush()
            assert len(await records(world)) == 2
            world.advance(LIFETIME)
        async with sqlite(**CAPPED) as world:
            await world.services._states.flush()
            assert record not in await records(world)

    asyncio.run(main())


def test_it_is_written_a_moment_after_a_decision_and_not_only_at_the_end(sqlite):
    async def main():
        async with sqlite(**CAPPED) as world:
            await world.submit(goal=9)
            await world.device().assignment()
            world.advance(1.5)
            await world.services._states.flush()
            (record,) = await records(world)
            assert record.population == "phones/all"
            await world.device().assignment()
            world.advance(1.5)
            await world.services._states.flush()
            (later,) = await records(world)
            assert (later.key, later.state != record.state) == (record.key, True)

    asyncio.run(main())


def test_a_state_that_a_newer_policy_cannot_read_is_dropped(sqlite):
    async def main():
        async with sqlite(extra=[Plugin(number)], selection="counting") as world:
            await world.submit(goal=9)
            assert await world.device().assignment() is not None
        async with sqlite(extra=[Plugin(mapping)], selection="counting") as world:
            assert await world.device().assignment() is not None
            assert await world.device().assignment() is not None
        async with sqlite(extra=[Plugin(mapping)], selection="counting") as world:
            (record,) = await records(world)
            assert record.state == b'{"count":2}'

    asyncio.run(main())


def test_policies_that_keep_nothing_leave_nothing(sqlite):
    async def main():
        async with sqlite() as world:
            await world.submit(goal=9)
            await world.device().assignment()
            world.advance(2)
            await world.services._states.flush()
            assert await records(world) == []

    asyncio.run(main())


# When to come back.


def rejected(response):
    window = response.retry_window_if_rejected
    return window.delay_min.seconds, window.delay_max.seconds


def test_when_a_policy_wants_devices_back_is_told_to_those_who_check_in_next(kit):
    async def main():
        async with kit.world(retry_min="10s", retry_max="40s", **CAPPED) as world:
            await world.submit(goal=9)
            for _ in range(2):
                device = world.device()
                assert rejected(await device.check_in()) == (10, 40)
                await device.start()
            # The policy's word comes too late for the first that it sends away...
            first = world.device()
            assert rejected(await first.check_in()) == (10, 40)
            assert device.answer(await first.start()).HasField("rejection_info")
            # ... but not for those after it.
            start, end = rejected(await world.device().check_in())
            assert 3600 - 61 <= start <= 3661
            assert end - start >= 30
            world.advance(1800)
            later, _ = rejected(await world.device().check_in())
            assert later == start - 1800
            # Once the time has come, the pace says when again.
            world.advance(1800 + 61)
            device = world.device()
            assert rejected(await device.check_in()) == (10, 40)
            assert device.answer(await device.start()).HasField("task_assignment")
            assert rejected(await world.device().check_in()) == (10, 40)

    asyncio.run(main())


def test_those_who_are_sent_away_until_a_time_do_not_all_come_at_that_time(kit):
    """Pace steering spreads them from then on, and books when they really come."""

    async def main():
        async with kit.world(
            selection="time_windows",
            selection__time_windows__windows="22:00-23:00",
            selection__time_windows__wait="0s",
            pacing__adaptive__enabled="yes",
            pacing__adaptive__target_rate="0.5",
            task_deadline="2d",
        ) as world:
            now = world.clock.now()
            opens = (22 * 3600 - now) % 86400
            if opens < 7200:
                world.advance(7200)
                opens = (22 * 3600 - world.clock.now()) % 86400
            await world.submit(goal=9)
            starts = []
            for _ in range(300):
                world.devices = 0  # what it would contribute does not matter
                device = world.device()
                window = (await device.check_in()).retry_window_if_rejected
                starts.append(window.delay_min.seconds)
                assert device.answer(await device.start()).HasField("rejection_info")
            # The first one was told before the policy was asked.
            assert all(start >= opens - 1 for start in starts[1:])
            # A small population, as this one is taken for at first, gets a common time.
            minutes = [start // 60 for start in starts[130:]]
            assert max(minutes.count(minute) for minute in minutes) <= 31

    asyncio.run(main())


def test_a_new_task_makes_the_old_word_void(kit):
    async def main():
        async with kit.world(retry_min="10s", retry_max="40s", **CAPPED) as world:
            await world.submit(goal=9)
            for _ in range(3):
                await world.device().assignment()
            assert rejected(await world.device().check_in())[0] > 40
            await world.submit(
                goal=9, name="other", selection="fifo", assignment_mode=AssignmentMode.SINGLE
            )
            assert rejected(await world.device().check_in()) == (10, 40)

    asyncio.run(main())


def test_what_the_storage_does_not_take_is_tried_again_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(policy_states, "FLUSHING", 0.01)

    class Silent(MemoryStorage):
        durable = True

        full = False

        async def transact(self, body):
            await answer.wait()
            if self.full:
                raise StorageError("the disk is full")
            return await super().transact(body)

    async def main():
        storage, writes = Silent(), Writes()
        states = PolicyStates(storage, ManualClock(), writes)
        states.put("people", "all", "fifo", 1)
        await asyncio.wait_for(states.flush(), 60)
        answer.set()
        monkeypatch.setattr(policy_states, "FLUSHING", 60)
        await states.flush()
        assert len(await storage.transact(lambda tx: tx.keys(PolicyStateRecord))) == 1
        # What a full disk did not take is not forgotten: a limit over a day would be.
        storage.full = True
        states.put("people", "all", "fifo", 2)
        states.put("people", "others", "fifo", 3)
        for _ in range(100):
            await asyncio.sleep(0)
        assert "what selection policies keep cannot be stored: the disk is full" in writes.trouble()
        states.put("people", "all", "fifo", 4)
        storage.full = False
        await states.flush()
        records = await storage.transact(lambda tx: [*tx.select(PolicyStateRecord)])
        assert {record.state for record in records} == {b"3", b"4"}
        storage.full = True
        monkeypatch.setattr(policy_states, "FLUSHING", 0.01)
        states.put("people", "all", "fifo", 5)
        await asyncio.wait_for(states.stop(), 60)

    answer = asyncio.Event()
    asyncio.run(main())
