"""The aggregators keep the laws of every aggregator, and compute what their papers define."""

import math

import numpy as np
import pytest
from hypothesis import strategies as st

from fcp_core.aggregation.aggregator import JOINT_URI
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.status import StatusError
from fcp_core.testing.aggregators import AggregatorConformance
from fcp_robust import plugin

SHAPES = ((2, 2), (3,))


def mean(index, shape, weighted=False, dtype=DataType.FLOAT):
    inputs = [TensorSpec(f"value/{index}", dtype, shape)]
    if weighted:
        inputs.append(TensorSpec("weight", DataType.FLOAT))
    return Intrinsic(
        "federated_weighted_mean" if weighted else "federated_mean",
        tuple(inputs),
        (TensorSpec(f"result/{index}", dtype, shape),),
    )


def joined(weighted=False, dtype=DataType.FLOAT):
    """Return what a joint aggregator is made for: a model of two tensors."""
    means = (mean(0, SHAPES[0], weighted, dtype), mean(1, SHAPES[1], dtype=dtype))
    return Intrinsic(JOINT_URI, nested=means)


def matrix(contributions):
    """Return the updates as rows."""
    return np.array([np.concatenate([t.ravel() for t in item]) for item in contributions], "f8")


class Robust(AggregatorConformance):
    max_examples = 10
    rtol = 1e-4
    atol = 1e-4

    def tensors(self, vector):
        first, second = np.split(np.asarray(vector), [4])
        return [first.reshape(SHAPES[0]).astype("<f4"), second.astype("<f4")]

    def refused(self):
        bad = st.sampled_from([math.nan, math.inf, -math.inf])

        def spoil(drawn):
            contribution, value = drawn
            spoilt = [tensor.copy() for tensor in contribution]
            spoilt[0].ravel()[0] = value
            return spoilt

        return st.tuples(self.contributions(), bad).map(spoil)


class TestCoordinateMedian(Robust):
    factory = plugin.COORDINATE_MEDIAN
    intrinsic = mean(0, (3,))

    def reference(self, contributions):
        if not contributions:
            return [np.full(3, np.nan, "<f4")]
        return [np.median(np.array(contributions)[:, 0], axis=0).astype("<f4")]


class TestTrimmedMean(Robust):
    factory = plugin.TRIMMED_MEAN
    intrinsic = mean(0, (3,))
    options = {"fraction": 0.25}

    def reference(self, contributions):
        if not contributions:
            return [np.full(3, np.nan, "<f4")]
        values = np.sort(np.array(contributions, "f8")[:, 0], axis=0)
        k = len(values) // 4
        return [values[k : len(values) - k].mean(axis=0).astype("<f4")]


class TestGeometricMedian(Robust):
    factory = plugin.GEOMETRIC_MEDIAN
    intrinsic = joined()
    options = {"iterations": 30, "tolerance": 1e-9, "smoothing": 1e-6}


class TestKrum(Robust):
    factory = plugin.KRUM
    intrinsic = joined()
    options = {"byzantine": 1}


@pytest.mark.slow
class TestMultiKrum(Robust):
    factory = plugin.MULTI_KRUM
    intrinsic = joined(dtype=DataType.DOUBLE)
    options = {"byzantine": 1, "selected": 2}


class TestNormClipping(Robust):
    factory = plugin.NORM_CLIPPING
    intrinsic = joined()
    options = {"norm": 50.0}
    exact = False

    def reference(self, contributions):
        if not contributions:
            return self.tensors(np.full(7, np.nan))
        rows = matrix(contributions)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            return self.tensors((rows * np.minimum(1, 50 / norms)).mean(axis=0))


@pytest.mark.slow
class TestWeightedNormClipping(Robust):
    factory = plugin.NORM_CLIPPING
    intrinsic = joined(weighted=True)
    options = {"norm": 50.0}
    exact = False

    def contributions(self):
        return super().contributions().map(lambda c: [c[0], np.asarray(abs(c[1]) + 1), c[2]])


@pytest.mark.parametrize("factory", plugin.FACTORIES, ids=lambda factory: factory.name)
def test_weights_are_ignored_where_the_summary_does_not_say_weighted(factory):
    options = {"fraction": 0.1, "norm": 1e9, "byzantine": 0, "selected": 0}
    options |= {"iterations": 50, "tolerance": 0, "smoothing": 1e-9}
    intrinsic = mean(0, (1,), weighted=True)
    accumulator = factory.make(
        Intrinsic(JOINT_URI, nested=(intrinsic,)) if factory.joint else intrinsic, options
    )
    for value, weight in ((0, 1), (0, 1), (10, 1000)):
        inputs = [np.array([value], "<f4"), np.array(weight, "<f4")]
        accumulator.validate(inputs)
        accumulator.accumulate(inputs)
    (result,) = accumulator.report()
    assert (result[0] > 9) is np.bool_("weighted" in factory.summary)


def test_a_weight_of_a_clipped_update_is_finite_and_may_be_zero():
    accumulator = plugin.NORM_CLIPPING.make(mean(0, (1,), weighted=True), {"norm": 100.0})

    def take(value, weight):
        inputs = [np.array([value], "<f4"), np.array(weight, "<f4")]
        accumulator.validate(inputs)
        accumulator.accumulate(inputs)

    take(1, 0)
    take(3, 2)
    for bad in (-1, np.nan, np.inf):
        with pytest.raises(StatusError, match="zero or above and finite"):
            take(1, bad)
    assert accumulator.num_inputs == 2
    assert accumulator.report()[0].tolist() == [3]


def test_weights_of_clipped_updates_that_are_too_large_together_are_refused():
    value, output = TensorSpec("v", DataType.FLOAT, (1,)), TensorSpec("m", DataType.FLOAT, (1,))
    weight = TensorSpec("w", DataType.DOUBLE)
    intrinsic = Intrinsic("federated_weighted_mean", (value, weight), (output,))
    accumulator = plugin.NORM_CLIPPING.make(intrinsic, {"norm": 1.0})
    inputs = [np.array([1], "<f4"), np.array(9e307)]
    accumulator.validate(inputs)
    accumulator.accumulate(inputs)
    with pytest.raises(StatusError, match="too much to be added"):
        accumulator.validate(inputs)
