"""``fedsql_dp_group_by`` as an aggregator: its parameters, its laws, its bounds, its state."""

import math
from collections import defaultdict

import numpy as np
import pytest
from groups_with_noise import (
    COUNT,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    STRING,
    UINT64,
    dp_group_by,
    dp_sum,
    feed,
    make,
    parameter,
    refusal,
    strings,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.aggregation.configuration import configuration_to_proto, parse_configuration
from fcp_core.aggregation.spec import Intrinsic, Parameter
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code
from fcp_privacy import group_by_device
from fcp_privacy.group_by import DP_GROUP_BY
from fcp_privacy.group_by_plan import Algorithm, GroupByPlan
from fcp_privacy.randomness import Randomness


def changed(intrinsic, parameters):
    return Intrinsic(
        intrinsic.uri, intrinsic.inputs, intrinsic.outputs, tuple(parameters), intrinsic.nested
    )


@pytest.mark.parametrize(
    ("fields", "algorithm"),
    [
        ({}, Algorithm.THRESHOLD),
        ({"least": 3}, Algorithm.SELECTION),
        ({"least": 3, "domain": [np.array([1, 2], "i4")]}, Algorithm.SELECTION),
        ({"domain": [np.array([1, 2], "i4")]}, Algorithm.EXHAUSTIVE),
    ],
)
def test_the_parameters_choose_the_algorithm(fields, algorithm):
    assert GroupByPlan.of(dp_group_by(COUNT, **fields)).algorithm is algorithm


def test_parameters_come_by_name_or_as_in_2024_by_position():
    domain = [np.array([1, 2], "i4")]
    named = dp_group_by(COUNT, groups=2, domain=domain)
    for intrinsic in (named, dp_group_by(COUNT, groups=2)):
        bare = changed(intrinsic, (Parameter("", p.value) for p in intrinsic.parameters))
        (read,) = parse_configuration(configuration_to_proto([bare]))
        (same,) = parse_configuration(configuration_to_proto([intrinsic]))
        one, other = GroupByPlan.of(read), GroupByPlan.of(same)
        assert (one.epsilon, one.delta, one.groups) == (1, 1e-6, 2)
        assert one.algorithm is other.algorithm
        assert one.mechanisms == other.mechanisms


@pytest.mark.parametrize(
    ("intrinsic", "expected"),
    [
        (dp_group_by(COUNT, epsilon=0), "epsilon must be above 0"),
        (dp_group_by(COUNT, epsilon=math.nan), "epsilon must be finite"),
        (dp_group_by(COUNT, epsilon=[1.0, 2.0]), "epsilon must be one number"),
        (dp_group_by(COUNT, delta=0), "delta must be above 0 and below 1, not 0"),
        (dp_group_by(COUNT, delta=1, domain=[np.array([1], "i4")]), "a closed domain may have 0"),
        (dp_group_by(COUNT, groups=0), "max_groups_contributed must be a whole number"),
        (dp_group_by(COUNT, groups=1.5), "max_groups_contributed must be a whole number"),
        (dp_group_by(COUNT, least=0), "min_contributors_to_group must be a whole number"),
        (dp_group_by(), "it nests no sums"),
        (dp_group_by(keys=()), "neither keys nor nested"),
        (dp_group_by(dp_sum("n", INT64, -1, 5)), "its first parameter"),
        (dp_group_by(dp_sum("n", INT64, -1), least=2), "one of its three bounds"),
        (dp_group_by(dp_sum("n", INT64, math.inf), least=2), "one of its three bounds"),
        (dp_group_by(dp_sum("n", INT64, math.nan), least=2), "not NaN"),
        (dp_group_by(dp_sum("n", INT64, 0.5)), "leaves nothing of whole numbers"),
        (dp_group_by(dp_sum("n", INT64, 1e18)), "a bound of 1e+18"),
        (dp_group_by(dp_sum("n", STRING, 1, output=STRING)), "string tensor"),
        (dp_group_by(dp_sum("n", INT64, 1, output=DOUBLE)), "the dtypes do not fit"),
        (dp_group_by(COUNT, domain=[np.array([1.0])]), "must be a vector of int32"),
        (dp_group_by(COUNT, domain=[np.array([1, 1], "i4")]), "a value twice"),
        (
            dp_group_by(COUNT, keys=[("k", DOUBLE)], domain=[np.array([-0.0, 0.0])]),
            "a value twice",
        ),
        (dp_group_by(COUNT, domain=[np.zeros(0, "i4")]), "at least one value"),
        (
            dp_group_by(dp_sum("n", DOUBLE, -1, -1, 1), delta=0, domain=[np.array([1], "i4")]),
            "there is no noise",
        ),
        (
            dp_group_by(
                COUNT, keys=[("a", INT32), ("b", INT32)], domain=[np.arange(1001, dtype="i4")] * 2
            ),
            "1001 * 1001 = 1002001 combinations; max_groups is 1000000",
        ),
    ],
)
def test_intrinsics_that_are_refused(intrinsic, expected):
    assert expected in refusal(Code.INVALID_ARGUMENT, make, intrinsic)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: p[:2], "no parameter 'max_groups_contributed'"),
        (lambda p: [*p, p[0]], "the parameter 'epsilon' twice"),
        (lambda p: [*p, parameter("sigma", 1)], "a parameter 'sigma'"),
        (lambda p: [*p, parameter("key_names", strings(b"k"))], "no parameter 'k' in its place"),
        (lambda p: [*p, parameter("key_names", strings(b"k", b"j"))], "a vector of 1 strings"),
    ],
)
def test_parameters_that_are_refused(change, expected):
    intrinsic = dp_group_by(COUNT)
    broken = changed(intrinsic, change(list(intrinsic.parameters)))
    assert expected in refusal(Code.INVALID_ARGUMENT, make, broken)


