"""What the built-in aggregators do at the edges that the laws do not reach."""

from __future__ import annotations

import numpy as np
import pytest

from fcp_aggregators.plugin import fcp_add_options, fcp_register_aggregators
from fcp_core.aggregation.key_index import KeyIndex
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.plugins.config import Config, OptionRegistry, Sources
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code, StatusError

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}
ALLOWED = {"allow_unprotected": True}
SECURE = ("federated_secure_sum", "federated_secure_sum_bitwidth", "federated_secure_modular_sum")


def spec(name="x", dtype=DataType.FLOAT, shape=(2,)):
    return TensorSpec(name, dtype, shape)


def intrinsic(uri, *inputs, outputs=None, parameters=(), nested=()):
    return Intrinsic(uri, inputs, inputs[:1] if outputs is None else outputs, parameters, nested)


def parameter(value, name=""):
    return Parameter(name, np.asarray(value))


def make(uri, *inputs, options=None, name=None, **others):
    return FACTORIES[name or uri].make(intrinsic(uri, *inputs, **others), options or {})


def feed(accumulator, *contributions):
    for contribution in contributions:
        tensors = [np.asarray(tensor) for tensor in contribution]
        accumulator.validate(tensors)
        accumulator.accumulate(tensors)
    return accumulator


def refusal(code, function, *args, **kwargs):
    with pytest.raises(StatusError) as caught:
        function(*args, **kwargs)
    assert caught.value.code is code
    return caught.value.message


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


def group_by(*keys, minimum=None, sums=(DataType.INT64,)):
    columns = tuple(spec(f"k{index}", dtype, (-1,)) for index, dtype in enumerate(keys))
    nested = tuple(
        intrinsic("GoogleSQL:sum", spec(f"v{index}", dtype, (-1,)))
        for index, dtype in enumerate(sums)
    )
    parameters = () if minimum is None else (parameter(minimum, "min_contributors_to_group"),)
    return make("fedsql_group_by", *columns, outputs=columns, parameters=parameters, nested=nested)


def strings(*values):
    column = np.empty(len(values), object)
    column[:] = values
    return column


def test_groups_come_in_the_order_of_their_first_appearance():
    groups = group_by(DataType.STRING, DataType.INT32)
    feed(
        groups,
        [strings(b"z", b"a", b"z"), np.array([1, 1, 1], "i4"), np.array([1, 2, 3])],
        [strings(b"m", b"z", b"z"), np.array([1, 2, 1], "i4"), np.array([4, 5, 6])],
        [strings(), np.zeros(0, "i4"), np.zeros(0, "i8")],
    )
    assert groups.num_inputs == 3
    names, numbers, sums = groups.report()
    assert names.tolist() == [b"z", b"a", b"m", b"z"]
    assert numbers.tolist() == [1, 1, 1, 2]
    assert sums.tolist() == [10, 2, 4, 5]


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.DOUBLE])
def test_all_nans_are_one_key_and_both_zeros_are_another(dtype):
    index = KeyIndex([dtype])
    bits = {
        4: [0x7FC00000, 0xFFC00001, 0x7F800001],
        8: [0x7FF8 << 48, 0xFFF8 << 48, 0x7FF0 << 48 | 1],
    }
    size = dtype.numpy.itemsize
    nans = np.array(bits[size], f"u{size}").view(f"f{size}")
    zeros, others = np.array([-0.0, 0.0], dtype.numpy), np.array([0.0, 1.0], dtype.numpy)
    column = np.concatenate([zeros, nans, others, nans])
    assert index.add([column]).tolist() == [0, 0, 1, 1, 1, 0, 2, 1, 1, 1]
    assert str(index.columns()[0].tolist()) == "[0.0, nan, 1.0]"


def test_the_sum_of_a_group_neither_wraps_around_nor_becomes_infinite():
    for dtype, top, more in (
        (DataType.INT64, 2**63 - 1, 1),
        (DataType.INT64, -(2**63), -1),
        (DataType.UINT64, 2**64 - 1, 1),
        (DataType.FLOAT, 3e38, 3e38),
    ):
        groups = group_by(DataType.STRING, sums=(dtype,))
        feed(groups, [strings(b"a", b"b"), np.array([top, 1], dtype.numpy)])
        before = groups.dump()
        for rows in ([b"a"], [b"c", b"a"], [b"a", b"c"]):
            value = np.full(len(rows), more, dtype.numpy)
            message = refusal(Code.INVALID_ARGUMENT, feed, groups, [strings(*rows), value])
            assert f"range of {dtype.numpy}" in message
            assert groups.dump() == before
        # Other groups still have room, and two of one contribution that are too much have none.
        feed(groups, [strings(b"b", b"c"), np.array([1, more], dtype.numpy)])
        assert groups.report()[1].tolist() == np.array([top, 2, more], dtype.numpy).tolist()
        twice = [strings(b"d", b"d"), np.array([top, top], dtype.numpy)]
        refusal(Code.INVALID_ARGUMENT, feed, groups, twice)
        other = feed(group_by(DataType.STRING, sums=(dtype,)), [strings(b"a"), value[:1]])
        before = other.dump()
        refusal(Code.OUT_OF_RANGE, other.merge, groups)
        assert other.dump() == before


def test_a_column_with_a_nan_is_refused_unless_it_is_allowed():
    rows = [strings(b"a", b"b"), np.array([1, np.nan])]
    groups = group_by(DataType.STRING, sums=(DataType.DOUBLE,))
    assert "finite ones only" in refusal(Code.INVALID_ARGUMENT, feed, groups, rows)
    lax = FACTORIES["fedsql_group_by"].make(groups._intrinsic, {"allow_non_finite": True})
    np.testing.assert_array_equal(feed(lax, rows).report()[1], [1, np.nan])


