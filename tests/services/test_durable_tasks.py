"""Tasks of durability "contribution": what was answered OK is there after a restart, once."""

import asyncio
import gc

import pytest

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import ManualClock
from fcp_core.rounds.tasks import TaskSpec, TaskState
from fcp_core.server.services.stored_whole import FAN_IN
from fcp_core.storage.contract import StorageError
from fcp_core.storage.records import BlobRecord, ShardRecord, TaskRecord
from tests.services.worlds import stored


@pytest.mark.slow
def test_an_open_task_keeps_no_model_in_memory(kit, sqlite):
    model = b"a model that is written to the file"

    async def main():
        async with sqlite() as world:
            await world.submit(goal=4, checkpoint=model)
            gc.collect()
            kept = [each for each in gc.get_objects() if type(each) is TaskSpec]
            assert [each for each in kept if each.checkpoint == model] == []

    asyncio.run(main())


def test_what_was_answered_is_there_after_a_restart(kit, sqlite):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=4)
            for _ in range(3):
                assert await world.device().run()
            before = await world.status(task)
            assert (before.contributed, before.durability) == (3, "contribution")
            # A commit is told before the contributions that are in it.
            ways = ("Committed", "Contributed")
            told = [e for e in world.recorder.events if type(e).__name__ in ways]
            assert [type(e).__name__ for e in told] == [*ways] * 3
            assert [e.contributions for e in told[::2]] == [1, 1, 1]
            assert all(e.task_id == task and e.size > 0 <= e.seconds for e in told[::2])
        async with sqlite() as world:
            status = await world.status(task)
            assert (status.state, status.assigned, status.contributed) == (TaskState.OPEN, 3, 3)
            # No more devices are assigned than are missing.
            world.devices = 3
            last = world.device()
            assert await last.run()
            assert await world.device().assignment() is None
            assert await world.result(task) == [0b1111, 4]
            assert await stored(world, ShardRecord) == []
            assert [blob.name for blob in await stored(world, BlobRecord)] == [f"{task}/result"]

    asyncio.run(main())


def test_why_devices_did_not_contribute_is_told_after_a_restart(kit, sqlite):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=1)
            world.services.tasks._running[task].machine.reasons.note("no battery", 3)
            assert await world.device().run()
            await world.result(task)  # or the next start would end it
            before = await world.status(task)
            assert before.reasons == {"no battery": 3}
        async with sqlite() as world:
            assert (await world.status(task)).reasons == before.reasons

    asyncio.run(main())


@pytest.mark.parametrize("late", ["accept", "refuse"])
def test_a_device_that_repeats_its_calls_after_a_restart_is_answered_as_before(kit, sqlite, late):
    """Its answer was lost: it may begin again at any of its calls, and counts once."""

    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=2, late_contributions=late)
            device = world.device()
            held = await device.assignment()
            ticket = await device.start_upload(held)
            await device.upload(ticket)
            await device.submit(held, ticket)
        async with sqlite() as world:
            device.services = world.services
            for _ in range(2):
                await device.submit(held, ticket)
                assert await device.start_upload(held) == ticket
                await device.upload(ticket)
            await device.report(held, Code.INTERNAL)
            status = await world.status(task)
            assert (status.contributed, status.pending, status.dropped) == (1, 0, 0)
            world.devices = 1
            assert await world.device().run()
            assert await world.result(task) == [0b11, 2]

    asyncio.run(main())


def test_a_goal_that_was_reached_before_the_restart_ends_the_task(kit, sqlite, monkeypatch):
    from fcp_core.server.services.task_runner import TaskRunner

    async def main():
        with monkeypatch.context() as patch:
            # The server dies between the last contribution and the result.
            patch.setattr(TaskRunner, "_report", lambda self: None)
            async with sqlite() as world:
                task = await world.submit(goal=2)
                assert await asyncio.gather(*(world.device().run() for _ in range(2))) == [True] * 2
                assert (await world.status(task)).state is TaskState.CLOSING
        async with sqlite() as world:
            assert await world.result(task) == [0b11, 2]
            assert (await world.status(task)).state is TaskState.COMPLETED

    asyncio.run(main())


def test_a_result_is_made_however_long_the_server_was_down(kit, sqlite):
    """What it may take after the deadline counts from the start of the server."""

    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=4, minimum_count=1, deadline=60)
            await world.device().run()
            late = ManualClock(world.clock.now() + 86400)
        async with sqlite(clock=late) as world:
            for _ in range(2):
                world.services.ticker.run_due()
            assert await world.result(task) == [1, 1]

    asyncio.run(main())


