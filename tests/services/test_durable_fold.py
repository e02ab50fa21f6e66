"""A fold over a storage that fails before or after it writes: nothing is lost, nothing twice."""

import asyncio
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob
from fcp_core.aggregation.local import LocalEngine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.services import stored_whole, writes
from fcp_core.server.services.durable_fold import DurableFold
from fcp_core.server.services.store import TaskStore
from fcp_core.storage.contract import ChangedError, StorageError
from fcp_core.storage.records import TaskRecord
from fcp_core.testing.engine_aggregators import AGGREGATORS
from fcp_plugins.storage_memory import MemoryStorage

X = TensorSpec("x", DataType.INT64, (2,))
#: Its whole is as large as a delta, so that each write is of a total.
SUM = Intrinsic("kit_sum", (X,), (TensorSpec("sum", DataType.INT64, (2,)),))
#: Its whole grows, so that deltas are written beside it.
ALL = Intrinsic("kit_all", (X,), (TensorSpec("all", DataType.INT64, (-1,)),))


def job(*intrinsics):
    return FoldJob(configuration_to_proto(intrinsics).SerializeToString())


JOB = job(SUM)
RECORD = TaskRecord("t", "p", "task", "open", "a", b"", 0.0)

FAULTS = st.lists(st.sampled_from(["before", "after", "late"]), max_size=3)


def blob(number):
    return write_checkpoint({"x": np.array([1 << number, 1], np.int64)}, "tf_v1")


class Faulty(MemoryStorage):
    """Fails as often as it is told, before or after it writes; some writes happen later."""

    durable = True

    def __init__(self):
        super().__init__()
        self.faults = []
        #: For the merges of shards, which are rarer.
        self.merge_faults = []
        self.late = []

    async def transact(self, body):
        await asyncio.sleep(0)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "late":
            self.late.append(body)
        elif fault == "after":
            await super().transact(body)
        if fault is not None:
            raise StorageError(f"it fails: {fault}")
        return await super().transact(body)

    async def happen(self):
        """Let the writes happen whose outcome nobody waited for."""
        late, self.late = self.late, []
        for body in late:
            with suppress(StatusError, ChangedError):
                await super().transact(body)


class _Store(TaskStore):
    async def add_shard(self, shard, pieces, name, total=None):
        faults = self._storage.merge_faults
        if faults and total is not None:
            self._storage.faults.insert(0, faults.pop(0))
        return await super().add_shard(shard, pieces, name, total)


