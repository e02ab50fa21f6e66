"""``fedsql_dp_group_by`` as an aggregator: its parameters, its laws, its bounds, its state."""

import math
from collections import defaultdict
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.aggregation.configuration import configuration_to_proto, parse_configuration
from fcp_core.aggregation.release import ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.aggregation.tensors import tensor_to_proto
from fcp_core.client import CallableStore, Client, make_query_result
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server import Server, ServerThread
from fcp_core.tasks.taskfile import parse_task
from fcp_core.testing.aggregators import AggregatorConformance
from fcp_privacy import group_by_device
from fcp_privacy.accounting import gaussian_sigma
from fcp_privacy.group_by import DP_GROUP_BY
from fcp_privacy.group_by_plan import Algorithm, GroupByPlan
from fcp_privacy.randomness import Randomness

INT32, INT64, UINT64 = DataType.INT32, DataType.INT64, DataType.UINT64
FLOAT, DOUBLE, STRING = DataType.FLOAT, DataType.DOUBLE, DataType.STRING
_WIDER = {INT32: INT64, FLOAT: DOUBLE}


def parameter(name, value):
    return Parameter(name, np.asarray(value))


def strings(*values):
    result = np.empty(len(values), object)
    result[:] = values
    return result


def dp_sum(name, dtype, *bounds, output=None):
    """Return a nested sum; the bounds are a group's, the L1 norm's and the L2 norm's."""
    spec = TensorSpec(name, dtype, (-1,))
    out = TensorSpec(f"{name} sum", output or _WIDER.get(dtype, dtype), (-1,))
    values = (*bounds, -1, -1)[:3]
    return Intrinsic(
        "GoogleSQL:$differential_privacy_sum",
        (spec,),
        (out,),
        tuple(parameter("", float(bound)) for bound in values),
    )


def dp_group_by(
    *sums, keys=(("k", INT32),), epsilon=1.0, delta=1e-6, groups=1, least=None, domain=()
):
    """Return an intrinsic; *domain* has the values of each key."""
    specs = tuple(TensorSpec(name, dtype, (-1,)) for name, dtype in keys)
    parameters = [
        parameter("epsilon", epsilon),
        parameter("delta", delta),
        parameter("max_groups_contributed", groups),
    ]
    if domain:
        parameters.append(parameter("key_names", strings(*(spec.name.encode() for spec in specs))))
        parameters += [
            parameter(spec.name, values) for spec, values in zip(specs, domain, strict=True)
        ]
    if least is not None:
        parameters.append(parameter("min_contributors_to_group", least))
    return Intrinsic("fedsql_dp_group_by", specs, specs, tuple(parameters), sums)


def make(intrinsic, **options):
    return DP_GROUP_BY.make(intrinsic, options)


def feed(accumulator, *contributions):
    for contribution in contributions:
        accumulator.validate(contribution)
        accumulator.accumulate(contribution)
    return accumulator


def context(seed):
    """Return a context whose noise is always the same, so that no test fails by chance."""
    return ReleaseContext(goal_count=1, entropy=lambda size: bytes([seed]) * size)


def release(accumulator, seed=1):
    return accumulator.release(context(seed)).tensors


def refusal(code, function, *args, **kwargs):
    with pytest.raises(StatusError) as caught:
        function(*args, **kwargs)
    assert caught.value.code is code
    return caught.value.message


def off(successes, trials, probability):
    """Return by how many standard deviations a number of successes is off."""
    return (successes - trials * probability) / math.sqrt(trials * probability * (1 - probability))


COUNT = dp_sum("n", INT64, 1)


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


class DpLaws(AggregatorConformance):
    factory = DP_GROUP_BY
    max_examples = 12
    domain = None

    def contributions(self):
        def tensors(rows):
            names, numbers, counts, reals = zip(*rows, strict=True) if rows else ((),) * 4
            return [
                strings(*(b"k%d" % name for name in names)),
                np.array(numbers, "i4"),
                np.array(counts, "i4"),
                np.array(reals, "f8"),
            ]

        few, value = st.integers(0, 1), st.integers(-12, 12)
        return st.lists(st.tuples(few, few, value, value), max_size=5).map(tensors)

    def refused(self):
        return self.contributions().map(lambda c: [*c[:3], np.append(c[3], np.nan)])

    def normalise(self, result):
        order = sorted(range(result[0].size), key=lambda row: (result[0][row], result[1][row]))
        return [tensor[order] for tensor in result]

    def reference(self, contributions):
        totals, devices = defaultdict(lambda: [0, 0.0]), defaultdict(int)
        for contribution in contributions:
            own = defaultdict(lambda: [0, 0.0])
            for name, number, count, real in zip(*contribution, strict=True):
                own[name, int(number)][0] += int(count)
                own[name, int(number)][1] += float(real)
            for key, (count, real) in own.items():
                totals[key][0] += max(-10, min(10, count))
                totals[key][1] += max(-8.0, min(8.0, real))
                devices[key] += 1
        least = 1
        for wanted in self.intrinsic.parameters:
            if wanted.name == "min_contributors_to_group":
                least = int(wanted.value)
        keys = [key for key in totals if devices[key] >= least]
        if self.domain is not None:
            keys = [(name, number) for number in (0, 1) for name in (b"k0", b"k1")]
        return [
            strings(*(name for name, _ in keys)),
            np.array([number for _, number in keys], "i4"),
            np.array([totals[key][0] for key in keys], "i8"),
            np.array([totals[key][1] for key in keys], "f8"),
        ]


