"""Several tasks of one population at once: devices are shared out between them."""

import asyncio

import pytest


@pytest.mark.parametrize("at_once", [False, True])
def test_two_tasks_fill_at_the_same_pace(kit, at_once):
    async def main():
        async with kit.world(over_selection="1") as world:
            first = await world.submit(goal=6, name="first")
            early = world.device()
            assert (await early.assignment()).task_name == "first"
            second = await world.submit(goal=3, name="second")
            devices = [world.device() for _ in range(8)]
            if at_once:
                tasks = [await device.assignment() for device in devices]
                for device, task in zip(devices, tasks, strict=True):
                    await device.contribute(task)
            else:
                tasks = []
                for device in devices:
                    tasks.append(await device.assignment())
                    await device.contribute(tasks[-1])
            names = [task.task_name for task in tasks]
            # The one that was not served yet comes first; the other goes on when it is full.
            assert names[:6].count("first") == names[:6].count("second") == 3
            assert names[0] != names[1]
            assert names[6:] == ["first", "first"]
            assert (await world.result(second))[1] == 3
            status = await world.services.tasks.status(first)
            assert (status.contributed, status.pending) == (5, 1)

    asyncio.run(main())
