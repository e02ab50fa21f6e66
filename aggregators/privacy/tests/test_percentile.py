"""Quantiles with noise: the buckets, the noisy walk over them, and the bundle's laws."""

import math

import numpy as np
import pytest
from hypothesis import strategies as st

from fcp_core.aggregation.configuration import configuration_to_proto, parse_configuration
from fcp_core.aggregation.release import ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing.aggregators import AggregatorConformance
from fcp_privacy import percentile
from fcp_privacy.percentile import BUNDLE, LAST, buckets, upper_bound


def quantile(name, q, dtype=DataType.DOUBLE, shape=(-1,)):
    return Intrinsic(
        "GoogleSQL:$differential_privacy_percentile_cont",
        (TensorSpec(name, dtype, shape),),
        (TensorSpec(f"{name} {q}", DataType.DOUBLE),),
        (Parameter("", np.array(q)),),
    )


def bundle(*nested, epsilon=1.0, delta=0.0):
    parameters = (Parameter("", np.array(epsilon)), Parameter("", np.array(delta)))
    return Intrinsic(
        "differential_privacy_tensor_aggregator_bundle", parameters=parameters, nested=nested
    )


def of(values, intrinsic, **options):
    """Return an accumulator of one number a device."""
    states = []
    for nested in intrinsic.nested:
        numbers = np.asarray(values, nested.inputs[0].dtype.numpy)
        state = state_pb2.DPQuantileAggregatorState(
            num_inputs=numbers.size, buffer=numbers.tobytes()
        )
        states.append(state.SerializeToString())
    state = state_pb2.DPTensorAggregatorBundleState(
        num_inputs=len(values), nested_serialized_states=states
    )
    return BUNDLE.load(intrinsic, options, state.SerializeToString())


