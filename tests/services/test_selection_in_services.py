"""The built-in selection policies at work in the services, with devices that speak the protocol."""

import asyncio

from fcp_core.protocol.status import Code


async def ask(world, count):
    """Let devices check in and ask for a task; return them with their operations."""
    asked = []
    for _ in range(count):
        device = world.device()
        await device.check_in()
        asked.append((device, await device.start()))
    return asked


async def assigned(asked):
    """Return the devices that were given a task, with their assignments, and how many were not."""
    given, rejected = [], 0
    for device, operation in asked:
        latest = await device.poll(operation.name)
        if latest.done:
            answer = device.answer(latest)
            if answer.HasField("task_assignment"):
                given.append((device, answer.task_assignment))
            else:
                rejected += 1
    return given, rejected


def test_a_cohort_over_selects_and_the_rest_is_let_go_at_the_goal(kit):
    async def main():
        async with kit.world(selection="cohort", selection__cohort__window="1h") as world:
            task = await world.submit(goal=2, over_selection=2.0)
            waiting = await ask(world, 3)
            assert await assigned(waiting) == ([], 0)
            given, _ = await assigned(waiting + await ask(world, 1))
            assert len(given) == 4
            # One drops out: three at work are enough for two places, so nobody takes its place.
            await given[0][0].report(given[0][1], Code.INTERNAL)
            assert await assigned(await ask(world, 1)) == ([], 1)
            for device, assignment in given[1:3]:
                await device.contribute(assignment)
            total = [sum(1 << device.number for device, _ in given[1:3]), 2]
            assert await world.result(task) == total
            late, assignment = given[3]
            await late.contribute(assignment)
            assert await world.result(task) == total
            phases = [event.phase for event in world.recorder.of("Dropped")]
            assert phases == ["computation"]
            assert len(world.recorder.of("Surplus")) == 1

    asyncio.run(main())


def test_a_cohort_is_topped_up_when_it_cannot_fill_the_round(kit):
    async def main():
        async with kit.world(selection="cohort", selection__cohort__window="1h") as world:
            task = await world.submit(goal=1, over_selection=2.0)
            given, _ = await assigned(await ask(world, 2))
            for device, assignment in given:
                await device.report(assignment, Code.INTERNAL)
            (device, assignment), _ = (await assigned(await ask(world, 2)))[0]
            await device.contribute(assignment)
            assert await world.result(task) == [1 << device.number, 1]
            assert (await world.status(task)).assigned == 4

    asyncio.run(main())


def test_a_rate_cap_holds_over_rounds(kit):
    async def main():
        async with kit.world(
            selection="rate_capped",
            selection__rate_capped__limit="3",
            selection__rate_capped__period="1m",
            selection__rate_capped__wait="5s",
        ) as world:
            counts = []
            for _ in range(3):
                await world.submit(goal=2)
                given, rejected = await assigned(await ask(world, 2))
                counts.append((len(given), rejected))
                for device, assignment in given:
                    await device.contribute(assignment)
                await kit.settle()
            assert counts == [(2, 0), (1, 1), (0, 2)]
            world.advance(61)
            assert len((await assigned(await ask(world, 2)))[0]) == 2

    asyncio.run(main())


def test_a_task_may_bring_options_for_the_wrapped_policy(kit):
    async def main():
        async with kit.world(selection__rate_capped__limit="9") as world:
            await world.submit(
                selection="rate_capped",
                options={"rate_capped": {"inner": "uniform"}, "uniform": {"window": "7s"}},
            )
            asked = await ask(world, 1)
            assert await assigned(asked) == ([], 0)
            world.advance(6.9)
            assert await assigned(asked) == ([], 0)
            world.advance(0.2)
            assert len((await assigned(asked))[0]) == 1

    asyncio.run(main())


def test_rounds_with_other_options_for_the_wrapped_policy_count_apart(kit):
    """One policy is shown all tasks of a group: those must agree in all options."""

    async def main():
        async with kit.world(selection__rate_capped__limit="1") as world:
            for window in ("0s", "1ms"):
                await world.submit(
                    selection="rate_capped",
                    options={"rate_capped": {"inner": "uniform"}, "uniform": {"window": window}},
                )
            asked = await ask(world, 2)
            world.advance(1)
            assert len((await assigned(asked))[0]) == 2

    asyncio.run(main())