def laws(**fields):
    sums = (dp_sum("n", INT32, 10), dp_sum("x", DOUBLE, 8))
    return dp_group_by(*sums, keys=[("s", STRING), ("k", INT32)], groups=4, **fields)


class TestByThreshold(DpLaws):
    intrinsic = laws()


class TestBySelection(DpLaws):
    intrinsic = laws(least=2)


class TestExhaustive(DpLaws):
    domain = (strings(b"k0", b"k1"), np.array([0, 1], "i4"))
    intrinsic = laws(domain=domain)


class TestSelectionInADomain(DpLaws):
    intrinsic = laws(least=1, domain=(strings(b"k0", b"k1"), np.array([0, 1], "i4")))


class TestWithoutKeys(AggregatorConformance):
    factory = DP_GROUP_BY
    max_examples = 12
    intrinsic = dp_group_by(dp_sum("x", FLOAT, 1024), keys=())

    def reference(self, contributions):
        total = sum(max(-1024, min(1024, float(c[0].sum()))) for c in contributions)
        return [np.array([total], "f8")]


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


QUERY = """
[task]
population = "phones"
name = "launches"
goal_count = 10
[[query]]
collection_uri = "app:/launches"
[query.vectors]
app = "string"
n = "int64"
[result]
group_by = ["app"]
sum = ["n"]
"""


def test_a_served_query_hides_what_one_device_says(tmp_path):
    """Ten devices, one of which exaggerates, and one of which has an app of its own."""
    config = dp_group_by(dp_sum("n", INT64, 1), keys=[("app", STRING)], epsilon=50.0)
    aggregation = configuration_to_proto([config]).SerializeToString()
    spec = parse_task(QUERY).to_spec().replace(aggregation=aggregation)
    overrides = {
        "plugins": "fcp_privacy.plugin:PrivacyPlugin",
        "privacy.epsilon": "60",
        "retry_min": "0s",
        "retry_max": "0s",
    }
    plugins = Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path)
    answers = [{"maps": 1000}, {"own": 1}, *[{"maps": 1, "mail": 1}] * 3, *[{"maps": 1}] * 5]
    with ServerThread(Server(plugins)) as running:
        tasks = running.server.services.tasks
        bad = spec.replace(aggregation=aggregation.replace(b"epsilon", b"epsilom"))
        with pytest.raises(StatusError, match="parameter 'epsilom'"):
            running.run(tasks.submit(bad)).result()
        task = running.run(tasks.submit(spec)).result()
        for answer in answers:
            vectors = {"app": list(answer), "n": np.array(list(answer.values()), np.int64)}
            store = CallableStore(
                lambda selector: (), query=lambda query, v=vectors: make_query_result(v)
            )
            url = running.server.url
            with Client(url, "phones", stores={"app:/launches": store}) as client:
                assert client.run_once().outcome.name == "CONTRIBUTED"
        table = open_checkpoint(running.run(tasks.wait(task)).result())
        # The noise is of the scale 0.04: a group of one device is there once in a million times.
        counts = dict(zip(table["app"].tolist(), table["n sum"].tolist(), strict=True))
        assert b"own" not in counts
        assert 6 <= counts[b"maps"] <= 9
        release = running.run(tasks.status(task)).result().release
        (cost,) = release["costs"]
        assert (cost["epsilon"], cost["delta"]) == (50, 1e-6)
        assert release["noise"][0]["output"] == "n sum"
        assert release["noise"][0]["stddev"] == pytest.approx(0.04 * math.sqrt(2), rel=1e-8)
        # What is left of the budget is not enough for another one.
        with pytest.raises(StatusError, match="epsilon"):
            running.run(tasks.submit(spec)).result()
