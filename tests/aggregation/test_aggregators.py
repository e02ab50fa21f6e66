"""What the built-in aggregators do at the edges that the laws do not reach."""

from __future__ import annotations

import numpy as np
import pytest

from fcp_aggregators.group_by import GroupBy
from fcp_aggregators.plugin import fcp_add_options
from fcp_aggregators.vector import SumAccumulator
from fcp_core.aggregation.spec import DataType, Intrinsic
from fcp_core.errors import UsageError
from fcp_core.plugins.config import Config, OptionRegistry, Sources
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code
from tests.aggregation.edges import FACTORIES, feed, intrinsic, make, parameter, refusal, spec

ALLOWED = {"allow_unprotected": True}
SECURE = ("federated_secure_sum", "federated_secure_sum_bitwidth", "federated_secure_modular_sum")
UNKNOWN = spec(shape=(-1,))
STRING = spec(dtype=DataType.STRING)
INT = spec(dtype=DataType.INT32)


@pytest.mark.parametrize(
    ("uri", "inputs", "others", "expected"),
    [
        ("federated_sum", (), {}, "0 inputs, where 1 are expected"),
        ("federated_sum", (spec(), spec()), {}, "2 inputs"),
        ("federated_sum", (spec(),), {"outputs": ()}, "0 outputs"),
        ("federated_sum", (spec(),), {"parameters": (parameter(1),)}, "1 parameters"),
        ("federated_sum", (spec(),), {"nested": (Intrinsic("x"),)}, "1 nested intrinsics"),
        ("federated_sum", (STRING,), {}, "is a string tensor"),
        ("federated_sum", (UNKNOWN,), {}, "unknown dimension"),
        ("federated_sum", (spec(shape=(1 << 40,)),), {}, "more than"),
        ("federated_sum", (spec(),), {"outputs": (spec(shape=(3,)),)}, "differ in dtype or shape"),
        ("federated_max", (spec(),), {"outputs": (INT,)}, "differ in dtype or shape"),
        ("federated_mean", (INT,), {}, "must be of dtype float or double"),
        ("federated_mean", (spec(), spec()), {}, "2 inputs, where 1"),
        ("federated_weighted_mean", (spec(),), {}, "1 inputs, where 2"),
        ("federated_weighted_mean", (spec(), spec()), {}, "must be one number"),
        (
            "federated_weighted_mean",
            (spec(), spec(dtype=DataType.STRING, shape=())),
            {},
            "one number",
        ),
        ("fedsql_group_by", (spec(),), {}, "must be equal vectors [?]"),
        ("fedsql_group_by", (UNKNOWN,), {"outputs": ()}, "1 key inputs and 0 outputs"),
        ("fedsql_group_by", (), {}, "neither keys nor nested"),
        ("fedsql_group_by", (UNKNOWN,), {"parameters": (parameter(2),)}, "its parameters are ['']"),
        (
            "fedsql_group_by",
            (UNKNOWN,),
            {"parameters": (parameter(0, "min_contributors_to_group"),)},
            "must be at least 1, not 0",
        ),
        (
            "fedsql_group_by",
            (UNKNOWN,),
            {"parameters": (parameter(1.5, "min_contributors_to_group"),)},
            "must be one integer, not float64[]",
        ),
        (
            "fedsql_group_by",
            (UNKNOWN,),
            {"nested": (Intrinsic("GoogleSQL:avg", (UNKNOWN,), (UNKNOWN,)),)},
            "it nests 'GoogleSQL:avg'; only 'GoogleSQL:sum', 'GoogleSQL:min'",
        ),
        ("GoogleSQL:sum", (spec(),), {}, "must be vectors"),
        (
            "GoogleSQL:sum",
            (UNKNOWN,),
            {"outputs": (spec(dtype=DataType.INT64, shape=(-1,)),)},
            "the dtypes do not fit",
        ),
    ],
)
def test_intrinsics_that_are_refused(uri, inputs, others, expected):
    assert expected in refusal(Code.INVALID_ARGUMENT, make, uri, *inputs, **others)


