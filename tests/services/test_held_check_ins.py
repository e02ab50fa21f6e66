"""Devices that are kept waiting when they check in while there is nothing to do."""

import asyncio

from fcp_core.protocol.status import Code


def test_a_device_is_held_until_a_task_opens(kit):
    async def main():
        async with kit.world(check_in_hold="30s", over_selection="1") as world:
            devices = [world.device() for _ in range(3)]
            runs = [asyncio.create_task(device.run()) for device in devices]
            await kit.settle()
            assert not any(run.done() for run in runs)
            task_id = await world.submit(goal=2)
            # No more are let in than there is room for, in the order in which they came.
            assert await world.result(task_id) == [1 + 2, 2]
            assert [run.done() for run in runs] == [True, True, False]
            another = await world.submit(goal=1)
            assert await world.result(another) == [4, 1]
            assert all(await asyncio.gather(*runs))

    asyncio.run(main())


def test_who_was_held_long_enough_is_sent_away(kit):
    async def main():
        async with kit.world(check_in_hold="30s", retry_min="7s", retry_max="7s") as world:
            check_in = asyncio.create_task(world.device().check_in())
            await kit.settle()
            world.advance(29)
            await kit.settle()
            assert not check_in.done()
            world.advance(1)
            response = await check_in
            assert response.WhichOneof("result") == "rejection_info"
            assert response.retry_window_if_rejected.delay_min.seconds == 7

    asyncio.run(main())


def test_a_place_that_nobody_takes_goes_to_the_next(kit):
    async def main():
        async with kit.world(check_in_hold="30s") as world:
            first, second = world.device(), world.device()
            gone = asyncio.create_task(first.check_in())
            held = asyncio.create_task(second.run())
            await kit.settle()
            task_id = await world.submit(goal=1)
            assert (await gone).session_id
            await kit.settle()
            assert not held.done()
            world.advance(0.5)
            assert await world.result(task_id) == [2, 1]
            assert await held

    asyncio.run(main())


def test_a_place_that_is_given_back_lets_the_next_in(kit):
    async def main():
        async with kit.world(check_in_hold="30s") as world:
            task_id = await world.submit(goal=1)
            failing, second = world.device(), world.device()
            assignment = await failing.assignment()
            held = asyncio.create_task(second.run())
            await kit.settle()
            assert not held.done()
            await failing.report(assignment, Code.INTERNAL)
            assert await world.result(task_id) == [2, 1]
            assert await held

    asyncio.run(main())


def test_a_device_that_hangs_up_is_not_held(kit):
    async def main():
        async with kit.world(check_in_hold="30s") as world:
            gone = asyncio.create_task(world.device().check_in())
            await kit.settle()
            gone.cancel()
            await kit.settle()
            other = asyncio.create_task(world.device().run())
            await kit.settle()
            task_id = await world.submit(goal=1)
            assert await world.result(task_id) == [2, 1]
            assert await other

    asyncio.run(main())


def test_everybody_is_let_go_when_the_server_stops(kit):
    async def main():
        async with kit.world(check_in_hold="1h") as world:
            check_ins = [asyncio.create_task(world.device().check_in()) for _ in range(3)]
            await kit.settle()
            world.services.eligibility_eval_tasks.turn_away()
            for response in await asyncio.gather(*check_ins):
                assert response.WhichOneof("result") == "rejection_info"
            late = await world.device().check_in()
            assert late.WhichOneof("result") == "rejection_info"

    asyncio.run(main())


def test_a_server_that_stops_rejects_who_waits_and_who_comes(kit):
    async def main():
        async with kit.world(selection="cohort") as world:
            await world.submit(goal=5)
            waiting, late = world.device(), world.device()
            await waiting.check_in()
            operation = await waiting.start()
            assert not operation.done
            await late.check_in()
            assert world.services.eligibility_eval_tasks.turn_away() == 0.5
            for answer in (await waiting.poll(operation.name), await late.start()):
                assert waiting.answer(answer).HasField("rejection_info")
            response = await world.device().check_in()
            assert response.WhichOneof("result") == "rejection_info"
            assert response.retry_window_if_rejected.delay_max.seconds > 0
            assert {event.reason for event in world.recorder.of("Rejected")} >= {"stopping"}
            assert world.services.eligibility_eval_tasks.turn_away() == 0.0

    asyncio.run(main())
