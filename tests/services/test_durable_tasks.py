"""Tasks of durability "contribution": what was answered OK is there after a restart, once."""

import asyncio

import numpy as np
import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import ManualClock
from fcp_core.rounds.tasks import TaskState
from fcp_core.server.services import writes
from fcp_core.server.services.sealed import Seals, read_seals
from fcp_core.server.services.stored_whole import FAN_IN
from fcp_core.storage.contract import StorageError, StorageFactory
from fcp_core.storage.records import BlobRecord, ShardRecord, TaskRecord
from fcp_plugins.storage_memory import MemoryStorage


@pytest.fixture
def sqlite(kit, tmp_path):
    """Return a way to start services on one SQLite file."""

    def start(**overrides):
        path = str(tmp_path / "fcp.sqlite")
        return kit.world(storage="sqlite", storage__sqlite__path=path, **overrides)

    return start


def stored(world, kind):
    return world.services._storage.transact(lambda tx: list(tx.select(kind)))


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


@pytest.fixture
def median():
    """Return what a task says whose aggregator keeps every contribution."""
    intrinsic = Intrinsic(
        "federated_mean",
        (TensorSpec("update/0", DataType.FLOAT, (2,)),),
        (TensorSpec("intermediate_update/0/0", DataType.FLOAT, (2,)),),
    )
    aggregation = configuration_to_proto([intrinsic]).SerializeToString()
    return {"aggregation": aggregation, "aggregators": {"federated_mean": "median"}}


def test_an_aggregator_that_keeps_contributions_says_that_they_are_not_stored(
    kit, sqlite, caplog, median
):
    spec = median

    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=2, **spec)
            assert (await world.status(task)).durability == "round"
            assert "can only be 'round': median keeps every contribution" in caplog.text
            with pytest.raises(StatusError, match="median keeps every contribution") as caught:
                await world.submit(durability="contribution", **spec)
            assert caught.value.code is Code.INVALID_ARGUMENT

    asyncio.run(main())


def keys_file(folder, *keys):
    path = folder / "kept.keys"
    path.write_text("\n".join(keys))
    path.chmod(0o600)
    return str(path)


def test_what_an_aggregator_keeps_is_stored_encrypted(kit, sqlite, tmp_path, median):
    values = [np.array([n, -n], np.float32) + 0.1234 for n in range(20)]

    async def contribute(world, numbers):
        for number in numbers:
            device = world.device()
            held = await device.assignment()
            ticket = await device.start_upload(held)
            await device.upload(ticket, write_checkpoint({"update/0": values[number]}, "tf_v1"))
            await device.submit(held, ticket)

    async def readable(world):
        blobs = [b.data for b in await stored(world, BlobRecord) if "/shard/" in b.name]
        assert blobs
        return [n for n, value in enumerate(values) if any(value.tobytes() in b for b in blobs)]

    async def main():
        old = keys_file(tmp_path, "0a" * 32)
        async with sqlite(kept_keys_file=old) as world:
            task = await world.submit(goal=20, **median)
            assert (await world.status(task)).durability == "contribution"
            await contribute(world, range(7))
            assert await readable(world) == []
        # Another key is the first one by now, and the old one may still be needed.
        both = keys_file(tmp_path, "0b" * 32, "0a" * 32)
        async with sqlite(kept_keys_file=both) as world:
            assert (await world.status(task)).contributed == 7
            world.devices = 7
            await contribute(world, range(7, 19))
            assert await readable(world) == []
        for options in ({}, {"kept_keys_file": keys_file(tmp_path, "0c" * 32)}):
            with pytest.raises(UsageError, match="encrypted, and kept_keys_file has no key"):
                async with sqlite(**options):
                    raise AssertionError("it starts")
        both = keys_file(tmp_path, "0b" * 32, "0a" * 32)
        async with sqlite(kept_keys_file=both) as world:
            world.devices = 19
            await contribute(world, [19])
            result = open_checkpoint(await world.services.tasks.wait(task))
            (found,) = result.values()
            assert found == pytest.approx(np.median(values, axis=0))

    asyncio.run(main())


def test_encrypted_bytes_belong_to_their_name():
    one, other = Seals([b"a" * 32]), Seals([b"b" * 32, b"a" * 32])
    sealed = b"".join(one.seal("t/s", [b"some ", memoryview(b"bytes")]))
    assert b"bytes" not in sealed
    assert sealed != b"".join(one.seal("t/s", [b"some bytes"]))  # each has a nonce of its own
    assert other.unseal("t/s", sealed) == b"some bytes"
    for name, data in (("t/r", sealed), ("t/s", sealed[:-1]), ("t/s", sealed[:-1] + b"?")):
        with pytest.raises(StatusError, match="are damaged") as caught:
            other.unseal(name, data)
        assert caught.value.code is Code.DATA_LOSS
    with pytest.raises(StatusError, match="has no key for them"):
        Seals([b"b" * 32]).unseal("t/s", sealed)


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        (None, 0, "cannot be read: No such file"),
        ("0a" * 31, 0o600, "64 hexadecimal digits"),
        ("", 0o600, "64 hexadecimal digits"),
        ("\xe4", 0o600, "it is not ASCII text"),
        ("0a" * 32, 0o644, "has mode 0644"),
    ],
)
def test_a_file_with_keys_that_cannot_be_used(tmp_path, text, mode, expected):
    path = tmp_path / "kept.keys"
    if text is not None:
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
    with pytest.raises(UsageError, match=expected):
        read_seals(path)


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


async def until(true):
    async def look():
        while not true():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), 30)


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
            assert "contributions to task sum has been written for" in (
                await world.services.problem()
            )
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
            assert 150 < world.services._memory.held < 300
            contributing = asyncio.create_task(device.submit(held, ticket))
            await until(lambda: not world.services._memory.held)
            other = asyncio.create_task(world.device().run())
            await until(lambda: world.services.tasks._running[task].machine._accumulating == 2)
            assert not contributing.done()
            storage.going_on.set()
            await contributing
            assert await other
            assert await world.result(task) == [0b11, 2]

    asyncio.run(main())


def test_what_is_large_holds_its_bytes_until_it_is_stored(kit, troubled, monkeypatch):
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
            fold = world.services.tasks._running[task]._fold
            await until(lambda: fold._writer is not None)
            assert world.services._memory.held > 100
            storage.going_on.set()
            await contributing
            assert not world.services._memory.held

    asyncio.run(main())


def test_devices_are_turned_away_while_uploads_pile_up(kit, sqlite):
    async def main():
        async with sqlite(max_in_flight=300) as world:
            await world.submit(goal=9, over_selection=2.0)
            slow = world.device()
            held = await slow.assignment()
            ticket = await slow.start_upload(held)
            await slow.upload(ticket)
            assert 150 < world.services._memory.held < 300
            assert await kit.code_of(world.device().check_in()) is Code.UNAVAILABLE
            await slow.submit(held, ticket)
            assert await world.device().run()
            world.services.media.behind(True)  # so does what is not received yet
            assert await kit.code_of(world.device().check_in()) is Code.UNAVAILABLE
            world.services.media.behind(False)
            assert await world.device().run()

    asyncio.run(main())
