"""How many devices may be at work at a time on tasks that a device asks for by name.

Every task here has room for far more devices than its cap or its population's lets in: what stops
a device is the cap, and nothing else.
"""

import asyncio

import pytest

from fcp_core.protocol.status import Code
from fcp_core.rounds.tasks import AssignmentMode
from fcp_core.server.services import task_factory

MANY = 50


def submit(world, name="a", **more):
    return world.submit(goal=MANY, name=name, assignment_mode=AssignmentMode.MULTIPLE, **more)


async def checked_in(world, count):
    """Return devices that were all told of the tasks, before any of them asks."""
    devices = [world.device(multiple=True) for _ in range(count)]
    for device in devices:
        response = await device.check_in()
        assert response.WhichOneof("result") != "rejection_info"
    return devices


async def given(devices, *names):
    """Let devices ask in turn; return what each was given, by name."""
    return [{task.task_name: task for task in await device.ask(*names)} for device in devices]


@pytest.mark.parametrize(
    ("own", "options", "cap"),
    [
        (None, {}, 6),
        (2, {}, 2),
        (None, {"max_at_work": "3"}, 3),
        (2, {"max_at_work": "3"}, 2),
        (4, {"max_at_work": "3"}, 3),
    ],
)
def test_no_more_devices_are_at_work_than_the_cap(kit, own, options, cap):
    async def main():
        async with kit.world(**options) as world:
            task = await submit(world, max_at_work=own)
            devices = await checked_in(world, 6)
            assert [bool(tasks) for tasks in await given(devices, "a")] == [
                number < cap for number in range(6)
            ]
            assert (await world.status(task)).pending == cap
            assert world.services.counts()["at_work"] == cap

    asyncio.run(main())


def test_the_cap_is_for_all_tasks_that_one_device_asks_for(kit):
    """Each task counts: a device with two of them is at work twice."""

    async def main():
        async with kit.world(max_at_work="3") as world:
            for name in "abc":
                await submit(world, name)
            devices = await checked_in(world, 3)
            found = await given(devices, "a", "b")
            assert [len(tasks) for tasks in found] == [2, 1, 0]
            assert world.services.counts()["at_work"] == 3

    asyncio.run(main())


def test_the_cap_of_one_task_leaves_the_others_to_be_had(kit):
    async def main():
        async with kit.world() as world:
            await submit(world, "a", max_at_work=1)
            await submit(world, "b")
            devices = await checked_in(world, 3)
            found = await given(devices, "a", "b")
            assert [sorted(tasks) for tasks in found] == [["a", "b"], ["b"], ["b"]]

    asyncio.run(main())


def test_tasks_that_are_asked_for_by_name_and_others_share_a_cap(kit):
    async def main():
        async with kit.world(max_at_work="2") as world:
            await submit(world)
            await world.submit(goal=MANY, name="single")
            devices = await checked_in(world, 2)
            single = world.device()
            assert await single.assignment() is not None
            assert [len(tasks) for tasks in await given(devices, "a")] == [1, 0]
            assert await world.device().assignment() is None

    asyncio.run(main())


@pytest.mark.parametrize("own", [True, False], ids=["of the task", "of the population"])
@pytest.mark.parametrize("way", ["contributes", "fails", "aborts", "expires"])
def test_who_is_done_frees_one_place_and_no_more(kit, own, way, monkeypatch):
    async def main():
        options = {} if own else {"max_at_work": "2"}
        # Nobody is overdue before its time is over.
        monkeypatch.setattr(task_factory, "FIRST_SIGN", 1.0)
        async with kit.world(assignment_timeout="60s", session_timeout="600s", **options) as world:
            task = await submit(world, max_at_work=2 if own else None)
            devices = await checked_in(world, 6)
            first = (await given(devices[:1], "a"))[0]["a"]
            world.advance(30)
            assert await given(devices[1:2], "a") != [{}]
            if way == "expires":
                world.advance(31)
            elif way == "contributes":
                await devices[0].contribute(first)
            elif way == "fails":
                await devices[0].report(first, Code.INTERNAL)
                await devices[0].report(first, Code.INTERNAL)
            else:
                ticket = await devices[0].start_upload(first)
                await devices[0].abort(first, ticket)
            assert (await world.status(task)).pending == 1
            assert [bool(tasks) for tasks in await given(devices[2:], "a")] == [
                True,
                False,
                False,
                False,
            ]
            assert (await world.status(task)).pending == 2

    asyncio.run(main())


def test_who_asks_again_takes_no_second_place(kit):
    async def main():
        async with kit.world(max_at_work="2") as world:
            task = await submit(world)
            one, two, three = await checked_in(world, 3)
            for _ in range(4):
                (tasks,) = await given([one], "a")
                assert sorted(tasks) == ["a"]
            assert (await world.status(task)).pending == 1
            assert [len(tasks) for tasks in await given([two, three], "a")] == [1, 0]

    asyncio.run(main())
