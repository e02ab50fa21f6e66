"""Results with noise: drawn once, stored with what was booked, or neither."""

import asyncio
import gzip
from dataclasses import dataclass

import numpy as np
import pytest

from fcp_aggregators.vector import SumAccumulator
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.release import Noise, Promise, Randomised, Release, Resumed
from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.ledger import Ledger, ReleaseRefusedError
from fcp_core.rounds.tasks import TaskState
from fcp_core.storage.records import AccountRecord, BlobRecord, EntryRecord, TaskRecord
from tests.services.worlds import stored

NAME = "noisy_sum"


class NoisySum(SumAccumulator, Randomised):
    """Adds a number that no two draws share, and counts the rounds of its series."""

    def promise(self, context):
        return Promise({"cost": 1}, (Noise("intermediate_update/0/0", "toy", 2.0),))

    def release(self, context):
        noise = int.from_bytes(context.entropy(4), "big") << 10
        round_number = int(context.state or b"0") + 1
        (total,) = self.report()
        return Release([total + noise], self.promise(context), str(round_number).encode())


def make(intrinsic, options):
    return NoisySum(intrinsic, options)


def load(intrinsic, options, data):
    return NoisySum.load(intrinsic, options, data)


def resume(options, state):
    return Resumed({}, {"round": np.array(int(state or b"0"), np.int64)})


FACTORY = AggregatorFactory(
    NAME,
    frozenset({"federated_sum"}),
    "a sum with noise",
    make,
    load,
    randomised=True,
    resume=resume,
)


class ToyLedger(Ledger):
    """Allows so many releases."""

    name = "toy"
    summary = "counts"

    def __init__(self, most):
        self.most = most
        self.seen = []

    def accounts(self, planned):
        return [f"toy/{planned.spec.population}"]

    def check(self, planned, accounts, others):
        if planned.exact:
            yield f"{planned.exact} has no noise."

    def book(self, planned, accounts):
        ((name, account),) = accounts.items()
        spent = int(account.data or b"0") + sum(cost["cost"] for cost in planned.costs)
        if spent > self.most:
            raise ReleaseRefusedError("the budget is used up.")
        return {name: str(spent).encode()}

    def booked(self, population, accounts):
        self.seen.append({name: account.version for name, account in accounts.items()})
        return {"toy_spent": sum(float(account.data) for account in accounts.values())}


@dataclass
class Plugin:
    ledger: ToyLedger

    @hookimpl
    def fcp_register_aggregators(self):
        return [FACTORY]

    @hookimpl
    def fcp_register_ledgers(self):
        return [self.ledger]


@pytest.fixture
def start(kit, tmp_path):
    def start(most=100, **overrides):
        chosen = {"storage": "sqlite", "storage__sqlite__path": str(tmp_path / "fcp.sqlite")}
        return kit.world(extra=[Plugin(ToyLedger(most))], **{**chosen, **overrides})

    return start


def spec(**fields):
    checkpoint = write_checkpoint({"x": np.zeros(1, np.float32)}, "tf_v1")
    return {"aggregators": {"federated_sum": NAME}, "checkpoint": checkpoint, **fields}


async def fetched(world, resource):
    """Fetch a resource that has an address, as a device does."""
    download = await world.services.media.download(resource.uri.partition("/data/")[2])
    return gzip.decompress(download.data)


async def round_of(world):
    task = await world.submit(goal=1, **spec())
    assert await world.device().run()
    return task, await world.result(task)


