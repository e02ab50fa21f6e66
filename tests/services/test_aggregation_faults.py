"""Aggregators, engines and storages that break their contract: every task ends."""

import asyncio
from concurrent.futures import Future

import pytest

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import EngineFactory
from fcp_core.aggregation.local import LocalEngine
from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import TaskState
from fcp_core.storage.contract import StorageFactory
from fcp_plugins.storage_memory import MemoryStorage
from tests.services.faults import (
    DEADLINE,
    failed,
    interrupts,
    offering,
    raises,
    raises_unreadable,
)

(SUM,) = (f for f in fcp_register_aggregators() if f.name == "federated_sum")


def aggregating(load=None, **wrong):
    """Return a plugin with an aggregator that sums, but for some methods."""

    def make(intrinsic, options):
        made = SUM.make(intrinsic, options)
        kind = type("Bad", (type(made),), {"additions": lambda self: None, **wrong})
        made.__class__ = kind
        return made

    factory = AggregatorFactory("bad", SUM.uris, "faulty", make, load or SUM.load)
    return offering("fcp_register_aggregators", factory)


def test_what_is_no_aggregator_is_named_at_submission(kit):
    factory = AggregatorFactory("bad", SUM.uris, "faulty", lambda *_: None, SUM.load)

    async def main():
        async with kit.world(
            extra=[offering("fcp_register_aggregators", factory)], aggregator="bad"
        ) as world:
            with pytest.raises(
                StatusError, match=r"'bad' failed \(make\): TypeError: it is None, which is no Acc"
            ):
                await world.submit()

    asyncio.run(main())


def test_an_aggregator_that_cannot_be_made_is_named_at_submission(kit):
    factory = AggregatorFactory("bad", SUM.uris, "faulty", raises, raises)

    async def main():
        async with kit.world(
            extra=[offering("fcp_register_aggregators", factory)], aggregator="bad"
        ) as world:
            with pytest.raises(
                StatusError, match=r"task sum: the aggregator 'bad' failed \(make"
            ) as e:
                await world.submit()
            assert e.value.code is Code.INVALID_ARGUMENT
            assert "RuntimeError: planted" in e.value.message

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (raises, "RuntimeError: planted"),
        (interrupts, "KeyboardInterrupt: planted"),
        (raises_unreadable, "Unreadable, which has no message that can be read"),
    ],
)
def test_an_aggregator_that_fails_to_accumulate_ends_the_task_at_once(kit, served, wrong, fault):
    async def main():
        async with kit.world(extra=[aggregating(accumulate=wrong)], aggregator="bad") as world:
            task = await world.submit(goal=3)
            assert await kit.code_of(world.device().run()) is Code.INTERNAL
            name = f"the aggregator 'bad' failed (accumulate): {fault}"
            await failed(world, task, Code.INTERNAL, name)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"load": raises}, "failed (load): RuntimeError: planted"),
        (
            {"load": lambda *_: None},
            "failed (load): TypeError: it is None, which is no Accumulator",
        ),
        (
            {"merge": raises, "validate_merge": lambda *_: None},
            "failed (merge): RuntimeError: planted",
        ),
        ({"validate_merge": raises}, "failed (validate_merge): RuntimeError: planted"),
    ],
)
def test_an_aggregator_that_fails_with_what_is_to_be_stored_ends_the_task(
    kit, sqlite, wrong, fault
):
    async def main():
        plugin = aggregating(**wrong)
        async with sqlite(extra=[plugin], aggregator="bad", durability="contribution") as world:
            task = await world.submit(goal=3)
            run = asyncio.wait_for(world.device().run(), 30)
            assert await kit.code_of(run) is Code.INTERNAL
            await failed(world, task, Code.INTERNAL, f"the aggregator 'bad' {fault}")

    asyncio.run(main())


def test_an_aggregator_that_fails_to_validate_costs_the_devices_only(kit):
    async def main():
        async with kit.world(
            extra=[aggregating(validate=raises)], aggregator="bad", task_deadline=f"{DEADLINE}s"
        ) as world:
            task = await world.submit(goal=3)
            for _ in range(2):
                assert await kit.code_of(world.device().run()) is Code.INTERNAL
            assert (await world.status(task)).state is TaskState.OPEN
            world.advance(DEADLINE)
            name = "2 x submit INTERNAL: the aggregator 'bad' failed (validate): RuntimeError"
            await failed(world, task, Code.DEADLINE_EXCEEDED, name)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        (raises, "failed (report): RuntimeError: planted"),
        (lambda self: None, "failed (report): TypeError"),
        (lambda self: [], "reports 0 tensors"),
        (lambda self: [None], "reports string[] for"),
        (lambda self: ["x"], "reports <U1[] for"),
    ],
)
def test_an_aggregator_that_reports_what_it_may_not_fails_the_task(kit, report, fault):
    async def main():
        async with kit.world(extra=[aggregating(report=report)], aggregator="bad") as world:
            task = await world.submit(goal=1)
            assert await world.device().run()
            await failed(world, task, Code.INTERNAL, "aggregator 'bad'", fault)

    asyncio.run(main())