def test_sums_neither_wrap_around_nor_become_infinite():
    top = np.iinfo("i4").max
    one = [np.array([1, 1], "i4")]
    total = feed(make("federated_sum", INT), [np.array([top, 1], "i4")])
    assert "range of int32" in refusal(Code.INVALID_ARGUMENT, feed, total, one)
    assert feed(total, [np.array([-1, 1], "i4")], one).report()[0].tolist() == [top, 3]
    unsigned = spec(dtype=DataType.UINT64)
    total = feed(make("federated_sum", unsigned), [np.array([2**64 - 1, 0], "u8")])
    refusal(Code.INVALID_ARGUMENT, feed, total, [np.array([1, 0], "u8")])
    big = np.full(2, np.finfo("f4").max, "f4")
    refusal(Code.INVALID_ARGUMENT, feed, make("federated_sum", spec()), [big], [big])


def test_where_they_are_allowed_floats_overflow_and_integers_do_not():
    lax = {"allow_non_finite": True}
    big = np.full(2, np.finfo("f4").max, "f4")
    for uri in ("federated_sum", "federated_mean"):
        result = feed(make(uri, spec(), options=lax), [big], [big]).report()
        assert np.isinf(result[0]).all()
    total = make("federated_sum", INT, options=lax)
    refusal(Code.INVALID_ARGUMENT, feed, total, *[[np.full(2, 2**30, "i4")]] * 2)


def test_extrema_of_infinities_and_of_nan():
    inf = np.array([np.inf, np.nan], "f4")
    for uri in ("federated_min", "federated_max"):
        message = refusal(Code.INVALID_ARGUMENT, feed, make(uri, spec()), [inf])
        assert "has inf among its numbers (element 0)" in message
    lax = {"allow_non_finite": True}
    lowest = feed(make("federated_min", spec(), options=lax), [inf])
    assert lowest.report()[0][0] == np.inf
    assert np.isnan(feed(lowest, [np.zeros(2, "f4")]).report()[0][1])
    greatest = feed(make("federated_max", spec(), options=lax), [-inf])
    assert greatest.report()[0][0] == -np.inf


@pytest.mark.parametrize("dtype", [dtype for dtype in DataType if dtype is not DataType.STRING])
def test_extrema_of_nothing_are_the_ends_of_the_dtype(dtype):
    info = np.finfo(dtype.numpy) if dtype.numpy.kind == "f" else np.iinfo(dtype.numpy)
    for uri, expected in (("federated_min", info.max), ("federated_max", info.min)):
        assert (make(uri, spec(dtype=dtype)).report()[0] == expected).all()


def test_int32_weights_are_added_in_64_bits_and_their_old_states_are_read():
    weight = spec("w", DataType.INT32, ())
    heavy = np.array(1_500_000_000, "i4")
    mean = make("federated_weighted_mean", spec(), weight)
    feed(mean, [np.full(2, 1, "f4"), heavy], [np.full(2, 3, "f4"), heavy])
    assert mean.report()[0].tolist() == [2, 2]
    state = state_pb2.FederatedMeanAggregatorState(
        num_inputs=2,
        weights_sum=np.array(3, "<i4").tobytes(),
        weighted_values_sum=np.array([3, 6], "<f4").tobytes(),
    )
    intrinsic = Intrinsic("federated_weighted_mean", (spec(), weight), (spec("out"),))
    factory = FACTORIES["federated_weighted_mean"]
    loaded = factory.load(intrinsic, {}, state.SerializeToString())
    assert loaded.report()[0].tolist() == [1, 2]


def test_a_weight_that_is_no_weight_is_refused():
    weight = spec("w", DataType.FLOAT, ())
    mean = make("federated_weighted_mean", spec(), weight)
    for bad in (np.nan, np.inf, -np.inf, -1.0):
        message = refusal(
            Code.INVALID_ARGUMENT, feed, mean, [np.zeros(2, "f4"), np.array(bad, "f4")]
        )
        assert "weight 'w' must be zero or above and finite" in message
    # A product and a sum of weights have to fit as well.
    big = np.array(3e38, "f4")
    refusal(Code.INVALID_ARGUMENT, feed, mean, [np.full(2, 2, "f4"), big])
    refusal(Code.INVALID_ARGUMENT, feed, mean, *[[np.zeros(2, "f4"), big]] * 2)