def test_a_result_is_drawn_stored_and_booked_at_once(start):
    async def main():
        async with start() as world:
            task, (total, ones) = await round_of(world)
            assert (total - 1) % 1024 == 0
            assert ones != 1
            status = await world.status(task)
            assert status.release == {
                "costs": [{"cost": 1}],
                "noise": [{"output": "intermediate_update/0/0", "mechanism": "toy", "stddev": 2.0}],
            }
            (entry,) = await stored(world, EntryRecord)
            assert (entry.task_id, entry.accounts) == (task, {"toy/phones/all": 1})
            accounts = {a.account: a.data for a in await stored(world, AccountRecord)}
            assert accounts == {
                "toy/phones/all": b"1",
                f"series/phones/all/sum/{NAME}/0": b"1",
            }
            assert world.services.tasks._plugins.ledgers[0].seen == [{"toy/phones/all": 1}]
            (event,) = world.recorder.of("Released")
            assert (event.task_name, event.figures) == ("sum", {"toy_spent": 1.0})
            result = await world.result(task)
        async with start() as world:
            assert await world.result(task) == result
            assert (await world.status(task)).release == status.release

    asyncio.run(main())


def test_what_a_budget_does_not_allow_is_dropped(start):
    async def main():
        async with start(most=1) as world:
            await round_of(world)
            task = await world.submit(goal=1, **spec())
            assert await world.device().run()
            with pytest.raises(StatusError, match="used up") as caught:
                await world.result(task)
            assert caught.value.code is Code.FAILED_PRECONDITION
            status = await world.status(task)
            assert (status.state, status.release) == (TaskState.FAILED, None)
            assert f"{task}/result" not in [b.name for b in await stored(world, BlobRecord)]
            assert len(await stored(world, EntryRecord)) == 1

    asyncio.run(main())


def test_a_ledger_refuses_a_task_when_it_is_submitted(start):
    async def main():
        async with start() as world:
            with pytest.raises(StatusError, match="has no noise") as caught:
                await world.submit(goal=1)
            assert caught.value.code is Code.INVALID_ARGUMENT
            assert await stored(world, TaskRecord) == []

    asyncio.run(main())


def test_a_series_goes_on_where_it_was_and_tells_its_devices(start):
    async def main():
        for number in range(3):
            async with start() as world:
                task = await world.submit(goal=1, **spec())
                device = world.device()
                held = await device.assignment()
                checkpoint = open_checkpoint(await fetched(world, held.init_checkpoint))
                assert checkpoint["round"] == number
                assert checkpoint["x"].tolist() == [0]
                with pytest.raises(StatusError, match=r"series .* open"):
                    await world.submit(goal=1, **spec())
                ticket = await device.start_upload(held)
                await device.upload(ticket)
                await device.submit(held, ticket)
                await world.result(task)

    asyncio.run(main())


def test_a_task_that_was_open_is_drawn_after_the_restart(start):
    async def main():
        async with start() as world:
            task = await world.submit(goal=2, **spec())
            assert await world.device().run()
        async with start() as world:
            world.devices = 1
            assert await world.device().run()
            total, _ = await world.result(task)
            assert total % 1024 == 0b11

    asyncio.run(main())


@pytest.mark.parametrize("gone", [EntryRecord, AccountRecord])
def test_a_ledger_that_is_older_than_the_results_is_noticed(start, gone):
    async def main():
        async with start() as world:
            await round_of(world)
            records = await stored(world, gone)

            def body(tx):
                for record in records:
                    tx.delete(gone, record.key)

            await world.services._storage.transact(body)
        with pytest.raises(UsageError, match=r"ledger.* older"):
            async with start():
                pass

    asyncio.run(main())


def test_of_two_results_that_were_drawn_the_first_that_was_stored_counts(start):
    """As if the answer of the storage had been lost, and another member had ended the task."""

    async def main():
        async with start() as world:
            store = world.services.store
            end = store.end
            first = []

            async def twice(record, result, booking=None):
                first.append((await end(record, b"the first", booking)).result)
                return await end(record, result, booking)

            store.end = twice
            task = await world.submit(goal=1, **spec())
            assert await world.device().run()
            assert await world.services.tasks.wait(task) == b"the first"
            assert first == [b"the first"]
            assert len(await stored(world, EntryRecord)) == 1

    asyncio.run(main())
