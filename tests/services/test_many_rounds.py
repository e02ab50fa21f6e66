"""Several rounds at a time: of one task, of several, and nothing that waits for ever."""

import asyncio

from fcp_core.protocol.status import Code
from fcp_core.rounds.tasks import TaskState


def test_devices_are_selected_for_the_next_round_while_this_one_reports(kit):
    async def main():
        async with kit.world(over_selection="1") as world:
            first = await world.submit(goal=2)
            devices = [world.device() for _ in range(4)]
            early = [await device.assignment() for device in devices[:2]]
            second = await world.submit(goal=2)
            late = [await device.assignment() for device in devices[2:]]
            assert (await world.status(first)).pending == 2
            assert (await world.status(second)).pending == 2
            # The next round may even end before this one.
            await asyncio.gather(*(d.contribute(a) for d, a in zip(devices[2:], late, strict=True)))
            assert await world.result(second) == [4 + 8, 2]
            assert (await world.status(first)).state is TaskState.OPEN
            await asyncio.gather(
                *(d.contribute(a) for d, a in zip(devices[:2], early, strict=True))
            )
            assert await world.result(first) == [1 + 2, 2]

    asyncio.run(main())


def test_a_place_that_is_given_back_goes_to_the_older_round_first(kit):
    async def main():
        async with kit.world() as world:
            first, second = await world.submit(goal=1), await world.submit(goal=1)
            gone, other, third = (world.device() for _ in range(3))
            lost = await gone.assignment()
            kept = await other.assignment()
            await gone.report(lost, Code.INTERNAL)
            again = await third.assignment()
            assert again.aggregation_id == lost.aggregation_id
            await third.contribute(again)
            await other.contribute(kept)
            assert await world.result(first) == [4, 1]
            assert await world.result(second) == [2, 1]

    asyncio.run(main())


def test_tasks_share_the_devices_fairly_and_each_finds_its_own(kit):
    async def main():
        async with kit.world(
            selection="fair_share", selection__fair_share__min_candidates=1
        ) as world:
            goals = {"a": 4, "b": 4, "c": 4}
            tasks = {name: await world.submit(goal=goal, name=name) for name, goal in goals.items()}
            counts = dict.fromkeys(goals, 0)
            for _ in range(12):
                device = world.device()
                assignment = await device.assignment()
                counts[assignment.task_name] += 1
                # No task gets far ahead of another.
                assert max(counts.values()) - min(counts.values()) <= 1
                await device.contribute(assignment)
            for task_id in tasks.values():
                assert (await world.result(task_id))[1] == 4

    asyncio.run(main())


def test_nothing_waits_for_ever(kit):
    """Devices in every stage, none of which goes on: all tasks and requests end by the clock."""

    async def main():
        async with kit.world(session_timeout="5m", task_deadline="20m") as world:
            alone = await world.submit(goal=5)
            many = await world.submit(goal=2, name="many")
            devices = [world.device() for _ in range(6)]
            await devices[0].check_in()
            held = [await device.assignment({"sum": 1.0}) for device in devices[1:4]]
            ticket = await devices[1].start_upload(held[0])
            await devices[2].upload(await devices[2].start_upload(held[1]))
            waiters = [asyncio.create_task(world.services.tasks.wait(t)) for t in (alone, many)]
            for _ in range(25):
                world.advance(60)
                await kit.settle()
            errors = await asyncio.gather(*waiters, return_exceptions=True)
            assert [error.code for error in errors] == [Code.DEADLINE_EXCEEDED] * 2
            assert "0 of 5 contributions; 3 devices were assigned" in errors[0].message
            assert "0 devices were assigned" in errors[1].message
            # Its place is gone since the task is over, and nothing is needed of it.
            assert await kit.code_of(devices[1].upload(ticket)) is Code.OK
            assert await kit.code_of(devices[0].start()) is Code.ABORTED
            for task_id in (alone, many):
                status = await world.status(task_id)
                assert status.pending == 0
                assert status.assigned == status.dropped + status.contributed

    asyncio.run(main())
