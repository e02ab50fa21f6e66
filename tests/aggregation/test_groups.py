"""What grouping by keys does at the edges that the laws do not reach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.aggregation.key_index import KeyIndex
from fcp_core.aggregation.number_index import NumberIndex
from fcp_core.aggregation.spec import DataType, Intrinsic
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code
from tests.aggregation.edges import FACTORIES, feed, intrinsic, make, parameter, refusal, spec


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


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_keys_are_numbered_as_a_dictionary_would(data):
    """Many or few rows, known or not; `find` says beforehand what `add` will do."""
    dtypes = data.draw(
        st.lists(
            st.sampled_from([DataType.INT64, DataType.INT32, DataType.STRING]),
            min_size=1,
            max_size=3,
        )
    )
    index, wanted = KeyIndex(dtypes), {}
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for _ in range(data.draw(st.integers(1, 4))):
        rows = data.draw(st.sampled_from([0, 1, 5, 300, 9000]))
        most = data.draw(st.sampled_from([2, 40, 1 << 31]))
        columns = []
        for dtype in dtypes:
            numbers = draw.integers(-most, most, rows)
            if dtype is DataType.STRING:
                columns.append(strings(*(b"%d" % number for number in numbers)))
            else:
                columns.append(numbers.astype(dtype.numpy))
        keys = list(zip(*(column.tolist() for column in columns), strict=True))
        expected = [wanted.setdefault(key, len(wanted)) for key in keys]
        found = index.find(columns)
        assert (found.ordinals.tolist(), found.groups) == (expected, len(wanted))
        assert index.add(columns).tolist() == expected
        assert len(index) == len(wanted)
    shown = [column.tolist() for column in index.columns()]
    assert list(zip(*shown, strict=True)) == list(wanted)


def test_numbers_that_all_lie_at_one_place_are_found(monkeypatch):
    """As they could if the secret were known: each is looked for at the next place."""
    monkeypatch.setattr("fcp_core.aggregation.number_index.secrets.randbits", lambda bits: 0)
    index = NumberIndex()
    numbers = np.arange(500, dtype=np.uint64)
    assert index.add(numbers[::-1]).tolist() == list(range(500))
    assert index.find(numbers).tolist() == list(range(500))[::-1]
    assert index.find(numbers + np.uint64(500)).tolist() == [-1] * 500


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