@pytest.mark.parametrize("minimum", [2, 3])
def test_a_deadline_that_passed_meanwhile_is_judged_by_what_is_there(kit, sqlite, minimum):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=4, minimum_count=minimum, deadline=60)
            for _ in range(2):
                await world.device().run()
            late = ManualClock(world.clock.now() + 61)
        async with sqlite(clock=late) as world:
            world.services.ticker.run_due()
            if minimum == 2:
                assert await world.result(task) == [0b11, 2]
                return
            with pytest.raises(StatusError, match=r"while the server was not running, with 2 of 3"):
                await world.result(task)

    asyncio.run(main())


def test_the_counts_of_an_earlier_run_stay(kit, sqlite):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=3)
            failing = world.device()
            held = await failing.assignment()
            await failing.report(held, Code.INTERNAL)
            assert await world.device().run()
        async with sqlite() as world:
            status = await world.status(task)
            assert (status.assigned, status.contributed, status.dropped) == (2, 1, 1)

    asyncio.run(main())


def test_shards_are_merged_and_read_back(kit, sqlite):
    async def main():
        count = 2 * FAN_IN + 3
        async with sqlite() as world:
            task = await world.submit(goal=count + 1)
            for _ in range(count):
                assert await world.device().run()
            shards = await stored(world, ShardRecord)
            blobs = [b.name for b in await stored(world, BlobRecord) if "/shard/" in b.name]
            assert len(shards) == count
            # A sum is no larger than a shard.
            assert len(blobs) == sum("total" in name for name in blobs) == 1
        async with sqlite() as world:
            assert (await world.status(task)).contributed == count
            world.devices = count
            assert await world.device().run()
            assert await world.result(task) == [(1 << count + 1) - 1, count + 1]

    asyncio.run(main())


def test_a_refused_contribution_leaves_no_trace(kit, sqlite):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=2)
            device = world.device()
            held = await device.assignment()
            ticket = await device.start_upload(held)
            await device.upload(ticket, b"no checkpoint")
            code = await kit.code_of(device.submit(held, ticket))
            assert code is Code.INVALID_ARGUMENT
            assert await stored(world, ShardRecord) == []
            assert (await world.status(task)).dropped == 1
            for _ in range(2):
                assert await world.device().run()
            assert await world.result(task) == [0b110, 2]

    asyncio.run(main())


def test_a_crowd_shares_commits(kit, sqlite):
    async def main():
        async with sqlite() as world:
            await world.submit(goal=101)
            devices = [world.device() for _ in range(40)]
            assert all(await asyncio.gather(*(device.run() for device in devices)))
            assert len(await stored(world, ShardRecord)) < 20

    asyncio.run(main())


def test_a_storage_that_does_not_last_leaves_round(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit()
            assert (await world.status(task)).durability == "round"
            with pytest.raises(StatusError, match="'memory' forgets everything"):
                await world.submit(durability="contribution")

    asyncio.run(main())


def test_an_operator_may_require_a_durability(kit, sqlite):
    async def main():
        async with sqlite(require_durability="yes") as world:
            with pytest.raises(StatusError, match=r"durability is 'contribution' here.*'round'"):
                await world.submit(durability="round")
            await world.submit(durability="contribution")

    asyncio.run(main())


def test_a_submission_whose_answer_was_lost_is_one_task(kit, sqlite):
    """Seen in the simulation: the storage wrote it and failed, and the key was given twice."""

    async def main():
        async with sqlite() as world:
            storage = world.services._storage
            transact, failing = storage.transact, [True]

            async def fail_after(body):
                result = await transact(body)
                if failing and failing.pop():
                    raise StorageError("the answer was lost")
                return result

            storage.transact = fail_after
            spec = world.spec(goal=2)
            with pytest.raises(StorageError):
                await world.services.tasks.submit(spec, key="k")
            (record,) = await stored(world, TaskRecord)
            task = await world.services.tasks.submit(spec, key="k")
            assert task == record.task_id
            assert await world.device().run()
            # What comes late of the first attempt undoes nothing.
            await world.services.tasks._store.add(record, spec)
            assert await world.device().run()
            assert await world.result(task) == [0b11, 2]
            await world.services.tasks._store.add(record, spec)
        async with sqlite() as world:
            assert [record.task_id for record in await stored(world, TaskRecord)] == [task]
            assert (await world.status(task)).state is TaskState.COMPLETED

    asyncio.run(main())


def test_devices_are_turned_away_while_uploads_pile_up(kit, sqlite):
    async def main():
        async with sqlite(max_in_flight=300) as world:
            await world.submit(goal=9, over_selection=2.0)
            slow = world.device()
            held = await slow.assignment()
            ticket = await slow.start_upload(held)
            await slow.upload(ticket)
            assert 150 < world.services.media._memory.held < 300
            assert await kit.code_of(world.device().check_in()) is Code.UNAVAILABLE
            await slow.submit(held, ticket)
            assert await world.device().run()
            world.services.media.behind(True)  # so does what is not received yet
            assert await kit.code_of(world.device().check_in()) is Code.UNAVAILABLE
            world.services.media.behind(False)
            assert await world.device().run()

    asyncio.run(main())