def context(seed):
    return ReleaseContext(goal_count=1, entropy=lambda size: seed.to_bytes(2, "big") * (size // 2))


def refusal(code, function, *args):
    with pytest.raises(StatusError) as caught:
        function(*args)
    assert caught.value.code is code
    return caught.value.message


def test_the_buckets_are_the_aggregation_cores():
    values = np.array([-5, 0, 0.01, 0.1, 0.15, 99.95, 100, 100.5, 101.5, 1e20])
    assert buckets(values).tolist() == [0, 0, 1, 1, 2, 1000, 1000, 1001, 1002, LAST]
    assert 1000 + math.ceil(math.log(1e18) / math.log(1.01)) == LAST
    assert [upper_bound(b) for b in (0, 1, 1000)] == [0, 0.1, 100]
    assert upper_bound(1001) == pytest.approx(101)
    assert upper_bound(LAST) == upper_bound(LAST + 1) == 1e20
    numbers = np.random.default_rng(1).lognormal(5, 4, 1000)
    bounds = np.array([upper_bound(b) for b in buckets(numbers)])
    assert (bounds >= numbers * (1 - 1e-12)).all()
    assert (bounds <= np.maximum(numbers * 1.0100001, numbers + 0.1)).all()


def test_with_little_noise_the_quantile_is_found():
    values = np.random.default_rng(2).permutation(np.arange(1, 2001) / 10)
    for q in (0.01, 0.5, 0.9, 0.99):
        released = of(values, bundle(quantile("x", q), epsilon=50)).release(context(3))
        (found,) = (float(tensor) for tensor in released.tensors)
        assert found == pytest.approx(np.quantile(values, q), rel=0.02, abs=0.15)


@pytest.mark.slow
def test_the_walk_has_the_distribution_of_its_definition():
    """Where it stops, against the same walk with NumPy's noise."""
    values, q, epsilon = [0.05] * 4 + [0.15] * 3 + [0.35] * 5, 0.5, 0.9
    accumulator, rounds = of(values, bundle(quantile("x", q), epsilon=epsilon)), 800
    found = [float(accumulator.release(context(seed)).tensors[0]) for seed in range(rounds)]
    rng = np.random.default_rng(5)
    sums = np.cumsum(np.bincount(buckets(np.array(values)), minlength=40))
    thresholds = q * len(values) + rng.laplace(0, 2 / epsilon, (20_000, 1))
    above = sums + rng.laplace(0, 2 / epsilon, (20_000, 40)) > thresholds
    expected = [upper_bound(b) for b in np.where(above.any(axis=1), np.argmax(above, axis=1), LAST)]
    for limit in (0, 0.1, 0.2, 0.3, 0.4, 0.6, 1):
        one, other = (np.mean(np.array(some) <= limit + 1e-9) for some in (found, expected))
        assert 0 < other < 1
        error = math.sqrt(other * (1 - other) * (1 / rounds + 1 / 20_000))
        assert abs(one - other) < 4 * error


def test_what_is_promised_and_split():
    two = bundle(quantile("x", 0.5), quantile("y", 0.9), epsilon=2.0, delta=1e-6)
    accumulator = BUNDLE.make(two, {})
    promise = accumulator.promise(context(1))
    assert promise.cost["epsilon"] == 2
    assert promise.cost["relation"] == "replace_one"
    released = of([1.0] * 100, two).release(context(1))
    assert released.promise == promise
    assert [tensor.shape for tensor in released.tensors] == [(), ()]
    # With the same bits, the first of two has the noise of one alone with half of epsilon.
    for seed in range(5):
        alone, first = (
            of(np.arange(50.0), bundle(*nested, epsilon=epsilon)).release(context(seed)).tensors[0]
            for nested, epsilon in ((two.nested[:1], 1.0), (two.nested, 2.0))
        )
        assert alone == first


def test_no_noise_at_all_is_the_operators_to_allow():
    intrinsic = bundle(quantile("x", 0.5), epsilon=1e20)
    assert "allow_no_noise" in refusal(Code.FAILED_PRECONDITION, BUNDLE.make, intrinsic, {})
    allowed = {"allow_no_noise": True}
    released = of([3.0, 1.0, 2.0], intrinsic, **allowed).release(context(1))
    assert released.tensors[0] == 2
    assert released.promise.cost["epsilon"] == 1e20
    empty = BUNDLE.make(intrinsic, allowed)
    assert "nothing" in refusal(Code.FAILED_PRECONDITION, empty.release, context(1))


def test_of_many_numbers_some_are_kept_evenly(monkeypatch):
    monkeypatch.setattr(percentile, "MAX_KEPT", 40)
    intrinsic = bundle(quantile("x", 0.5))
    shards = [BUNDLE.make(intrinsic, {}) for _ in range(3)]
    for number in range(900):
        # The shards hold 100, 300 and 500 numbers.
        shards[(number > 99) + (number > 399)].accumulate([np.array([float(number)])])
    first, second, third = shards
    first.merge(second)
    third.merge(BUNDLE.load(intrinsic, {}, first.dump()))
    assert third.num_inputs == 900
    state = state_pb2.DPTensorAggregatorBundleState.FromString(third.dump())
    inner = state_pb2.DPQuantileAggregatorState.FromString(state.nested_serialized_states[0])
    kept = np.frombuffer(inner.buffer)
    assert (inner.num_inputs, inner.reservoir_sampling_count) == (900, 860)
    assert kept.size == len(set(kept)) == 40
    assert set(kept) <= set(range(900))
    # About 22 of 40 are of the last 500 numbers: none, or all, are so once in 10 ** 10 times.
    assert 0 < np.count_nonzero(kept >= 400) < 40


@pytest.mark.parametrize(
    ("intrinsic", "expected"),
    [
        (bundle(), "nothing but two parameters and what it nests"),
        (bundle(quantile("x", 0.5), epsilon=0.0), "no epsilon and delta"),
        (bundle(quantile("x", 0.5), delta=1.0), "no epsilon and delta"),
        (bundle(quantile("x", 0.5), epsilon=[1.0, 2.0]), "two numbers: epsilon and delta"),
        (bundle(quantile("x", 1.0)), "above 0 and below 1"),
        (bundle(quantile("x", 1)), "above 0 and below 1"),
        (bundle(quantile("x", 0.5, DataType.STRING)), "must be one number"),
        (bundle(quantile("x", 0.5, shape=(2,))), "must be one number"),
        (bundle(Intrinsic("GoogleSQL:sum")), "can be in a bundle"),
    ],
)
def test_intrinsics_that_are_refused(intrinsic, expected):
    assert expected in refusal(Code.INVALID_ARGUMENT, BUNDLE.make, intrinsic, {})


def test_a_device_contributes_one_finite_number():
    accumulator = BUNDLE.make(bundle(quantile("x", 0.5)), {})
    for value in ([], [1.0, 2.0], [math.nan], [math.inf]):
        message = refusal(Code.INVALID_ARGUMENT, accumulator.validate, [np.array(value)])
        assert "'x' has" in message


def test_a_configuration_is_read_with_columns_in_and_a_number_out():
    sent = bundle(quantile("x", 0.5, shape=()))
    (read,) = parse_configuration(configuration_to_proto([sent]))
    assert read.nested[0].inputs[0].shape == (-1,)
    BUNDLE.make(read, {}).validate([np.array([1.0])])


class TestBundle(AggregatorConformance):
    factory = BUNDLE
    max_examples = 15
    intrinsic = bundle(quantile("x", 0.5), quantile("n", 0.9, DataType.INT32, ()))

    def contributions(self):
        number = st.integers(-100, 100)
        return st.tuples(number, number).map(
            lambda pair: [np.array([float(pair[0])]), np.array(pair[1], "i4")]
        )

    def refused(self):
        return st.just([np.array([np.nan]), np.array(1, "i4")])

    def reference(self, contributions):
        result = []
        for place, q in enumerate((0.5, 0.9)):
            numbers = sorted(float(c[place].reshape(())) for c in contributions)
            rank = min(int(q * len(numbers)), len(numbers) - 1)
            result.append(np.array(numbers[rank] if numbers else math.nan))
        return result
