"""Tasks on a storage that fails, hangs or loses its answer."""

import asyncio

import pytest

from fcp_core.plugins import hookimpl
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import TaskState
from fcp_core.server.services import writes
from fcp_core.storage.contract import StorageError, StorageFactory
from fcp_core.storage.records import ShardRecord
from fcp_plugins.storage_memory import MemoryStorage
from tests.services.worlds import stored, until


def test_a_full_disk_does_not_cost_a_task_its_result(kit, troubled):
    """The engine has its time after the deadline again, once something can be stored."""
    storage, world_of = troubled

    async def main():
        async with world_of() as world:
            task = await world.submit(goal=2, minimum_count=1, deadline=60)
            storage.fault = "before"
            contributing = asyncio.create_task(world.device().run())
            await until(lambda: world.services.store.writes.trouble())
            for _ in range(3):
                world.advance(1000)
                assert (await world.status(task)).state is TaskState.CLOSING
            storage.fault = ""
            assert await contributing
            assert await world.result(task) == [1, 1]

    asyncio.run(main())


class Troubled(MemoryStorage):
    """Lasts as long as this object; fails, loses answers or hangs when it is told to."""

    durable = True

    def __init__(self):
        super().__init__()
        self.fault = ""
        self.refuses = lambda tx: True
        self.going_on = asyncio.Event()

    async def start(self):
        self.going_on.set()

    async def transact(self, body):
        await self.going_on.wait()

        def watched(tx):
            found = body(tx)
            if self.fault == "before" and self.refuses(tx):
                raise StorageError("the disk is full")
            return found

        found = await super().transact(watched)
        if self.fault == "after":
            self.fault = ""
            raise StorageError("no answer within 30 s")
        return found

    def factory(self):
        return StorageFactory("troubled", "fails", lambda options: self)


def writes_an_end(tx):
    return any(record.finished for record in tx._writes["task"].values() if record)


@pytest.fixture
def troubled(kit):
    """Return a way to start services on one storage that can be told to fail."""
    storage = Troubled()

    class Plugin:
        @hookimpl
        def fcp_register_storages(self):
            return [storage.factory()]

    return storage, lambda **more: kit.world(extra=[Plugin()], storage="troubled", **more)


@pytest.mark.parametrize("ends", ["completes", "is cancelled", "restarts", "is killed"])
def test_an_end_that_cannot_be_stored_is_stored_later(kit, troubled, ends):
    storage, world_of = troubled

    async def main():
        async with world_of() as world:
            task = await world.submit(goal=2)
            assert await world.device().run()
            storage.refuses, storage.fault = writes_an_end, "before"
            assert await world.device().run()
            await until(lambda: world.services.store.writes.trouble())
            status = await world.status(task)
            assert (status.state, status.contributed) == (TaskState.CLOSING, 2)
            assert status.error is None
            assert "the end of task sum cannot be stored: the disk is full" in status.problem
            assert "the disk is full" in await world.services.problem()
            with pytest.raises(StatusError, match="the disk is full") as caught:
                await world.device().check_in()
            assert caught.value.code is Code.UNAVAILABLE
            if ends == "is cancelled":
                # It is too late for that: it has a result.
                await world.services.tasks.cancel(task, "no patience")
            if ends in ("completes", "is cancelled"):
                storage.fault = ""
                assert await world.result(task) == [0b11, 2]
                assert await world.services.problem() == ""
            if ends == "is killed":
                storage.going_on.clear()  # nothing is written any more
                for running in [*world.services.tasks._running.values()]:
                    running._finishing.cancel()
        storage.fault = ""
        async with world_of() as world:
            assert await world.result(task) == [0b11, 2]
            assert (await world.status(task)).state is TaskState.COMPLETED

    asyncio.run(main())


def test_an_answer_that_was_lost_changes_nothing(kit, troubled):
    """The storage committed although it says that it did not: the submission, a shard, the end."""
    storage, world_of = troubled

    async def main():
        async with world_of() as world:
            task = await world.submit(goal=2)
            storage.fault = "after"
            assert await world.device().run()
            assert storage.fault == ""
            assert len(await stored(world, ShardRecord)) == 1
            second = world.device()
            held = await second.assignment()
            ticket = await second.start_upload(held)
            await second.upload(ticket)
            storage.refuses = writes_an_end
            await second.submit(held, ticket)
            storage.fault = "after"
            assert await world.result(task) == [0b11, 2]
        async with world_of() as world:
            assert await world.result(task) == [0b11, 2]

    asyncio.run(main())


def test_a_storage_that_hangs_turns_devices_away(kit, troubled, monkeypatch):
    monkeypatch.setattr(writes, "SLOW", 0.05)
    storage, world_of = troubled

    async def main():
        async with world_of() as world:
            task = await world.submit(goal=2)
            storage.going_on.clear()
            contributing = asyncio.create_task(world.device().run())
            await until(lambda: world.services.store.writes.trouble())
            problem = await world.services.problem()
            assert "contributions to task sum: not written after" in problem
            assert await kit.code_of(world.device().check_in()) is Code.UNAVAILABLE
            assert (await world.status(task)).contributed == 0
            storage.going_on.set()
            assert await contributing
            assert await world.services.problem() == ""
            world.devices = 1
            assert await world.device().run()
            assert await world.result(task) == [0b11, 2]

    asyncio.run(main())


def test_what_waits_to_be_stored_holds_no_bytes(kit, troubled):
    """Its bytes are in the aggregate: there is room for others, and devices are let in."""
    storage, world_of = troubled

    async def main():
        async with world_of(max_in_flight=300) as world:
            task = await world.submit(goal=2, over_selection=2.0)
            storage.going_on.clear()
            device = world.device()
            held = await device.assignment()
            ticket = await device.start_upload(held)
            await device.upload(ticket)
            assert 150 < world.services.media._memory.held < 300
            contributing = asyncio.create_task(device.submit(held, ticket))
            await until(lambda: not world.services.media._memory.held)
            other = asyncio.create_task(world.device().run())
            await until(lambda: world.services.tasks._running[task].machine._accumulating == 2)
            assert not contributing.done()
            storage.going_on.set()
            await contributing
            assert await other
            assert await world.result(task) == [0b11, 2]

    asyncio.run(main())


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_is_large_counts_until_it_is_stored(kit, troubled, monkeypatch, cancelled):
    """Else the next one would come while this one's sum is in memory beside the sum of all."""
    storage, world_of = troubled
    monkeypatch.setattr("fcp_core.server.services.task_shell.LARGE", 100)

    async def main():
        async with world_of() as world:
            task = await world.submit(goal=1)
            storage.going_on.clear()
            device = world.device()
            held = await device.assignment()
            ticket = await device.start_upload(held)
            await device.upload(ticket)
            contributing = asyncio.create_task(device.submit(held, ticket))
            await until(lambda: world.services.media.storing > 100)
            assert not world.services.media.held
            if cancelled:
                world.services.tasks._running[task].cancel(Code.CANCELLED, "enough")
            else:
                storage.going_on.set()
                await contributing
            await until(lambda: not world.services.media.storing)
            storage.going_on.set()
            await asyncio.gather(contributing, return_exceptions=True)

    asyncio.run(main())