def test_a_weight_of_zero_counts_and_adds_nothing():
    weight = spec("w", DataType.FLOAT, ())
    mean = make("federated_weighted_mean", spec(), weight)
    nothing = [np.ones(2, "f4"), np.array(0, "f4")]
    feed(mean, nothing, [np.full(2, 3, "f4"), np.array(2, "f4")])
    assert mean.num_inputs == 2
    assert mean.report()[0].tolist() == [3, 3]
    # TensorFlow Federated divides by zero then.
    mean = feed(make("federated_weighted_mean", spec(), weight), nothing, nothing)
    assert np.isnan(mean.report()[0]).all()


def test_a_largest_weight_and_a_largest_norm_are_kept():
    weight = spec("w", DataType.FLOAT, ())
    limits = {"max_weight": 100.0, "max_norm": 5.0}
    mean = make("federated_weighted_mean", spec(), weight, options=limits)
    fits = [np.array([3, 4], "f4"), np.array(100, "f4")]
    heavy = [fits[0], np.array(101, "f4")]
    assert "is 101.0; max_weight is 100" in refusal(Code.INVALID_ARGUMENT, feed, mean, heavy)
    for value in ([3, 4.1], [1e30, 1e30]):
        long = [np.array(value, "f4"), fits[1]]
        assert "max_norm is 5" in refusal(Code.INVALID_ARGUMENT, feed, mean, long)
    assert mean.additions() is None
    assert feed(mean, fits).report()[0].tolist() == [3, 4]
    total = make("federated_sum", INT, options={"max_norm": 5.0})
    refusal(Code.INVALID_ARGUMENT, feed, total, [np.array([3, 5], "i4")])
    assert feed(total, [np.array([3, -4], "i4")]).report()[0].tolist() == [3, -4]


def test_a_median_of_large_numbers_is_finite():
    for dtype in (DataType.FLOAT, DataType.DOUBLE):
        top = np.finfo(dtype.numpy).max
        median = make("federated_mean", spec(dtype=dtype), name="median")
        for value in (top, 0, top / 2, top):
            feed(median, [np.array([value, 1], dtype.numpy)])
        assert median.report()[0].tolist() == pytest.approx([top * 0.75, 1])


def test_a_large_weighted_mean_is_that_of_numpy():
    size = 200_001
    rng = np.random.default_rng(7)
    values = rng.normal(size=(5, size)).astype("f4")
    weights = rng.uniform(0.5, 2, 5).astype("f4")
    mean = make("federated_weighted_mean", spec(shape=(size,)), spec("w", DataType.FLOAT, (1,)))
    feed(mean, *([value, weight[None]] for value, weight in zip(values, weights, strict=True)))
    expected = np.average(values.astype("f8"), axis=0, weights=weights.astype("f8"))
    np.testing.assert_allclose(mean.report()[0], expected, rtol=1e-3, atol=1e-5)


def test_a_median_is_not_moved_by_one_bad_client():
    median = make("federated_mean", spec(shape=()), name="median")
    refusal(Code.INVALID_ARGUMENT, feed, median, [np.array(np.nan, "f4")])
    lax = {"allow_non_finite": True}
    for values, expected in (([1, 2, 1e30], 2), ([1, 2, 3, -1e30], 1.5), ([1, np.nan], np.nan)):
        median = make("federated_mean", spec(shape=()), name="median", options=lax)
        feed(median, *([np.array(value, "f4")] for value in values))
        np.testing.assert_array_equal(median.report()[0], np.float32(expected))


def test_states_are_upstreams_messages():
    total = feed(make("federated_sum", INT), [np.array([1, 2], "i4")])
    state = state_pb2.AggVectorAggregatorState.FromString(total.dump())
    assert (state.num_inputs, state.vector_data) == (1, b"\1\0\0\0\2\0\0\0")

    mean = feed(make("federated_mean", spec()), [np.array([1, 2], "f4")])
    state = state_pb2.FederatedMeanAggregatorState.FromString(mean.dump())
    assert state.weights_sum == bytes(4)
    assert state.weighted_values_sum == np.array([1, 2], "<f4").tobytes()

    weight = spec("w", DataType.INT64, ())
    mean = make("federated_weighted_mean", spec(), weight)
    feed(mean, [np.array([1, 2], "f4"), np.array(3)])
    state = state_pb2.FederatedMeanAggregatorState.FromString(mean.dump())
    assert state.weights_sum == b"\3" + bytes(7)
    assert state.weighted_values_sum == np.array([3, 6], "<f4").tobytes()


