"""One server, two populations: each has its own aggregator, policies and times."""

import asyncio
import logging

import numpy as np

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import task_assignments_pb2
from fcp_core.protocol.status import Code

MEAN = configuration_to_proto(
    [
        Intrinsic(
            "federated_mean",
            (TensorSpec("value", DataType.FLOAT, (2,)),),
            (TensorSpec("result", DataType.FLOAT, (2,)),),
        )
    ]
).SerializeToString()

SETTINGS = {
    "population:steady.selection": "uniform",
    "population:steady.selection.uniform.window": "30s",
    "population:steady.aggregator": "median",
    "population:steady.retry_min": "100s",
    "population:steady.retry_max": "200s",
    "population:steady.polling_interval": "3s",
    "population:steady.eligibility": "sampling_without_replacement",
    "task:brief.task_deadline": "20s",
    "task:brief.assignment_timeout": "5s",
}
VALUES = ([1, 10], [2, 20], [60, 3000])


def body(value):
    return write_checkpoint({"value": np.array(value, np.float32)}, "tf_v1")


async def result(world, task):
    data = await asyncio.wait_for(world.services.tasks.wait(task), 30)
    return open_checkpoint(data).get_tensor("result").tolist()


def test_two_populations_use_two_aggregators_and_two_policies(kit):
    async def main():
        async with kit.world(populations=("quick", "steady"), **SETTINGS) as world:
            tasks = {
                population: await world.submit(
                    3, population=population, name="average", aggregation=MEAN
                )
                for population in ("quick", "steady")
            }
            # First come, first served: each is assigned at once, and the result is the mean.
            for value in VALUES:
                device = world.device(population="quick")
                await device.contribute(await device.assignment(), body(value))
            assert await result(world, tasks["quick"]) == [21, 1010]
            # The other draws after half a minute, evaluates eligibility, and takes the median.
            waiting = []
            for value in VALUES:
                device = world.device(population="steady")
                response = await device.check_in()
                names = [p.name for p in device.spec(response).eligibility_policies]
                assert names == ["sampling_without_replacement"]
                operation = await device.start({"average": 1.0})
                assert not operation.done
                metadata = task_assignments_pb2.StartTaskAssignmentMetadata()
                assert operation.metadata.Unpack(metadata)
                assert metadata.polling_interval.seconds == 3
                waiting.append((device, operation, value))
            world.advance(31)
            for device, operation, value in waiting:
                answer = device.answer(await device.poll(operation.name))
                await device.contribute(answer.task_assignment, body(value))
            assert await result(world, tasks["steady"]) == [2, 20]
            windows = {}
            for population in ("quick", "steady"):
                response = await world.device(population=population).check_in()
                windows[population] = response.retry_window_if_rejected.delay_min.seconds
            assert windows == {"quick": 10, "steady": 100}

    asyncio.run(main())


def test_a_task_has_its_own_times(kit):
    async def main():
        async with kit.world(populations=("quick", "steady"), **SETTINGS) as world:
            brief = await world.submit(1, population="quick", name="brief")
            long = await world.submit(1, population="quick", name="long")
            assert await world.device(population="quick").assignment() is not None
            world.advance(6)
            assert (await world.status(brief)).dropped == 1
            world.advance(15)
            assert await kit.code_of(world.services.tasks.wait(brief)) is Code.DEADLINE_EXCEEDED
            assert not (await world.status(long)).state.is_final

    asyncio.run(main())


def test_a_section_for_a_population_that_is_not_served_is_told(kit, caplog):
    async def main():
        async with kit.world(populations=("quick",), **SETTINGS):
            pass

    with caplog.at_level(logging.WARNING, "fcp.services"):
        asyncio.run(main())
    assert [record.message for record in caplog.records] == [
        "the configuration has a section for the population 'steady', which is not served"
    ]