def test_only_sums_can_be_nested():
    plain = Intrinsic("GoogleSQL:sum", COUNT.inputs, COUNT.outputs)
    assert "'GoogleSQL:sum'" in refusal(Code.UNIMPLEMENTED, make, dp_group_by(plain))


def test_no_noise_at_all_is_refused_unless_the_operator_allows_it():
    intrinsic = dp_group_by(COUNT, epsilon=1e20)
    assert "allow_no_noise" in refusal(Code.FAILED_PRECONDITION, make, intrinsic)
    rows = [np.array([1, 2, 2], "i4"), np.array([1, 1, 1])]
    for least, expected in ((None, [1, 1]), (2, [1])):
        intrinsic = dp_group_by(COUNT, epsilon=1e20, groups=2, least=least)
        accumulator = feed(make(intrinsic, allow_no_noise=True), rows)
        one_more = [np.array([2], "i4"), np.array([0])]
        released = feed(accumulator, one_more).release(None)
        assert released.tensors[1].tolist() == expected
        assert released.promise.cost["epsilon"] == 1e20
        assert released.promise.noise == ()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([np.zeros(2, "i4"), np.zeros(3, "i8"), np.zeros(2), strings(b"", b"")], "of one length"),
        ([np.zeros((1, 1), "i4")] * 4, "of one length"),
        ([np.zeros(1, "i4"), np.zeros(1, "i8"), np.array([np.nan]), strings(b"")], "not finite"),
        ([np.zeros(1, "i4"), np.zeros(1, "i8"), np.array([np.inf]), strings(b"")], "not finite"),
        ([np.zeros(1, "i4"), np.zeros(1, "i8"), np.zeros(1), strings(b"a" * 257)], "256 are the"),
        ([np.zeros(2, "i4"), np.full(2, 2**62), np.zeros(2), strings(b"", b"")], "column 'n' has"),
        ([np.zeros(1, "i4"), np.full(1, -(2**63)), np.zeros(1), strings(b"")], "column 'n' has"),
    ],
)
def test_contributions_that_are_refused(columns, expected):
    intrinsic = dp_group_by(COUNT, dp_sum("x", DOUBLE, 1.5), keys=[("k", INT32), ("s", STRING)])
    number, count, real, text = columns
    accumulator = make(intrinsic)
    message = refusal(Code.INVALID_ARGUMENT, accumulator.validate, [number, text, count, real])
    assert expected in message


