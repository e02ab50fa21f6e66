"""How many devices may be at work at a time: on one task, and in one population."""

import asyncio
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcp_core.protocol.status import Code
from fcp_core.rounds import experience
from fcp_core.rounds.tasks import AssignmentMode


def test_a_population_has_no_more_devices_at_work_than_its_cap(kit):
    async def main():
        async with kit.world(max_at_work="3") as world:
            tasks = [
                await world.submit(goal=2, name="a"),
                await world.submit(goal=2, name="b", selection="uniform", deadline=60.0),
                await world.submit(goal=2, name="c", assignment_mode=AssignmentMode.MULTIPLE),
            ]
            first, second = world.device(), world.device(multiple=True)
            one = await first.assignment()
            await second.check_in()
            (two,) = await second.ask("c")
            third, fourth = world.device(multiple=True), world.device(multiple=True)
            await third.check_in()
            await fourth.check_in()
            (three,) = await third.ask("c")
            # All three places are taken, though every task but "c" has room.
            assert await world.device().assignment() is None
            assert world.services.counts()["at_work"] == 3
            (population,) = (await world.services.admin.list_populations()).populations
            assert (population.at_work, population.missing) == (3, 6)
            assert await fourth.ask("c") == []
            response = await world.device(multiple=True).check_in()
            assert response.WhichOneof("result") == "rejection_info"
            # A contribution frees a place, and so does a failure.
            await first.contribute(one)
            fifth = world.device()
            five = await fifth.assignment()
            assert five.task_name == "a"
            assert await world.device().assignment() is None
            await fifth.report(five, Code.INTERNAL)
            assert (await world.device().assignment()).task_name == "a"
            await second.contribute(two)
            await third.contribute(three)
            assert await world.result(tasks[2]) == [(1 << 1) + (1 << 2), 2]

    asyncio.run(main())


def test_a_check_in_is_rejected_at_once_if_every_task_for_the_device_is_full(kit):
    async def main():
        async with kit.world() as world:
            await world.submit(goal=1, name="a")
            early = world.device()
            await early.check_in()
            await world.device().assignment()
            # Who had checked in before is told when it asks; whoever comes now, at once.
            assert early.answer(await early.start()).HasField("rejection_info")
            late = world.device()
            response = await late.check_in()
            assert response.WhichOneof("result") == "rejection_info"
            assert response.session_id == ""
            assert response.retry_window_if_rejected.delay_max.seconds > 0
            await world.submit(goal=1, name="b")
            assert (await late.assignment()).task_name == "b"

    asyncio.run(main())


def test_who_is_held_gets_the_place_that_a_contribution_frees(kit):
    async def main():
        async with kit.world(max_at_work="1", check_in_hold="1m") as world:
            await world.submit(goal=5)
            first, second = world.device(), world.device()
            one = await first.assignment()
            held = asyncio.ensure_future(second.assignment())
            await kit.settle()
            assert not held.done()
            await first.contribute(one)
            assert (await asyncio.wait_for(held, 30)).task_name == "sum"

    asyncio.run(main())


def test_a_cap_of_one_population_leaves_the_others_alone(kit):
    async def main():
        async with kit.world(populations=("a", "b"), **{"population:a__max_at_work": "1"}) as world:
            for population in "ab":
                await world.submit(goal=2, population=population)
            found = [
                await world.device(population=population).assignment() is not None
                for population in "aabb"
            ]
            assert found == [True, False, True, True]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("own", "options", "cap"),
    [
        (2, {}, 2),
        (None, {"over_selection": "1.2"}, 5),
    ],
)
def test_a_task_has_no_more_devices_at_work_than_its_cap(kit, own, options, cap):
    async def main():
        async with kit.world(**{"over_selection": "2", **options}) as world:
            task = await world.submit(goal=4, max_at_work=own)
            devices = [world.device() for _ in range(9)]
            given_ = [(d, a) for d in devices if (a := await d.assignment()) is not None]
            assert len(given_) == cap
            # Who contributed is followed by another until the goal is near.
            device, assignment = given_[0]
            await device.contribute(assignment)
            assert (await world.status(task)).pending == cap - 1
            more = await world.device().assignment()
            assert (more is not None) == (cap < 5)

    asyncio.run(main())


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(1, 3),
    st.none() | st.integers(1, 2),
    st.lists(st.sampled_from(["ask", "ask", "contribute", "fail", "wait"]), max_size=30),
)
def test_the_caps_hold_whatever_devices_do_and_every_round_ends(kit, cap, own, script):
    async def main():
        async with kit.world(
            max_at_work=str(cap),
            selection__uniform__window="1s",
            over_selection="2",
        ) as world:
            tasks = [
                await world.submit(goal=2, name="a", max_at_work=own),
                await world.submit(goal=2, name="b", selection="uniform"),
            ]
            waiting, working = [], []

            async def look():
                for device, name in list(waiting):
                    operation = await device.poll(name)
                    if operation.done:
                        waiting.remove((device, name))
                        answer = device.answer(operation)
                        if answer.HasField("task_assignment"):
                            working.append((device, answer.task_assignment))
                pending = [(await world.status(task)).pending for task in tasks]
                assert sum(pending) <= cap
                assert own is None or pending[0] <= own

            async def step(what):
                if what == "ask":
                    device = world.device()
                    response = await device.check_in()
                    if response.WhichOneof("result") != "rejection_info":
                        waiting.append((device, (await device.start()).name))
                elif what == "wait":
                    world.advance(1.1)
                elif working:
                    device, assignment = working.pop(0)
                    if what == "fail":
                        await device.report(assignment, Code.INTERNAL)
                    else:
                        await kit.code_of(device.contribute(assignment))
                await kit.settle()
                await look()

            for what in script:
                await step(what)
            for _ in range(40):
                for what in ("ask", "wait", "contribute"):
                    await step(what)
            for task in tasks:
                await world.result(task)
                assert (await world.status(task)).contributed == 2

    # Who is silent for longer than the others gives its place away: not here.
    with mock.patch.object(experience, "SHORTEST", 1e9):
        asyncio.run(main())


def test_sessions_of_a_population_live_as_long_as_its_section_says(kit):
    async def main():
        async with kit.world(
            populations=("a", "b"),
            selection="uniform",
            selection__uniform__window="1h",
            session_timeout="60s",
            **{"population:b__session_timeout": "120s"},
        ) as world:
            operations = []
            for population in "ab":
                await world.submit(population=population)
                device = world.device(population=population)
                await device.check_in()
                operations.append((device, (await device.start()).name))
            states = []
            for seconds in (59, 2, 58, 2):
                world.advance(seconds)
                states.append([(await d.poll(name)).done for d, name in operations])
            assert states == [[False, False], [True, False], [True, False], [True, True]]

    asyncio.run(main())
