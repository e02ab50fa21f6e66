"""Large states are loaded as they lie: memory holds their numbers once more, and nothing else."""

import tracemalloc

import numpy as np
import pytest

from fcp_aggregators.mean import FACTORIES as MEANS
from fcp_aggregators.vector import FACTORIES as VECTORS
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.binding import bind
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob, Partial
from fcp_core.aggregation.local import LocalEngine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.joining import LARGE
from fcp_core.protocol.status import Code, StatusError

ELEMENTS = LARGE // 4 + 7
FACTORIES = {factory.name: factory for factory in (*MEANS, *VECTORS)}


def intrinsic(uri):
    value = TensorSpec("x", DataType.FLOAT, (ELEMENTS,))
    weight = [TensorSpec("w", DataType.FLOAT)] * (uri == "federated_weighted_mean")
    return Intrinsic(uri, (value, *weight), (TensorSpec("y", DataType.FLOAT, (ELEMENTS,)),))


def state(uri, factories=FACTORIES):
    bound = bind([intrinsic(uri)], factories, {}, {})
    aggregator = CheckpointAggregator(bound)
    numbers = np.arange(ELEMENTS, dtype=np.float32)
    body = write_checkpoint({"x": numbers, "w": np.array(2.0, np.float32)}, "federated_compute")
    aggregator.accumulate(open_checkpoint(body))
    return bound, aggregator.dump(), numbers


@pytest.mark.parametrize("uri", ["federated_sum", "federated_mean", "federated_weighted_mean"])
def test_a_fold_that_goes_on_holds_the_numbers_once(uri):
    _, data, numbers = state(uri)
    job = FoldJob(configuration_to_proto([intrinsic(uri)]).SerializeToString())
    engine = LocalEngine(FACTORIES, workers=0)
    tracemalloc.start()
    try:
        fold = engine.open(job, [Partial(data, ("a",))])
        # The zeros that it began with count here, though nobody touches them.
        assert tracemalloc.get_traced_memory()[1] < 2.25 * numbers.nbytes
    finally:
        tracemalloc.stop()
    report = open_checkpoint(fold.report().result())
    np.testing.assert_array_equal(report["y"], numbers)


def test_a_plugin_that_says_nothing_is_given_bytes():
    given = []

    def load(intrinsic, options, data):
        given.append(type(data))
        return known.load(intrinsic, options, data)

    known = FACTORIES["federated_sum"]
    other = AggregatorFactory("federated_sum", known.uris, "as before", known.make, load)
    bound, data, _ = state("federated_sum", {"federated_sum": other})
    assert CheckpointAggregator.load(bound, data).num_inputs == 1
    assert given == [bytes]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:9] + data[10:]])
def test_damage_is_no_state(damage):
    bound, data, _ = state("federated_sum")
    with pytest.raises(StatusError) as error:
        CheckpointAggregator.load(bound, damage(data))
    assert error.value.code is Code.INVALID_ARGUMENT