def test_what_a_device_may_add_is_clamped_and_scaled():
    intrinsic = dp_group_by(
        dp_sum("n", INT32, 10),
        dp_sum("x", DOUBLE, 4, 6),
        dp_sum("y", FLOAT, -1, -1, 5),
        groups=9,
        least=1,
    )
    rows = [
        np.array([1, 1, 2, 3], "i4"),
        np.array([8, 8, -99, 7], "i4"),
        np.array([3.0, 3.0, -5.0, 1.0]),
        np.array([6, 2, 6, 0], "f4"),
    ]
    keys, counts, reals, floats = feed(make(intrinsic), rows).report()
    assert keys.tolist() == [1, 2, 3]
    assert counts.tolist() == [10, -10, 7]
    # 4, -4 and 1 after the clamp, and then two thirds of that.
    np.testing.assert_allclose(reals, np.array([4, -4, 1]) * 6 / 9, rtol=1e-6)
    np.testing.assert_allclose(floats, [4, 3, 0], rtol=1e-6)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, database=None)
@given(data=st.data(), dtype=st.sampled_from([INT32, INT64, UINT64, FLOAT, DOUBLE]))
def test_a_bounded_contribution_is_within_its_bounds(data, dtype):
    whole = dtype.numpy.kind in "iu"
    low = 0 if dtype is UINT64 else -1000
    number = st.integers(low, 1000) if whole else st.floats(-1e6, 1e6, width=32)
    rows = data.draw(st.lists(st.tuples(st.integers(0, 4), number), min_size=1, max_size=8))
    bound = st.just(-1.0) | st.floats(1 if whole else 0.125, 2000)
    bounds = data.draw(st.tuples(bound, bound, bound).filter(lambda b: max(b) > 0))
    groups = data.draw(st.integers(1, 5))
    plan = GroupByPlan.of(dp_group_by(dp_sum("v", dtype, *bounds), groups=groups, least=1))
    device = group_by_device.DeviceBounds(plan)
    keys, values = zip(*rows, strict=True)
    inputs = [np.array(keys, "i4"), np.array(values, dtype.numpy)]
    device.check(inputs)
    found, kept = device.bounded(inputs)
    sums = kept.astype(np.float64) * device.units[0]
    assert len(set(found.tolist())) == found.size == min(groups, len(set(keys)))
    largest, l1, l2 = bounds
    slack = 1 + 1e-9
    assert largest <= 0 or np.abs(sums).max() <= largest
    assert l1 <= 0 or np.abs(sums).sum() <= l1 * slack
    assert l2 <= 0 or np.linalg.norm(sums) <= l2 * slack
    exact = defaultdict(float)
    for key, value in zip(keys, inputs[1].astype(np.float64).tolist(), strict=True):
        exact[key] += value
    if groups >= len(exact):
        wanted = np.array([exact[key] for key in found.tolist()])
        if largest > 0:
            most = math.floor(largest) if whole else largest
            wanted = np.clip(wanted, -most, most)
        norms = ((l1, np.abs(wanted).sum()), (l2, np.linalg.norm(wanted)))
        wanted *= min([1.0, *(b / norm for b, norm in norms if b > 0 and norm > 0)])
        assert (np.abs(sums) <= np.abs(wanted) * slack + 1e-9).all()
        assert (np.abs(wanted - sums) <= device.grids[0] * (1 + 1e-6)).all()


def test_groups_beyond_the_bound_are_chosen_evenly():
    randomness = Randomness(unsafe_seed=3)
    chosen = np.array([group_by_device.sample_of(5, 2, randomness) for _ in range(20_000)])
    assert (chosen[:, 0] != chosen[:, 1]).all()
    pairs = np.unique(np.sort(chosen, axis=1), axis=0, return_counts=True)[1]
    assert pairs.size == 10
    # Each is expected 2,000 times, give or take 42.
    assert abs(pairs - 2000).max() < 5 * 43
    accumulator = make(dp_group_by(COUNT, groups=2, least=1))
    for _ in range(30):
        feed(accumulator, [np.array([1, 2, 3, 4, 1], "i4"), np.ones(5, "i8")])
    assert accumulator.report()[1].sum() == 60


def test_keys_out_of_a_closed_domain_do_not_count():
    domain = [np.array([5, 1], "i4"), strings(b"x", b"y", b"z")]
    keys = [("k", INT32), ("s", STRING)]
    rows = [np.array([1, 7, 5, 1], "i4"), strings(b"z", b"z", b"q", b"x"), np.array([1, 1, 1, 1])]
    exhaustive = feed(make(dp_group_by(COUNT, keys=keys, groups=2, domain=domain)), rows)
    numbers, texts, counts = exhaustive.report()
    # The first key varies fastest.
    assert numbers.tolist() == [5, 1, 5, 1, 5, 1]
    assert texts.tolist() == [b"x", b"x", b"y", b"y", b"z", b"z"]
    assert counts.tolist() == [0, 1, 0, 0, 0, 1]
    some = feed(make(dp_group_by(COUNT, keys=keys, groups=2, least=1, domain=domain)), rows)
    assert sorted(some.report()[1].tolist()) == [b"x", b"z"]