def engine(**wrong):
    """Return a plugin with a local engine whose folds have some methods replaced."""

    class Engine(LocalEngine):
        def open(self, job, partials=()):
            fold = super().open(job, partials)
            for name, method in wrong.items():
                setattr(fold, name, method)
            return fold

    factory = EngineFactory("bad", "faulty", lambda aggregators, options: Engine(aggregators, 0))
    return offering("fcp_register_engines", factory)


@pytest.mark.parametrize("method", ["add", "report"])
def test_an_engine_that_never_answers_does_not_keep_a_task(kit, method):
    async def main():
        async with kit.world(
            extra=[engine(**{method: lambda *_: Future()})],
            engine="bad",
            task_deadline=f"{DEADLINE}s",
        ) as world:
            task = await world.submit(goal=1)
            running = asyncio.create_task(kit.code_of(world.device().run()))
            await kit.settle()
            world.advance(DEADLINE)
            assert (await world.status(task)).state is TaskState.CLOSING
            world.advance(600)
            names = "the engine bad (aggregators: federated_sum) until 600 s after its deadline"
            await failed(world, task, Code.DEADLINE_EXCEEDED, names)
            # It was no fault of the device: nothing sends it away.
            assert await running is Code.OK

    asyncio.run(main())


@pytest.mark.parametrize("report", [raises, lambda *_: None, lambda *_: done(None)])
def test_an_engine_that_reports_garbage_fails_the_task(kit, report):
    async def main():
        aborted = []

        def abort():
            aborted.append(True)
            if len(aborted) == 1:
                raises()

        async with kit.world(extra=[engine(report=report, abort=abort)], engine="bad") as world:
            task = await world.submit(goal=1)
            assert await world.device().run()
            await failed(world, task, Code.INTERNAL, "the engine bad", "gave no result")
            assert aborted

    asyncio.run(main())


class Slow(LocalEngine):
    """Starts and stops in its own time."""

    #: What it did, in order.
    did = ()
    fault = None

    def start(self):
        super().start()
        return self.later("started")

    def stop(self):
        super().stop()
        return self.later("stopped")

    async def later(self, what):
        await asyncio.sleep(0)
        if what == "started" and self.fault is not None:
            raise self.fault
        self.did = (*self.did, what)

    def open(self, job, partials=()):
        self.did = (*self.did, "opened")
        return super().open(job, partials)


def test_an_engine_may_start_and_stop_in_its_own_time(kit):
    made = []

    def make(aggregators, options):
        made.append(Slow(aggregators, 0))
        return made[-1]

    plugin = offering("fcp_register_engines", EngineFactory("slow", "takes its time", make))

    async def main():
        async with kit.world(extra=[plugin], engine="slow") as world:
            task = await world.submit(goal=1)
            await world.device().run()
            assert await world.result(task) == [1, 1]
        assert made[0].did == ("started", "opened", "stopped")
        Slow.fault = UsageError("no cluster")
        with pytest.raises(UsageError, match="no cluster"):
            async with kit.world(extra=[plugin], engine="slow"):
                raise AssertionError("it started")

    try:
        asyncio.run(main())
    finally:
        Slow.fault = None


def done(result):
    future = Future()
    future.set_result(result)
    return future


@pytest.mark.parametrize("add", [raises, lambda *_: None])
def test_an_engine_that_cannot_add_tells_the_device(kit, add):
    async def main():
        async with kit.world(
            extra=[engine(add=add)], engine="bad", task_deadline=f"{DEADLINE}s"
        ) as world:
            task = await world.submit(goal=1)
            assert await kit.code_of(world.device().run()) is Code.INTERNAL
            world.advance(DEADLINE)
            await failed(world, task, Code.DEADLINE_EXCEEDED, "the aggregation engine failed")

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [raises, lambda *_: None])
def test_a_task_that_stores_goes_on_after_its_engine_could_not_add(kit, sqlite, wrong):
    class Engine(LocalEngine):
        failed = False

        def open(self, job, partials=()):
            fold = super().open(job, partials)
            add = fold.add

            def once_wrong(*args):
                before, Engine.failed = Engine.failed, True
                return add(*args) if before else wrong(*args)

            fold.add = once_wrong
            return fold

    factory = EngineFactory("bad", "faulty", lambda aggregators, options: Engine(aggregators, 0))

    async def main():
        plugin = offering("fcp_register_engines", factory)
        async with sqlite(extra=[plugin], engine="bad", durability="contribution") as world:
            task = await world.submit(goal=1)
            assert await kit.code_of(world.device().run()) is Code.INTERNAL
            assert await asyncio.wait_for(world.device().run(), 30)
            assert await world.result(task) == [2, 1]

    asyncio.run(main())


def test_a_storage_that_never_takes_a_result_is_named(kit):
    class Storage(MemoryStorage):
        async def transact(self, function):
            def small(tx):
                found = function(tx)
                if any(name.endswith("/result") for name in tx._writes["blob"]):
                    raise StatusError(Code.RESOURCE_EXHAUSTED, "that is too large")
                return found

            return await super().transact(small)

    factory = StorageFactory("bad", "faulty", lambda options: Storage())

    async def main():
        async with kit.world(
            extra=[offering("fcp_register_storages", factory)], storage="bad"
        ) as world:
            task = await world.submit(goal=1)
            assert await world.device().run()
            names = "the storage bad does not take the end of task sum: that is too large"
            await failed(world, task, Code.INTERNAL, names)

    asyncio.run(main())