def test_keys_of_many_columns_do_not_run_together():
    index = KeyIndex([DataType.STRING, DataType.STRING, DataType.UINT64])
    big = np.array([2**64 - 1, 2**64 - 1, 0], "u8")
    rows = [strings(b"a", b"ab", b"a"), strings(b"bc", b"c", b"bc"), big]
    assert index.add(rows).tolist() == [0, 1, 2]
    assert index.add([column[::-1] for column in rows]).tolist() == [2, 1, 0]
    assert index.columns()[2].tolist() == big.tolist()


def test_without_keys_there_is_one_group_once_there_is_a_row():
    groups = group_by(sums=(DataType.INT64, DataType.FLOAT))
    assert [column.shape for column in groups.report()] == [(0,), (0,)]
    feed(groups, [np.zeros(0, "i8"), np.zeros(0, "f4")])
    assert [column.shape for column in groups.report()] == [(0,), (0,)]
    feed(groups, [np.array([1, 2]), np.array([0.5, 1], "f4")], [np.array([3]), np.array([1], "f4")])
    assert [column.tolist() for column in groups.report()] == [[6], [2.5]]


def test_scalars_are_rows_too():
    groups = group_by(DataType.INT32)
    feed(groups, [np.array(1, "i4"), np.array(5)], [np.array([1], "i4"), np.array([6])])
    assert [column.tolist() for column in groups.report()] == [[1], [11]]
    message = refusal(Code.INVALID_ARGUMENT, feed, groups, [np.array(1, "i4"), np.array([6])])
    assert "must be of one length" in message


def test_groups_of_few_devices_are_left_out_and_the_others_shuffled():
    groups = group_by(DataType.INT32, minimum=2)
    keys = np.arange(64, dtype="i4")
    # Keys 0 to 31 are of one device only, which has two rows of each of them.
    feed(groups, [keys[32:], np.ones(32, "i8")], [np.tile(keys, 2), np.ones(128, "i8")])
    reports = [groups.report()[0].tolist() for _ in range(3)]
    for report in reports:
        assert sorted(report) == list(range(32, 64))
    # 32 rows keep their order by chance once in 10**35 times.
    assert any(report != sorted(report) for report in reports)
    empty = group_by(DataType.INT32, minimum=100)
    assert [column.shape for column in feed(empty, [keys, keys.astype("i8")]).report()] == [
        (0,)
    ] * 2


def test_counters_count_devices_and_are_capped_and_added_when_merged():
    one, two = group_by(DataType.INT32, minimum=3), group_by(DataType.INT32, minimum=3)
    for keys in ([1, 1, 2], [1], [1], [1]):
        feed(one, [np.array(keys, "i4"), np.ones(len(keys), "i8")])
    for keys in ([2, 2, 3, 3, 3, 3], [2]):
        feed(two, [np.array(keys, "i4"), np.ones(len(keys), "i8")])
    one.merge(two)
    state = state_pb2.GroupByAggregatorState.FromString(one.dump())
    assert list(state.counter_of_contributors) == [3, 3, 1]
    assert sorted(one.report()[0].tolist()) == [1, 2]


def test_group_by_states_that_contradict_themselves():
    groups = feed(group_by(DataType.INT32), [np.array([1, 2], "i4"), np.array([3, 4])])
    template = groups.dump()
    plain = intrinsic(
        "fedsql_group_by",
        spec("k0", DataType.INT32, (-1,)),
        nested=(intrinsic("GoogleSQL:sum", spec("v0", DataType.INT64, (-1,))),),
    )

    def broken(change):
        state = state_pb2.GroupByAggregatorState.FromString(template)
        change(state)
        return state.SerializeToString()

    changes = {
        "1 groups": lambda s: (
            s.nested_aggregators[0].ClearField("vector_data")
            or setattr(s.nested_aggregators[0], "vector_data", bytes(8))
        ),
        "not a vector": lambda s: setattr(s.nested_aggregators[0], "vector_data", b"123"),
        "key twice": lambda s: setattr(s.keys[0], "content", bytes(8)),
        "bytes of content": lambda s: setattr(s.keys[0], "content", b"1"),
        "is float32[2]": lambda s: setattr(s.keys[0], "dtype", 1),
        "2 sums": lambda s: s.nested_aggregators.add(),
        "2 keys": lambda s: s.keys.add(),
    }
    for expected, change in changes.items():
        message = refusal(
            Code.INVALID_ARGUMENT, FACTORIES["fedsql_group_by"].load, plain, {}, broken(change)
        )
        assert expected in message
    lone = Intrinsic("fedsql_group_by", nested=plain.nested)
    rows = state_pb2.GroupByAggregatorState(nested_aggregators=[{"vector_data": bytes(16)}])
    assert "2 groups without keys" in refusal(
        Code.INVALID_ARGUMENT,
        FACTORIES["fedsql_group_by"].load,
        lone,
        {},
        rows.SerializeToString(),
    )


def test_many_groups_are_the_same_as_in_plain_python():
    rng = np.random.default_rng(3)
    groups, expected = group_by(DataType.INT64, DataType.STRING), {}
    for _ in range(20):
        numbers = rng.integers(0, 50, 500)
        names = strings(*(b"%d" % value for value in rng.integers(0, 50, 500)))
        values = rng.integers(-9, 9, 500)
        feed(groups, [numbers, names, values])
        for number, name, value in zip(numbers.tolist(), names, values.tolist(), strict=True):
            expected[number, name] = expected.get((number, name), 0) + value
    numbers, names, sums = (column.tolist() for column in groups.report())
    assert list(zip(numbers, names, strict=True)) == list(expected)
    assert sums == list(expected.values())