def test_devices_are_counted_up_to_where_a_group_is_always_shown():
    intrinsic = dp_group_by(dp_sum("n", INT64, 5), epsilon=4.0, delta=0.02, least=2)
    accumulator = make(intrinsic)
    for _ in range(60):
        feed(accumulator, [np.array([1, 1, 1], "i4"), np.ones(3, "i8")])
    feed(accumulator, [np.array([2, 2], "i4"), np.ones(2, "i8")])
    state = state_pb2.GroupByAggregatorState.FromString(accumulator.dump()[:-8])
    selection = GroupByPlan.of(intrinsic).selection
    assert list(state.counter_of_contributors) == [selection.second_crossover + 1, 1]
    assert selection.second_crossover < 60


def test_the_state_is_the_aggregation_cores():
    """A ``GroupByAggregatorState``, padding of any length, and that length."""
    intrinsic = dp_group_by(dp_sum("n", INT32, 9), dp_sum("x", FLOAT, 8, output=FLOAT), groups=9)
    rows = [np.array([4, 5], "i4"), np.array([3, 9], "i4"), np.array([0.5, -3], "f4")]
    accumulator = feed(make(intrinsic), rows)
    dumped = accumulator.dump()
    state = state_pb2.GroupByAggregatorState.FromString(dumped[:-8])
    assert dumped[-8:] == bytes(8)
    assert state.num_inputs == 1
    parts = [part.vector_data for part in state.nested_aggregators]
    assert np.frombuffer(parts[0], "<i8").tolist() == [3, 9]
    assert np.frombuffer(parts[1], "<f4").tolist() == [0.5, -3]
    padded = dumped[:-8] + b"a" * 300 + (300).to_bytes(8, "little")
    loaded = DP_GROUP_BY.load(intrinsic, {}, padded)
    feed(loaded, rows)
    assert loaded.num_inputs == 2
    assert [c.tolist() for c in loaded.report()] == [[4, 5], [6, 18], [1, -6]]
    for broken in (dumped[:-8], dumped + b"x", padded[:-9] + b"b" + padded[-8:]):
        refusal(Code.INVALID_ARGUMENT, DP_GROUP_BY.load, intrinsic, {}, broken)


def test_a_sum_that_its_dtype_does_not_hold_is_dumped_without_loss():
    intrinsic = dp_group_by(
        dp_sum("n", INT32, 2**31 - 1, output=INT32), dp_sum("x", FLOAT, 1, output=FLOAT)
    )
    rows = [np.array([1], "i4"), np.array([2**31 - 1], "i4"), np.array([1 + 2**-22], "f4") / 3]
    accumulator = feed(make(intrinsic), *[rows] * 3)
    again = DP_GROUP_BY.load(intrinsic, {}, accumulator.dump())
    other = feed(make(intrinsic), *[rows] * 3)
    again.merge(other)
    accumulator.merge(other)
    assert again.dump() == accumulator.dump()
    # What is shown is the nearest that the dtype has.
    assert again.report()[1].tolist() == [2**31 - 1]


def test_a_state_with_keys_out_of_the_domain_is_refused():
    inside = dp_group_by(COUNT, domain=[np.array([1, 2], "i4")])
    outside = dp_group_by(COUNT, domain=[np.array([1, 3], "i4")])
    dumped = feed(make(outside), [np.array([3], "i4"), np.array([1])]).dump()
    message = refusal(Code.INVALID_ARGUMENT, DP_GROUP_BY.load, inside, {}, dumped)
    assert "not in its domain" in message


def test_very_many_keys_are_bounded():
    accumulator = make(dp_group_by(COUNT), max_groups=3)
    rows = [np.array([1, 2, 3, 4], "i4"), np.ones(4, "i8")]
    assert "max_groups is 3" in refusal(Code.RESOURCE_EXHAUSTED, accumulator.validate, rows)