@pytest.mark.parametrize("uri", SECURE)
def test_secure_sums_are_refused_unless_they_are_allowed_by_name(uri):
    for options in ({}, {"allow_unprotected": False}, {"allow_unprotected": "true"}):
        message = refusal(Code.FAILED_PRECONDITION, make, uri, INT, options=options)
        assert f"set allow_unprotected = true in [fcp:aggregator.{uri}]" in message
    dump = make(uri, INT, options=ALLOWED).dump()
    refusal(Code.FAILED_PRECONDITION, FACTORIES[uri].load, intrinsic(uri, INT), {}, dump)


@pytest.mark.parametrize("uri", SECURE)
def test_only_the_operator_allows_a_sum_in_the_clear(uri, tmp_path):
    registry = OptionRegistry()
    fcp_add_options(registry)
    section = f"aggregator.{uri}"
    refusing = Config(registry, Sources(working_folder=tmp_path, environ={}))
    assert refusing.section(section) == {"allow_unprotected": False}
    allowing = Sources(
        working_folder=tmp_path, environ={}, overrides={f"{section}.allow_unprotected": True}
    )
    make(uri, INT, options=Config(registry, allowing).section(section))
    with pytest.raises(UsageError, match="a task cannot set it"):
        refusing.section(section, {"allow_unprotected": True})


@pytest.mark.parametrize(
    ("uri", "value", "expected"),
    [
        ("federated_secure_sum", [1, 2], "must be one integer"),
        ("federated_secure_sum", 1.0, "must be one integer"),
        ("federated_secure_sum", -1, "at least 0"),
        ("federated_secure_sum_bitwidth", 65, "at most 64"),
        ("federated_secure_modular_sum", 0, "at least 1"),
        ("federated_secure_modular_sum", 1 << 31, "does not fit the dtype int32"),
    ],
)
def test_bounds_that_make_no_sense(uri, value, expected):
    assert expected in refusal(
        Code.INVALID_ARGUMENT, make, uri, INT, parameters=(parameter(value),), options=ALLOWED
    )


def test_secure_sums_of_floats_are_refused():
    for uri in SECURE:
        assert "integer dtype" in refusal(Code.INVALID_ARGUMENT, make, uri, spec(), options=ALLOWED)


def test_secure_sums_without_bounds_are_plain_sums():
    for uri in SECURE:
        total = make(uri, INT, options=ALLOWED)
        feed(total, [np.array([-5, 7], "i4")], [np.array([1, 1], "i4")])
        assert total.report()[0].tolist() == [-4, 8]


def test_states_of_two_bounds_cannot_be_merged():
    def bounded(limit):
        return make("federated_secure_sum", INT, parameters=(parameter(limit),), options=ALLOWED)

    bounded(3).merge(bounded(3))
    refusal(Code.INVALID_ARGUMENT, bounded(3).merge, bounded(4))


def test_states_of_two_kinds_cannot_be_merged():
    refusal(
        Code.INVALID_ARGUMENT,
        make("federated_sum", spec()).merge,
        make("federated_min", spec()),
    )
    unweighted = make("federated_mean", spec(), name="unweighted_mean")
    median = make("federated_mean", spec(), name="median")
    for one, other in ((unweighted, median), (median, unweighted)):
        refusal(Code.INVALID_ARGUMENT, one.merge, other)
    weight = spec("w", DataType.INT32, ())
    weighted = make("federated_weighted_mean", spec(), weight)
    ignoring = make("federated_weighted_mean", spec(), weight, name="unweighted_mean")
    refusal(Code.INVALID_ARGUMENT, weighted.merge, ignoring)


def test_a_state_may_still_be_given_before_the_options():
    for kind, one in (
        (SumAccumulator, intrinsic("federated_sum", INT)),
        (GroupBy, intrinsic("fedsql_group_by", spec(shape=(-1,)))),
    ):
        dumped = feed(kind(one, ALLOWED), [np.array([3, 4], one.inputs[0].dtype.numpy)]).dump()
        assert kind.load(one, ALLOWED, dumped).dump() == dumped
        for old in ((dumped,), (dumped, ALLOWED)):
            with pytest.warns(DeprecationWarning, match=r"write load.intrinsic, options,") as said:
                assert kind.load(one, *old).dump() == dumped
            assert [warning.filename for warning in said] == [__file__]
