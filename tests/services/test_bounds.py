"""How many sessions a server keeps, and how many devices may wait."""

import asyncio

import pytest

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.services import assignments


def test_waiting_devices_are_bounded(kit, monkeypatch):
    monkeypatch.setattr(assignments, "MOST_WAITING", 2)

    async def main():
        options = {"selection": "uniform", "selection__uniform__window": "5s"}
        async with kit.world(session_timeout="60s", **options) as world:
            await world.submit(goal=3)
            devices = [world.device() for _ in range(3)]
            for device in devices:
                await device.check_in()
            operations = [await device.start() for device in devices[:2]]
            with pytest.raises(StatusError, match="2 devices wait already") as caught:
                await devices[2].start()
            assert caught.value.code is Code.UNAVAILABLE
            # Those that wait ask again, which takes no place.
            assert await devices[0].start() == operations[0]
            assert world.services.counts()["waiting"] == 2
            await devices[0].cancel(operations[0].name)
            operations.append(await devices[2].start())
            assert not operations[2].done
            world.advance(5)
            for device, operation in zip(devices[1:], operations[1:], strict=True):
                answer = device.answer(await device.poll(operation.name))
                assert answer.HasField("task_assignment")
            # Who has a task waits no more, and neither does who was rejected or has expired.
            await devices[0].check_in()
            assert not (await devices[0].start()).done
            world.advance(60)
            assert world.services.counts()["waiting"] == 0

    asyncio.run(main())


def test_sessions_are_bounded(kit):
    async def main():
        async with kit.world(max_sessions="2", session_timeout="60s", task_deadline="3h") as world:
            await world.submit(goal=9)
            devices = [world.device() for _ in range(2)]
            for device in devices:
                await device.check_in()
            # The oldest one makes room, and is answered as after a restart.
            third = world.device()
            await third.check_in()
            for _ in range(2):
                answer = devices[0].answer(await devices[0].start())
                assert answer.HasField("rejection_info")
            assert devices[1].answer(await devices[1].start()).HasField("task_assignment")
            assert world.services.counts()["sessions"] == 2
            # They are kept for a while after they expired: a late poll finds its answer.
            world.advance(61)
            assert world.services.counts()["sessions"] == 2
            await world.device().check_in()
            world.advance(3661)
            assert world.services.counts()["sessions"] == 0

    asyncio.run(main())


def test_devices_that_wait_keep_their_sessions(kit):
    async def main():
        options = {"selection": "uniform", "selection__uniform__window": "5s"}
        async with kit.world(max_sessions="2", **options) as world:
            await world.submit(goal=9)
            devices = [world.device() for _ in range(2)]
            for device in devices:
                await device.check_in()
            operations = [await device.start() for device in devices]
            with pytest.raises(StatusError, match="2 devices have a session and wait") as caught:
                await world.device().check_in()
            assert caught.value.code is Code.UNAVAILABLE
            world.advance(5)
            for device, operation in zip(devices, operations, strict=True):
                answer = device.answer(await device.poll(operation.name))
                assert answer.HasField("task_assignment")
            await world.device().check_in()

    asyncio.run(main())
