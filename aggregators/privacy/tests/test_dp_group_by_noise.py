"""The noise of ``fedsql_dp_group_by``, its thresholds, and which groups are shown."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from groups_with_noise import (
    COUNT,
    DOUBLE,
    INT32,
    INT64,
    UINT64,
    context,
    dp_group_by,
    dp_sum,
    feed,
    make,
    refusal,
    release,
)

from fcp_core.aggregation.spec import Intrinsic, TensorSpec
from fcp_core.aggregation.tensors import tensor_to_proto
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code
from fcp_privacy.accounting import gaussian_sigma
from fcp_privacy.group_by import DP_GROUP_BY
from fcp_privacy.group_by_plan import GroupByPlan


def off(successes, trials, probability):
    """Return by how many standard deviations a number of successes is off."""
    return (successes - trials * probability) / math.sqrt(trials * probability * (1 - probability))


def test_the_bounds_of_keys_and_sums_are_of_the_right_kind():
    wrong = Intrinsic(
        "fedsql_dp_group_by",
        (TensorSpec("k", INT32, (2,)),),
        (TensorSpec("k", INT32, (2,)),),
        dp_group_by(COUNT).parameters,
        (COUNT,),
    )
    assert "equal vectors [?]" in refusal(Code.INVALID_ARGUMENT, make, wrong)
    two = Intrinsic(COUNT.uri, COUNT.inputs, COUNT.outputs, COUNT.parameters[:2])
    assert "2 parameters" in refusal(Code.INVALID_ARGUMENT, make, dp_group_by(two))


def full(intrinsic, keys, *sums, devices=()):
    """Return an accumulator with groups that nobody had to contribute one by one."""
    state = state_pb2.GroupByAggregatorState(
        num_inputs=1,
        keys=[tensor_to_proto(key) for key in keys],
        nested_aggregators=[{"vector_data": column.tobytes()} for column in sums],
        counter_of_contributors=devices,
    )
    return DP_GROUP_BY.load(intrinsic, {}, state.SerializeToString() + bytes(8))


def rounded_laplace(scale, value):
    def below(x):
        return math.exp(x / scale) / 2 if x < 0 else 1 - math.exp(-x / scale) / 2

    return below(value + 0.5) - below(value - 0.5)


def rounded_gaussian(sigma, value):
    normal = NormalDist(0, sigma)
    return normal.cdf(value + 0.5) - normal.cdf(value - 0.5)


@pytest.mark.parametrize(
    ("bounds", "delta", "kind", "probability"),
    [((1,), 0, "laplace", rounded_laplace), ((-1, -1, 1), 0.01, "gaussian", rounded_gaussian)],
)
def test_counts_have_noise_of_the_exact_distribution(bounds, delta, kind, probability):
    domain = [np.arange(40_000, dtype="i4")]
    intrinsic = dp_group_by(dp_sum("n", INT64, *bounds), epsilon=0.7, delta=delta, domain=domain)
    (mechanism,) = GroupByPlan.of(intrinsic).mechanisms
    assert mechanism.kind == kind
    _, counts = release(feed(make(intrinsic), [np.array([7], "i4"), np.array([1])]))
    counts[7] -= 1
    reach = 12
    expected = [probability(mechanism.scale, value) for value in range(-reach, reach + 1)]
    found = [int((counts == value).sum()) for value in range(-reach, reach + 1)]
    expected.append(1 - sum(expected))
    found.append(counts.size - sum(found))
    statistic = sum(
        (f - counts.size * e) ** 2 / (counts.size * e) for f, e in zip(found, expected, strict=True)
    )
    # With 25 degrees of freedom 70 is exceeded once in 200,000 times.
    assert statistic < 70
    # Another scale is noticed.
    assert abs(off(found[reach], counts.size, probability(mechanism.scale * 1.1, 0))) > 5


def test_sums_of_floats_have_noise_on_a_grid_and_of_the_right_size():
    domain = [np.arange(20_000, dtype="i4")]
    intrinsic = dp_group_by(dp_sum("x", DOUBLE, 0.3), delta=0, domain=domain)
    (mechanism,) = GroupByPlan.of(intrinsic).mechanisms
    assert mechanism.stddev == pytest.approx(2 * 0.3 * math.sqrt(2), rel=1e-8)
    _, sums = release(feed(make(intrinsic), [np.array([7], "i4"), np.array([0.1])]))
    steps = sums / mechanism.grid
    assert (steps == np.rint(steps)).all()
    assert abs(sums.mean()) < 5 * mechanism.stddev / math.sqrt(20_000)
    # The fourth moment of Laplace noise is 24 scale ** 4, that is 6 variance ** 2.
    assert abs(sums.var() / mechanism.stddev**2 - 1) < 5 * math.sqrt(5 / 20_000)


def test_noise_of_large_sums_is_on_a_coarse_grid_that_contributions_share():
    domain = [np.array([1], "i4")]
    intrinsic = dp_group_by(dp_sum("bytes", INT64, 2.0**40), epsilon=0.01, domain=domain)
    (mechanism,) = GroupByPlan.of(intrinsic).mechanisms
    assert mechanism.grid > 1000
    accumulator = feed(make(intrinsic), [np.array([1], "i4"), np.array([2**40 - 1])])
    (exact,) = accumulator.report()[1].tolist()
    assert 0 <= 2**40 - 1 - exact < mechanism.grid
    assert release(accumulator)[1][0] % int(mechanism.grid) == exact % int(mechanism.grid) == 0


def test_a_result_stays_in_the_range_of_its_dtype():
    domain = [np.arange(2000, dtype="i4")]
    narrow = dp_sum("n", INT32, 2.0**31, output=INT32)
    for value in (dp_sum("n", UINT64, 1000), narrow):
        numbers = release(make(dp_group_by(value, domain=domain)))[1]
        limits = np.iinfo(numbers.dtype)
        # Half of the noise is below 0, some of it below the least int32.
        assert numbers.min() == limits.min
        assert 300 < (numbers == limits.min).sum() < 1200


def test_thresholds_are_those_of_the_vectors():
    for groups, threshold in ((1, 28.6310), (4, 122.614)):
        (mechanism,) = GroupByPlan.of(dp_group_by(COUNT, groups=groups)).mechanisms
        assert mechanism.kind == "laplace"
        assert mechanism.threshold == pytest.approx(threshold, rel=1e-5)
    (mechanism,) = GroupByPlan.of(dp_group_by(COUNT, groups=100)).mechanisms
    assert mechanism.kind == "gaussian"
    each = -math.expm1(math.log1p(-5e-7) / 200)
    sigma = gaussian_sigma(1, 5e-7, math.sqrt(200))
    assert mechanism.scale == pytest.approx(sigma, rel=1e-8)
    expected = 1 + sigma * NormalDist().inv_cdf(1 - each)
    assert mechanism.threshold == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("groups", "kind"), [(1, "laplace"), (4, "laplace"), (9, "gaussian")])
def test_the_noise_with_the_smaller_variance_is_taken(groups, kind):
    intrinsic = dp_group_by(COUNT, groups=groups, domain=[np.array([1], "i4")])
    (mechanism,) = GroupByPlan.of(intrinsic).mechanisms
    laplace = 2 * groups * math.sqrt(2)
    gaussian = gaussian_sigma(1, 1e-6, math.sqrt(2 * groups))
    assert mechanism.kind == kind
    assert mechanism.stddev == pytest.approx(min(laplace, gaussian), rel=1e-8)


def test_the_choice_of_groups_is_that_of_the_vectors():
    intrinsic = dp_group_by(COUNT, epsilon=2, delta=2e-5, least=1)
    selection = GroupByPlan.of(intrinsic).selection
    assert (selection.first_crossover, selection.second_crossover) == (11, 22)
    keys = np.arange(30_000, dtype="i4")
    devices = np.repeat([10, 11, 12], 10_000)
    shown = release(full(intrinsic, [keys], np.full(30_000, 100), devices=devices))[0]
    for index, probability in enumerate((0.128193, 0.348448, 0.760311)):
        count = np.count_nonzero(shown // 10_000 == index)
        assert abs(off(count, 10_000, probability)) < 5
    # All that are of so many devices are shown, and none of fewer than the least.
    devices = np.repeat([23, 1], 15_000)
    surely = dp_group_by(COUNT, epsilon=2, delta=2e-5, least=2)
    assert GroupByPlan.of(surely).selection.second_crossover == 23
    shown = release(full(surely, [keys], np.full(30_000, 100), devices=devices + (devices > 1)))[0]
    assert sorted(shown) == list(range(15_000))


def test_only_groups_can_be_chosen_without_sums():
    intrinsic = dp_group_by(epsilon=1, delta=1e-5, least=1)
    plan = GroupByPlan.of(intrinsic)
    assert (plan.selection.epsilon, plan.selection.delta) == (1, 1e-5)
    keys = np.arange(50, dtype="i4")
    released = full(intrinsic, [keys], devices=[40] * 50).release(context(1))
    assert sorted(released.tensors[0]) == list(range(50))
    assert released.promise.cost == {"type": "epsilon_delta", "epsilon": 1, "delta": 1e-5}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("delta", "kind", "own"), [(0.002, "laplace", 0.002), (0.2, "gaussian", 0.1)]
)
def test_a_group_of_one_device_is_shown_as_rarely_as_delta_says(delta, kind, own, sign):
    """Exactly so: the threshold is where that probability is met."""
    intrinsic = dp_group_by(dp_sum("x", DOUBLE, 1), delta=delta)
    keys, sums = np.arange(50_000, dtype="i4"), np.full(50_000, float(sign))
    shown, values = release(full(intrinsic, [keys], sums))
    (mechanism,) = GroupByPlan.of(intrinsic).mechanisms
    assert mechanism.kind == kind
    assert (sign * values >= mechanism.threshold).all()
    assert abs(off(shown.size, 50_000, 1 - math.sqrt(1 - own))) < 5


def test_a_group_is_shown_if_all_its_sums_reach_their_thresholds():
    intrinsic = dp_group_by(COUNT, dp_sum("m", INT64, 1))
    keys = np.arange(4, dtype="i4")
    one, other = np.array([1000, 1000, 0, -1000]), np.array([1000, 0, 1000, -1000])
    assert sorted(release(full(intrinsic, [keys], one, other))[0]) == [0, 3]


def test_groups_come_in_an_order_that_says_nothing():
    keys = np.arange(64, dtype="i4")
    for least in (None, 1):
        devices = [1000] * 64 if least else ()
        intrinsic = dp_group_by(COUNT, least=least)
        accumulator = full(intrinsic, [keys], np.full(64, 1000), devices=devices)
        orders = [release(accumulator, seed)[0].tolist() for seed in (1, 2)]
        assert orders[0] != orders[1]
        for order in orders:
            assert order != sorted(order) == list(range(64))


def test_without_keys_there_is_one_row_whoever_contributes():
    accumulator = make(dp_group_by(COUNT, keys=()))
    assert release(accumulator)[0].shape == (1,)
    counts = [
        release(feed(make(dp_group_by(COUNT, keys=())), [np.ones(1, "i8")]), s) for s in (1, 2)
    ]
    assert counts[0] != counts[1]


def test_what_is_promised():
    """The cost is what the parameters say, the noise is what each output has."""
    sums = (dp_sum("n", INT64, 1), dp_sum("x", DOUBLE, 3))
    for fields, parts in (
        ({"groups": 2}, [("replace_one", 1, 1e-6)]),
        ({"domain": [np.array([1], "i4")]}, [("replace_one", 1, 0)]),
        ({"least": 5}, [(None, 0.5, 5e-7), ("replace_one", 0.5, 0)]),
    ):
        accumulator = make(dp_group_by(*sums, **fields))
        promise = accumulator.promise(context(1))
        cost = promise.cost
        events = cost["events"] if cost["type"] == "composed" else [cost]
        for event, (relation, epsilon, delta) in zip(events, parts, strict=True):
            assert (event.get("relation"), event["epsilon"]) == (relation, epsilon)
            assert event["delta"] == pytest.approx(delta)
        assert [noise.output for noise in promise.noise] == ["n sum", "x sum"]
        own = epsilon / 2
        assert promise.noise[0].parameters["epsilon"] == own
        scale = fields.get("groups", 1) * 2 / own
        assert promise.noise[0].stddev == pytest.approx(scale * math.sqrt(2), rel=1e-8)
        assert promise.noise[1].stddev == pytest.approx(3 * scale * math.sqrt(2), rel=1e-8)
        assert accumulator.release(context(1)).promise == promise
