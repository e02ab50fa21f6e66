"""What a member accumulates and stores for an owner is in the task's result once, or refused."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob, HeldBody
from fcp_core.aggregation.local import LocalEngine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.processes.member_folds import MemberFolds
from fcp_core.server.services import stored_whole
from fcp_core.server.services.durable_fold import DurableFold
from fcp_core.server.services.store import TaskStore
from fcp_core.storage.records import BlobRecord, LeaseRecord, ShardRecord, TaskRecord
from fcp_core.storage.shards import StoredShards
from fcp_core.testing.engine_aggregators import AGGREGATORS
from fcp_plugins.storage_memory import MemoryStorage

X = TensorSpec("x", DataType.INT64, (2,))
SUM = Intrinsic("kit_sum", (X,), (TensorSpec("sum", DataType.INT64, (2,)),))
JOB = FoldJob(configuration_to_proto([SUM]).SerializeToString())
RECORD = TaskRecord("t", "p", "task", "open", "a", b"", 0.0)


def blob(number):
    return write_checkpoint({"x": np.array([1 << number, 1], np.int64)}, "tf_v1")


class Disk(MemoryStorage):
    """Keeps transactions waiting as long as ``open`` is not set."""

    durable = True

    def __init__(self):
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()

    async def transact(self, body):
        await self.open.wait()
        return await super().transact(body)


class Body(HeldBody):
    def __init__(self, helper, number):
        self.helper, self.number = helper, helper.folds.keep(blob(number))

    def __len__(self):
        return 1

    def drop(self):
        self.helper.tell("drop_body", self.number)

    async def fetch(self):
        raise NotImplementedError

    async def contribute(self, stream, contribution, counts):
        await self.helper.call(stream, contribution, self.number, *counts)


class Helper:
    """A member without its process: what is told to it is done at once."""

    def __init__(self, disk, engine, epoch):
        self.gone, self.streams, self.epoch = asyncio.Event(), set(), epoch
        #: The member's own connection to the storage.
        self.disk = disk
        self.folds = MemberFolds(engine, TaskStore(disk), self.told)
        self.names = []

    def told(self, stream, what, *arguments):
        for each in self.streams:
            each.hear(what, *arguments)

    def begin_stream(self, task_id, name, population, job):
        stream = f"{self.epoch}-{len(self.names)}"
        self.names.append(stream)
        made = {"configuration": job.configuration}
        self.tell("open_stream", stream, task_id, name, self.epoch, made)
        return stream

    def tell(self, name, *arguments):
        if not self.gone.is_set():
            with pytest.raises(StopIteration):
                getattr(self.folds, name)(*arguments).send(None)

    async def call(self, *arguments):
        work = asyncio.ensure_future(self.folds.contribute(*arguments))
        lost = asyncio.ensure_future(self.gone.wait())
        await asyncio.wait((work, lost), return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        if self.gone.is_set():
            work.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise StatusError(Code.UNAVAILABLE, "it has gone")
        return work.result()

    def lose(self):
        """Break the link; the member goes on with what it is writing."""
        self.gone.set()
        for stream in list(self.streams):
            stream.end()


class Task:
    """A task whose owner and whose helper share a storage."""

    def __init__(self, disk, engine):
        self.disk, self.store, self.engine = disk, TaskStore(disk), engine
        self.fold = None
        self.folded, self.commits = [], []

    async def start(self):
        stored = await self.store.shards("t")
        begin = lambda partials: self.engine.open(JOB, partials)  # noqa: E731
        self.fold = DurableFold(
            *("t", "task", begin, self.store, stored),
            begin_stream=lambda helper: helper.begin_stream("t", "task", "p", JOB),
        )
        self.fold.on_progress(self.folded.extend, lambda *written: self.commits.append(written))
        return stored

    def at(self, helper, *numbers):
        """Contribute what a helper holds."""
        bodies = [(str(number), Body(helper, number)) for number in numbers]
        return [asyncio.wrap_future(self.fold.add_held(*each)) for each in bodies]

    async def here(self, number):
        await asyncio.wrap_future(self.fold.add(str(number), blob(number)))

    async def sum(self):
        report = await asyncio.wrap_future(self.fold.report())
        return open_checkpoint(report).get_tensor("sum").tolist()


@asynccontextmanager
async def begun(*, epoch=1):
    disk, engine = Disk(), LocalEngine(AGGREGATORS, workers=0)
    engine.start()
    lease = LeaseRecord("p", "m", 1, 0.0, 0.0)
    await disk.transact(lambda tx: (tx.put(RECORD), tx.put(lease)))
    task = Task(disk, engine)
    await task.start()
    own = Disk()
    own._tables = disk._tables  # one storage, and two ways to it
    try:
        yield task, Helper(own, engine, epoch)
    finally:
        task.fold.abort()
        engine.stop()


async def refused(futures):
    found = await asyncio.gather(*futures, return_exceptions=True)
    assert all(isinstance(each, StatusError) for each in found), found
    return {each.code for each in found}


def run(test):
    """Run a test on an event loop."""

    def wrapped():
        asyncio.run(test())

    wrapped.__doc__ = test.__doc__
    return wrapped


async def soon(condition):
    while not condition():
        await asyncio.sleep(0)


@run
async def test_what_members_store_is_in_the_result():
    async with begun() as (task, helper):
        await task.here(0)
        await asyncio.gather(*task.at(helper, 1, 2))
        assert sorted(task.folded) == ["0", "1", "2"]
        stored = await task.store.shards("t")
        assert sorted(stored.contributions) == ["0", "1", "2"]
        assert sum(count for count, _, _ in task.commits) == 3
        # Each has one total, and the owner does not write what the helper has.
        assert len(stored.totals) == 2
        assert await refused(task.at(helper, 1)) == {Code.ALREADY_EXISTS}
        assert await task.sum() == [7, 3]
        assert helper.folds._written == {}
        assert helper.folds.held == 0


@run
async def test_a_contribution_that_does_not_do_is_refused_and_all_goes_on():
    async with begun() as (task, helper):
        body = Body(helper, 0)
        helper.folds._bodies[body.number] = b"no checkpoint"
        assert await refused([asyncio.wrap_future(task.fold.add_held("0", body))]) == {
            Code.INVALID_ARGUMENT
        }
        await asyncio.gather(*task.at(helper, 0, 1))
        assert len(helper.names) == 1
        assert await task.sum() == [3, 2]


@run
async def test_a_member_that_is_lost_before_it_wrote_loses_what_it_was_writing_only():
    async with begun() as (task, helper):
        await asyncio.gather(*task.at(helper, 0))
        helper.disk.open.clear()
        waiting = task.at(helper, 1, 2)
        await soon(lambda: len(task.folded) == 3)
        helper.lose()
        assert await refused(waiting) == {Code.ABORTED}
        # It still writes, and comes too late.
        helper.disk.open.set()
        await asyncio.sleep(0.02)
        # The same devices may come again, and what is left is as before.
        await task.here(1)
        assert sorted((await task.store.shards("t")).contributions) == ["0", "1"]
        assert await task.sum() == [3, 2]


@run
async def test_a_member_that_is_lost_after_it_wrote_loses_nothing():
    async with begun() as (task, helper):
        task.disk.open.clear()
        waiting = task.at(helper, 0, 1)

        await soon(lambda: task.disk._tables[ShardRecord.KIND].records)
        assert not any(each.done() for each in waiting)
        helper.lose()
        task.disk.open.set()
        await asyncio.gather(*waiting)
        await task.here(2)
        stored = await task.store.shards("t")
        # The owner's total has taken the place of the helper's.
        assert (len(stored.contributions), len(stored.partials)) == (3, 1)
        assert await task.sum() == [7, 3]


@run
async def test_the_next_owner_finds_everything_and_the_old_one_writes_nothing():
    async with begun() as (task, helper):
        await asyncio.gather(*task.at(helper, 0))
        await task.here(1)
        taken = LeaseRecord("p", "n", 2, 0.0, 0.0)
        await task.disk.transact(lambda tx: tx.put(taken))
        assert await refused(task.at(helper, 2)) == {Code.ABORTED}
        old, task.fold = task.fold, None
        stored = await task.start()
        assert sorted(stored.contributions) == ["0", "1"]
        await task.here(2)
        assert await task.sum() == [7, 3]
        old.abort()


@run
async def test_a_task_that_is_closed_takes_nothing_of_a_member():
    async with begun() as (task, helper):
        await asyncio.gather(*task.at(helper, 0))
        ended = replace(RECORD, state="completed")
        await task.disk.transact(lambda tx: tx.put(ended))
        assert await refused(task.at(helper, 1)) == {Code.ABORTED}
        assert task.fold.closed


@run
async def test_what_was_promised_and_is_missing_is_said():
    async with begun() as (task, helper):
        await asyncio.gather(*task.at(helper, 0, 1))
        lost = []
        task.fold.on_loss(lost.append)
        (shard, *_) = await task.disk.transact(lambda tx: list(tx.select(ShardRecord)))

        def damage(tx):
            for kind in (ShardRecord, BlobRecord):
                for key in tx.keys(kind, task_id="t"):
                    tx.delete(kind, key)

        await task.disk.transact(damage)
        helper.lose()
        await soon(lambda: lost)
        assert "has lost 2 of them" in lost[0]
        assert shard.stream == helper.names[0]


def test_the_counts_of_a_task_that_is_left_are_stored_or_not_waited_for(monkeypatch):
    monkeypatch.setattr(stored_whole, "NOTING", 0.01)

    async def main():
        engine, disk, counts = LocalEngine(AGGREGATORS, workers=0), Disk(), (2, 1)
        engine.start()
        await disk.transact(lambda tx: tx.put(RECORD))
        store = TaskStore(disk)

        async def leave():
            begin = partial(engine.open, JOB)
            left = DurableFold("t", "task", begin, store, StoredShards(), lambda: counts)
            await left.flush()
            left.abort()

        disk.open.clear()
        await leave()
        disk.open.set()
        await leave()
        stored = await store.shards("t")
        assert (stored.dropped, stored.surplus) == counts
        engine.stop()

    asyncio.run(main())
