"""Counts of distinct values with noise: the estimate, its noise, its bounds, its laws."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import strategies as st

from fcp_core.aggregation.configuration import DP_DISTINCT_URI
from fcp_core.aggregation.release import ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.protocol.sketches import distinct_codes
from fcp_core.protocol.status import StatusError
from fcp_core.testing.aggregators import AggregatorConformance
from fcp_privacy.codes import codes_of, values_of
from fcp_privacy.distinct import DISTINCT
from fcp_privacy.events import EpsilonDelta, from_cost


def intrinsic(epsilon=1.0, max_values=4, **changes):
    parameters = {"epsilon": np.array(epsilon), "max_values": np.array(max_values), **changes}
    return Intrinsic(
        DP_DISTINCT_URI,
        (TensorSpec("codes", DataType.INT64, (-1,)),),
        (TensorSpec("values", DataType.INT64, (-1,)),),
        tuple(Parameter(name, value) for name, value in parameters.items()),
    )


def context(seed):
    def entropy(size):
        return hashlib.shake_256(f"{seed}".encode()).digest(size)

    return ReleaseContext(goal_count=1, entropy=entropy)


def of(devices, **options):
    accumulator = DISTINCT.make(intrinsic(**options), {})
    for values in devices:
        codes = distinct_codes(values)
        accumulator.validate([codes])
        accumulator.accumulate([codes])
    return accumulator


@pytest.mark.parametrize("count", [1, 100, 5_000, 60_000])
def test_the_estimate_is_near_whatever_the_count_is(count):
    codes = np.unique(distinct_codes(range(count)))
    found, each = values_of(codes.size)
    # Its standard error is 1 %.
    assert found == pytest.approx(count, rel=0.04)
    assert codes_of(found) == pytest.approx(codes.size)
    assert each == pytest.approx(values_of(codes.size + 1)[0] - found, rel=0.05)


def test_one_device_changes_the_codes_by_what_it_may_bring_and_no_more():
    others = [[f"{n}", f"{n + 1}"] for n in range(50)]
    before = of(others)._codes()
    many = [f"other {n}" for n in range(10_000)]
    assert before < of([*others, many])._codes() <= before + 4
    assert of([*others, many, many]).num_inputs == 52


@pytest.mark.slow
def test_the_noise_is_that_of_its_definition():
    epsilon, most = 0.5, 3
    accumulator = of([["a", "b"], ["b", "c"]], epsilon=epsilon, max_values=most)
    drawn = np.array([int(accumulator.release(context(s)).tensors[0][0]) for s in range(2000)])
    scale = most / epsilon
    for limit in (-20, -6, 0, 2, 3, 4, 6, 12, 30):
        # Results are rounded.
        x = (limit + 0.5 - 3) / scale
        wanted = 1 - math.exp(-x) / 2 if x > 0 else math.exp(x) / 2
        found = np.mean(drawn <= limit)
        assert abs(found - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / 2000) + 0.01
    (noise,) = accumulator.promise(context(0)).noise
    assert noise.stddev == pytest.approx(math.sqrt(2) * scale, rel=1e-4)
    event = from_cost(accumulator.promise(context(0)).cost)
    assert event == EpsilonDelta(epsilon=epsilon, delta=0.0, relation="replace_one")


def test_an_error_bar_grows_with_the_values_that_a_code_stands_for():
    accumulator = of([range(n, n + 100) for n in range(0, 50_000, 100)], max_values=100)
    released = accumulator.release(context(1))
    (noise,) = released.promise.noise
    (found,) = released.tensors[0]
    assert found == pytest.approx(50_000, rel=0.06)
    assert noise.stddev > 3 * math.sqrt(2) * 100


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"epsilon": 1e20},
        {"max_values": 0},
        {"max_values": 1.5},
        {"max_values": 10**9},
        {"max_values": np.array([1, 2])},
        {"more": np.array(1)},
    ],
)
def test_parameters_without_a_meaning_are_refused(changes):
    with pytest.raises(StatusError):
        DISTINCT.make(intrinsic(**changes), {})


class TestDistinct(AggregatorConformance):
    factory = DISTINCT
    max_examples = 15
    intrinsic = intrinsic(epsilon=20.0)

    def contributions(self):
        values = st.lists(st.integers(0, 30), max_size=4)
        return values.map(lambda found: [distinct_codes(found)])

    def refused(self):
        return st.sampled_from([[np.array([-1])], [np.array([1 << 20])], [np.array([64 + 60])]])

    def reference(self, contributions):
        found = {code for (codes,) in contributions for code in codes.tolist()}
        return [np.array([round(values_of(len(found))[0])])]
