"""Choices that the operator keeps: a task cannot undo them, neither when submitted nor later."""

import asyncio

import numpy as np
import pytest

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.status import Code, StatusError

(SUM,) = (f for f in fcp_register_aggregators() if f.name == "federated_sum")


class Noisy:
    """An aggregator with an option, that the operator chooses."""

    @hookimpl
    def fcp_add_options(self, options):
        options.add("aggregator.noisy", "noise", "float", 1.0, "how much noise there is")
        options.add("selection.fifo", "extra", "float", 1.0, "an option of the policy")

    @hookimpl
    def fcp_register_aggregators(self):
        return [AggregatorFactory("noisy", SUM.uris, "with noise", SUM.make, SUM.load)]


OPERATORS = {"aggregator": "noisy", "extra": [Noisy()]}
CASES = {
    "aggregators": (
        {"aggregators": {"federated_sum": "federated_sum"}},
        "the aggregator of federated_sum is 'noisy' here and not 'federated_sum'",
    ),
    "aggregators, by an option": (
        {"options": {"noisy": {"noise": 0.0}}},
        "the options of 'noisy' are the operator's",
    ),
    "protocol": ({"protocol": "other"}, "the protocol is 'simple' here and not 'other'"),
    "selection": (
        {"selection": "uniform"},
        "the selection is 'fifo' here and not 'uniform'",
    ),
    "selection, by an option": (
        {"options": {"fifo": {"extra": 2.0}}},
        "the options of 'fifo' are the operator's",
    ),
}


@pytest.mark.parametrize("scope", ["", "population:phones/all."])
@pytest.mark.parametrize("case", CASES)
def test_a_task_that_names_another_is_refused_in_words(kit, case, scope):
    wanted, message = CASES[case]
    option = f"require_{case.partition(',')[0]}"

    async def main():
        async with kit.world(**{f"{scope}{option}": "yes"}, **OPERATORS) as world:
            with pytest.raises(StatusError) as caught:
                await world.submit(**wanted)
            assert caught.value.code is Code.INVALID_ARGUMENT
            assert f"{message}: {option} is set (" in caught.value.message
            task = await world.submit(
                aggregators={"federated_sum": "noisy"}, protocol="simple", selection="fifo"
            )
            assert await world.device().run()
            await world.result(task)

    asyncio.run(main())


def test_where_the_operator_says_no_a_task_chooses_and_the_log_says_so(kit, caplog):
    async def main():
        async with kit.world(require_aggregators="no", **OPERATORS) as world:
            for wanted in (CASES["aggregators"][0], CASES["aggregators, by an option"][0]):
                task = await world.submit(**wanted)
                assert await world.device().run()
                await world.result(task)

    asyncio.run(main())
    (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert "the aggregator of federated_sum is 'noisy' here and not" in record.getMessage()


def test_by_default_a_task_undoes_nothing_that_is_configured(kit):
    """What the operator has not set, a task may."""

    async def main():
        async with kit.world(aggregator__noisy__noise="2.0", **OPERATORS) as world:
            for wanted, message in (
                (CASES["aggregators"][0], "'noisy' here and not 'federated_sum'"),
                (CASES["aggregators, by an option"][0], "noise of 'noisy' is 2.0 here"),
            ):
                with pytest.raises(StatusError) as caught:
                    await world.submit(**wanted)
                assert caught.value.code is Code.INVALID_ARGUMENT
                assert message in caught.value.message
                assert "require_aggregators = no" in caught.value.message
            task = await world.submit(
                aggregators={"federated_sum": "noisy"}, options={"noisy": {"noise": 2.0}}
            )
            assert await world.device().run()
            await world.result(task)
        async with kit.world(**OPERATORS) as world:
            await world.submit(options={"noisy": {"noise": 0.5}})
        async with kit.world(extra=OPERATORS["extra"]) as world:
            await world.submit(aggregators={"federated_sum": "noisy"})

    asyncio.run(main())


def test_a_task_of_an_earlier_run_is_checked_again(kit, tmp_path, caplog):
    stored = {"storage": "sqlite", "storage__sqlite__path": str(tmp_path / "fcp.sqlite")}

    async def main():
        async with kit.world(**stored, extra=OPERATORS["extra"]) as world:
            await world.submit(**CASES["aggregators"][0])
        # Only what is said in so many words keeps an old task from going on.
        async with kit.world(**stored, **OPERATORS):
            assert "undoes what the configuration says" in caplog.text
        words = r"cannot go on: .*'noisy' here.*require_aggregators[^.]*\)\. Mend [^.]*\.$"
        with pytest.raises(UsageError, match=words):
            async with kit.world(require_aggregators="yes", **stored, **OPERATORS):
                pass

    asyncio.run(main())


def test_what_was_accumulated_is_not_read_by_another_aggregator(kit, tmp_path):
    stored = {"storage": "sqlite", "storage__sqlite__path": str(tmp_path / "fcp.sqlite")}
    value, mean = (TensorSpec(name, DataType.DOUBLE, (2,)) for name in (kit.input, kit.output))
    job = configuration_to_proto([Intrinsic("federated_mean", (value,), (mean,))])

    async def contribute(world, number):
        device = world.device()
        body = write_checkpoint({kit.input: np.array([number, 1.0])}, "tf_v1")
        await device.contribute(await device.assignment(), body)

    async def main():
        async with kit.world(**stored) as world:
            task = await world.submit(goal=2, aggregation=job.SerializeToString())
            await contribute(world, 1.0)
        with pytest.raises(UsageError, match="what has contributions keeps its aggregators"):
            async with kit.world(**stored, aggregator="median"):
                pass
        # Nothing of it is lost.
        async with kit.world(**stored) as world:
            await contribute(world, 4.0)
            assert await world.result(task) == [2.5, 1.0]

    asyncio.run(main())