class Machine(RuleBasedStateMachine):
    """Devices contribute powers of two, and come again with what was not answered OK."""

    JOB = JOB

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.storage = Faulty()
        self.answered = set()
        self.waiting = {}
        self.next = 0

    @initialize()
    def begin(self):
        self.run(self.storage.transact(lambda tx: tx.put(RECORD)))
        self.run(self.start())

    def run(self, work):
        return self.loop.run_until_complete(work)

    async def start(self):
        self.engine = LocalEngine(AGGREGATORS, workers=0)
        self.engine.start()
        self.store = _Store(self.storage)
        stored = await self.store.shards("t")
        self.fold = DurableFold("t", "task", self.open, self.store, stored)
        return stored

    def open(self, partials):
        return self.engine.open(self.JOB, partials)

    @rule(numbers=st.lists(st.booleans(), min_size=1, max_size=4), good=st.booleans())
    def contribute(self, numbers, good):
        """Several devices at once, new ones or such as were not answered."""

        async def add():
            for again in numbers:
                known = sorted(set(range(self.next)) - set(self.waiting))
                number = known[0] if again and known else self.next
                self.next = max(self.next, number + 1)
                future = self.fold.add(str(number), blob(number) if good else b"bad")
                if number in self.answered:
                    assert future.exception().code is Code.ALREADY_EXISTS
                else:
                    self.waiting[number] = future

        self.run(add())

    @rule(faults=FAULTS)
    def fail(self, faults):
        self.storage.faults += faults

    @rule(faults=FAULTS)
    def fail_to_merge(self, faults):
        self.storage.merge_faults += faults

    @rule(steps=st.integers(0, 30))
    def wait(self, steps):
        async def wait():
            for _ in range(steps):
                await asyncio.sleep(0)

        self.run(wait())
        self.look()

    @rule()
    def happen(self):
        self.run(self.storage.happen())

    @rule()
    def crash(self):
        """Everything in memory is gone; writes that nobody waited for happen, or not."""

        async def crash():
            self.look()
            self.fold.abort()
            self.engine.stop()
            self.waiting = {}
            await asyncio.sleep(0)
            self.storage.faults, self.storage.merge_faults = [], []
            await self.storage.happen()
            stored = {int(number) for number in (await self.start()).contributions}
            assert self.answered <= stored, "what was answered is lost"
            # A device that was not answered and counts is told so when it asks again.
            self.answered = stored

        self.run(crash())

    @rule()
    def check(self):
        """What is stored is each contribution that was answered, and none twice."""

        async def check():
            self.storage.faults, self.storage.merge_faults = [], []
            await asyncio.wait_for(self.fold._written(), 30)
            self.look()
            assert not self.waiting
            await self.storage.happen()
            stored = await self.store.shards("t")
            assert sorted(map(int, stored.contributions)) == sorted(self.answered)
            whole = self.open(stored.partials)
            report = open_checkpoint(whole.report().result()).get_tensor("sum").tolist()
            assert report == [sum(1 << n for n in self.answered), len(self.answered)]
            memory = (await asyncio.wrap_future(self.fold.partial())).contributions
            assert sorted(memory) == sorted(stored.contributions)

        self.run(check())

    @invariant()
    def nothing_is_answered_before_it_is_stored(self):
        self.look()

    def look(self):
        for number, future in list(self.waiting.items()):
            if future.done():
                del self.waiting[number]
                if future.exception() is None:
                    self.answered.add(number)

    def teardown(self):
        if hasattr(self, "fold"):
            self.check()
            self.run(self.finish())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()

    async def finish(self):
        report = await asyncio.wait_for(asyncio.wrap_future(self.fold.report()), 30)
        total = open_checkpoint(report).get_tensor("sum").tolist()
        assert total == [sum(1 << n for n in self.answered), len(self.answered)]
        self.engine.stop()


class Growing(Machine):
    """The same with an aggregate that grows."""

    JOB = job(SUM, ALL)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Machine, Growing])
def test_whatever_the_storage_does_each_answer_is_kept_once(monkeypatch, machine):
    monkeypatch.setattr(stored_whole, "FAN_IN", 3)
    monkeypatch.setattr(writes, "_FIRST_PAUSE", 0.0)
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )


@pytest.mark.parametrize("when", ["at once", "after the next merge"])
def test_a_merge_that_was_given_up_for_lost_happens_all_the_same(monkeypatch, when):
    monkeypatch.setattr(stored_whole, "FAN_IN", 2)

    async def main():
        storage = Faulty()
        await storage.transact(lambda tx: tx.put(RECORD))
        engine, store = LocalEngine(AGGREGATORS, workers=0), _Store(storage)
        engine.start()

        def begin(partials):
            return engine.open(job(SUM, ALL), partials)

        async def contribute(*numbers):
            for number in numbers:
                await asyncio.wrap_future(fold.add(str(number), blob(number)))
            await fold._written()

        async def check(count):
            stored = await store.shards("t")
            assert sorted(stored.contributions) == sorted(map(str, range(count)))
            report = begin(stored.partials).report().result()
            assert open_checkpoint(report).get_tensor("sum").tolist() == [(1 << count) - 1, count]

        fold = DurableFold("t", "task", begin, store, await store.shards("t"))
        storage.merge_faults = ["late"]
        await contribute(0, 1)
        if when == "at once":
            await storage.happen()
        await contribute(2, 3)
        await storage.happen()
        await check(4)
        await contribute(4, 5)
        await check(6)
        assert len((await store.shards("t")).unmerged) < 2, "nothing is merged any more"
        fold.abort()
        engine.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("of", "blobs"),
    [(SUM, [(0, 1)] * 6), (ALL, [(0, 1), (0, 1), (1, 1), (0, 1), (1, 1), (2, 1)])],
    ids=["as large as a delta", "growing"],
)
def test_what_is_no_larger_than_its_deltas_takes_their_place(of, blobs):
    async def main():
        storage = Faulty()
        await storage.transact(lambda tx: tx.put(RECORD))
        engine, store = LocalEngine(AGGREGATORS, workers=0), _Store(storage)
        engine.start()
        found = []

        def begin(partials):
            return engine.open(job(of), partials)

        async def run(numbers):
            fold = DurableFold("t", "task", begin, store, await store.shards("t"))
            for number in numbers:
                await asyncio.wrap_future(fold.add(str(number), blob(number)))
                stored = await store.shards("t")
                assert len(stored.contributions) == number + 1
                found.append((len(stored.unmerged), bool(stored.totals)))
            fold.abort()

        await run(range(4))
        await run(range(4, 6))  # after a restart, too
        assert found == blobs
        engine.stop()

    asyncio.run(main())


@pytest.mark.parametrize("before", [0, 2])
def test_a_total_takes_the_place_of_no_other_than_it_was_made_from(before):
    """Seen in the simulation: a write that was given up for lost happened after the next start."""

    async def main():
        storage = Faulty()
        await storage.transact(lambda tx: tx.put(RECORD))
        engine, store = LocalEngine(AGGREGATORS, workers=0), _Store(storage)
        engine.start()

        def begin(partials):
            return engine.open(JOB, partials)

        async def contribute(fold, *numbers):
            for number in numbers:
                await asyncio.wrap_future(fold.add(str(number), blob(number)))

        first = DurableFold("t", "task", begin, store, await store.shards("t"))
        await contribute(first, *range(before))
        second = DurableFold("t", "task", begin, store, await store.shards("t"))
        await contribute(first, before)
        await contribute(second, before + 1, before + 2)
        stored = await store.shards("t")
        count = before + 3
        assert sorted(stored.contributions) == sorted(map(str, range(count)))
        report = begin(stored.partials).report().result()
        assert open_checkpoint(report).get_tensor("sum").tolist() == [(1 << count) - 1, count]
        engine.stop()

    asyncio.run(main())


def test_an_aggregate_that_is_full_takes_no_more_and_keeps_what_it_has():
    """A group-by has as many groups as it may: those in deltas are found out when they merge."""
    column = TensorSpec("k", DataType.INT64, (-1,))
    spec = configuration_to_proto([Intrinsic("fedsql_group_by", (column,), (column,))])
    options = {"fedsql_group_by": {"max_groups": 2}}
    job = FoldJob(spec.SerializeToString(), options=options)
    factories = {factory.name: factory for factory in fcp_register_aggregators()}

    async def main():
        storage = Faulty()
        await storage.transact(lambda tx: tx.put(RECORD))
        engine, store = LocalEngine(factories, workers=0), _Store(storage)
        engine.start()

        async def contribute(*keys):
            blob = write_checkpoint({"k": np.array(keys)}, "tf_v1")
            await asyncio.wrap_future(fold.add(str(keys), blob))

        fold = DurableFold(
            "t", "task", lambda parts: engine.open(job, parts), store, await store.shards("t")
        )
        await contribute(1, 2)
        with pytest.raises(StatusError, match="there would be 3 groups") as caught:
            await contribute(3)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        await contribute(2)
        report = await asyncio.wrap_future(fold.report())
        assert open_checkpoint(report).get_tensor("k").tolist() == [1, 2]
        assert sorted((await store.shards("t")).contributions) == ["(1, 2)", "(2,)"]
        engine.stop()

    asyncio.run(main())
