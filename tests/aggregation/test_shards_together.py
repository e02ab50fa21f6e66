"""What a fold holds in several shards comes out whole: in partials, reports and merges."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_aggregators.vector import SumAccumulator
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob
from fcp_core.aggregation.local import LocalEngine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError

WAIT = 60
SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("v", DataType.INT64, (2,)),),
    (TensorSpec("sum", DataType.INT64, (2,)),),
)
JOB = FoldJob(configuration_to_proto([SUM]).SerializeToString())


class Together(SumAccumulator):
    """A sum that goes on only when as many contributions are being added as the test wants."""

    barrier: threading.Barrier

    def accumulate(self, inputs):
        Together.barrier.wait(WAIT)
        super().accumulate(inputs)


def blob(number):
    """Every contribution's digit is its own, so that the sum tells which ones are in it."""
    return write_checkpoint({"v": np.array([10**number, 1])}, "tf_v1")


def total(data):
    return open_checkpoint(data)["sum"].tolist()


@pytest.fixture(params=[2, 3], ids=lambda count: f"{count} shards")
def count(request):
    return request.param


@pytest.fixture
def engine(count):
    """Folds in threads of its own, so many of which are inside at once, and one more."""
    factories = {factory.name: factory for factory in fcp_register_aggregators()}
    factories["federated_sum"] = AggregatorFactory(
        "federated_sum", frozenset({"federated_sum"}), "a sum of several threads at once",
        lambda intrinsic, options: Together(intrinsic),
        Together.load,
    )  # fmt: skip
    Together.barrier = threading.Barrier(count)
    engine = LocalEngine(factories, count + 1, 0, inline_added_bytes=0)
    engine.start()
    yield engine
    engine.stop()


def add_at_once(fold, numbers):
    """Add contributions so that each goes to a shard of its own."""
    futures = [fold.add(str(number), blob(number)) for number in numbers]
    assert [future.result(WAIT) for future in futures] == [None] * len(futures)


def expected(numbers):
    return [sum(10**number for number in numbers), len(numbers)]


def test_a_partial_has_what_is_in_every_shard(engine, count):
    fold = engine.open(JOB)
    first, second = range(count), range(count, 2 * count)
    add_at_once(fold, first)
    partial = fold.partial().result(WAIT)
    assert sorted(partial.contributions) == [str(number) for number in first]
    assert total(engine.open(JOB, [partial]).report().result(WAIT)) == expected(first)
    # The fold itself goes on, and what it dumped is in it once.
    add_at_once(fold, second)
    again = fold.partial().result(WAIT)
    assert sorted(again.contributions) == sorted(str(number) for number in (*first, *second))
    for data in (engine.open(JOB, [again]).report(), fold.report()):
        assert total(data.result(WAIT)) == expected([*first, *second])


def test_a_report_has_what_is_in_every_shard(engine, count):
    fold = engine.open(JOB)
    add_at_once(fold, range(count))
    assert total(fold.report().result(WAIT)) == expected(range(count))


def test_a_partial_of_shards_is_merged_once(engine, count):
    one, other = engine.open(JOB), engine.open(JOB)
    add_at_once(one, range(count))
    add_at_once(other, range(count, 2 * count))
    partial = one.partial().result(WAIT)
    other.merge(partial).result(WAIT)
    with pytest.raises(StatusError) as twice:
        other.merge(partial).result(WAIT)
    assert twice.value.code is Code.ALREADY_EXISTS
    # What came by a merge is in the next partial too, and its ids are taken.
    whole = other.partial().result(WAIT)
    assert len(whole.contributions) == 2 * count
    for number in range(2 * count):
        with pytest.raises(StatusError) as known:
            other.add(str(number), blob(number)).result(WAIT)
        assert known.value.code is Code.ALREADY_EXISTS
    assert total(engine.open(JOB, [whole]).report().result(WAIT)) == expected(range(2 * count))


def test_a_partial_waits_for_no_shard_longer_than_its_contribution(engine, count):
    """A partial that is asked for in the middle has, of each contribution, all or nothing."""
    fold = engine.open(JOB)
    futures = [fold.add(str(number), blob(number)) for number in range(count - 1)]
    partial = fold.partial()
    futures.append(fold.add(str(count - 1), blob(count - 1)))
    assert [future.result(WAIT) for future in futures] == [None] * count
    found = partial.result(WAIT)
    numbers = [int(name) for name in found.contributions]
    assert total(engine.open(JOB, [found]).report().result(WAIT)) == expected(numbers)
    assert total(fold.report().result(WAIT)) == expected(range(count))
