"""The group-by against SQL itself, and at the edges of its columns."""

from __future__ import annotations

import math
import sqlite3
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.protocol.sketches import (
    bucket_values,
    buckets,
    distinct_codes,
    quantile_of_buckets,
)
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing.aggregators import AggregatorConformance

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}
GROUP_BY = FACTORIES["fedsql_group_by"]
INT32, INT64, DOUBLE = DataType.INT32, DataType.INT64, DataType.DOUBLE
UINT64, STRING = DataType.UINT64, DataType.STRING


def column(name, dtype):
    return TensorSpec(name, dtype, (-1,))


def nested(uri, inputs, output, parameters=()):
    specs = tuple(column(name, dtype) for name, dtype in inputs)
    return Intrinsic(f"{uri}", specs, (column(f"{uri} {inputs[0][0]}", output),), parameters)


def group_by(keys, *values, minimum=None, rows=None):
    specs = tuple(column(name, dtype) for name, dtype in keys)
    given = {"min_contributors_to_group": minimum, "minimum_rows": rows}
    parameters = tuple(
        Parameter(name, np.array(value)) for name, value in given.items() if value is not None
    )
    return Intrinsic("fedsql_group_by", specs, specs, parameters, values)


def make(intrinsic, **options):
    return GROUP_BY.make(intrinsic, options)


def feed(accumulator, *contributions):
    for contribution in contributions:
        accumulator.validate(contribution)
        accumulator.accumulate(contribution)
    return accumulator


def strings(values):
    result = np.empty(len(values), object)
    result[:] = values
    return result


def refusal(code, function, *args):
    with pytest.raises(StatusError) as caught:
        function(*args)
    assert caught.value.code is code
    return caught.value.message


# A row: which device, a number or NULL, a real (NaN is NULL in SQLite), text or bytes or NULL, and
# a value or NULL.
ROWS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.none() | st.integers(-1, 1),
        st.sampled_from([0.0, -0.0, 1.5, math.nan, -math.nan]),
        st.none() | st.sampled_from(["", "a", "b", b"", b"a", b"\xff"]),
        st.none() | st.integers(-1000, 1000),
    ),
    max_size=25,
)


def lowered(rows):
    """Return what a device sends: NULL has a column of its own beside each key and value."""
    _, numbers, reals, texts, values = zip(*rows, strict=True) if rows else ((),) * 5
    kinds = [0 if text is None else 1 if isinstance(text, str) else 2 for text in texts]
    raw = [text.encode() if isinstance(text, str) else text or b"" for text in texts]
    there = np.array([value is not None for value in values], "i4")
    amounts = np.array([value or 0 for value in values], "i8")
    return [
        np.array([number or 0 for number in numbers], "i4"),
        np.array([number is None for number in numbers], "i4"),
        np.array(reals, "f8"),
        strings(raw),
        np.array(kinds, "i4"),
        amounts,
        there,
        amounts,
        there,
        amounts,
        there,
    ]


def raised(columns):
    """Return a result's rows as SQL gives them."""
    rows = []
    for number, missing, real, text, kind, total, count, least, greatest in zip(
        *(c.tolist() for c in columns), strict=True
    ):
        rows.append(
            (
                None if missing else number,
                None if math.isnan(real) else real,
                (None, text.decode(errors="replace"), text)[kind],
                *((total, count, least, greatest) if count else (None, 0, None, None)),
            )
        )
    return rows


SQL = """
    SELECT number, real, text, SUM(value), COUNT(value), MIN(value), MAX(value) FROM rows
    GROUP BY number, real, text HAVING COUNT(DISTINCT device) >= ?
"""


@settings(max_examples=60, deadline=None, database=None)
@given(rows=ROWS, minimum=st.none() | st.integers(1, 3), shards=st.integers(1, 3))
def test_groups_are_those_of_sql(rows, minimum, shards):
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE rows (device INT, number INT, real REAL, text, value INT)")
    connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", rows)
    expected = connection.execute(SQL, (minimum or 1,)).fetchall()
    connection.close()
    keys = [("number", INT32), ("number?", INT32), ("real", DOUBLE), ("text", STRING)]
    groups = group_by(
        [*keys, ("text?", INT32)],
        nested("GoogleSQL:sum", [("value", INT64)], INT64),
        nested("GoogleSQL:sum", [("value?", INT32)], INT64),
        nested("GoogleSQL:min", [("value", INT64), ("value?", INT32)], INT64),
        nested("GoogleSQL:max", [("value", INT64), ("value?", INT32)], INT64),
        minimum=minimum,
    )
    accumulators = [make(groups) for _ in range(shards)]
    for device in range(4):
        own = [row for row in rows if row[0] == device]
        feed(accumulators[device % shards], lowered(own))
    first, *others = accumulators
    for other in others:
        first.merge(GROUP_BY.load(groups, {}, other.dump()))
    assert sorted(raised(first.report()), key=repr) == sorted(expected, key=repr)


EDGES = [0, 1, -1, 2**62, -(2**62), 2**63 - 1, -(2**63), 2**31 - 1, -(2**31), 2**64 - 1, 2**32]


@pytest.mark.slow
@settings(max_examples=150, deadline=None, database=None)
@given(
    dtypes=st.sampled_from([(INT32, INT32), (INT32, INT64), (INT64, INT64), (UINT64, UINT64)]),
    data=st.data(),
)
def test_no_sum_of_integers_wraps_around(dtypes, data):
    """Whatever is refused does not fit, whatever is taken is exact."""
    given_as, kept_as = (dtype.numpy for dtype in dtypes)
    limits = np.iinfo(given_as)
    numbers = st.sampled_from([edge for edge in EDGES if limits.min <= edge <= limits.max])
    rows = st.lists(st.tuples(st.integers(0, 2), numbers), max_size=6)
    groups = group_by([("k", INT32)], nested("GoogleSQL:sum", [("v", dtypes[0])], dtypes[1]))
    accumulator, exact = make(groups), defaultdict(int)
    kept = np.iinfo(kept_as)
    for contribution in data.draw(st.lists(rows, max_size=6)):
        keys, values = zip(*contribution, strict=True) if contribution else ((), ())
        trial = exact.copy()
        for key, value in contribution:
            trial[key] += value
        tensors = [np.array(keys, "i4"), np.array(values, given_as)]
        if all(kept.min <= total <= kept.max for total in trial.values()):
            feed(accumulator, tensors)
            exact = trial
        else:
            before = accumulator.dump()
            message = refusal(Code.INVALID_ARGUMENT, accumulator.validate, tensors)
            assert "column 'v' brings the sum of a group out of the range" in message
            assert accumulator.dump() == before
    keys, sums = accumulator.report()
    assert dict(zip(keys.tolist(), sums.tolist(), strict=True)) == exact


def test_more_groups_than_allowed_are_refused_and_known_ones_go_on():
    groups = group_by([("k", STRING)], nested("GoogleSQL:sum", [("v", INT64)], INT64))
    accumulator = make(groups, max_groups=3)
    feed(accumulator, [strings([b"a", b"b", b"a"]), np.array([1, 2, 3])])
    full = [strings([b"c", b"d", b"d"]), np.array([1, 2, 3])]
    before = accumulator.dump()
    message = refusal(Code.RESOURCE_EXHAUSTED, accumulator.validate, full)
    assert message == "fedsql_group_by: there would be 4 groups; max_groups is 3"
    assert accumulator.dump() == before
    feed(accumulator, [strings([b"a", b"b", b"c", b"a"]), np.array([1, 1, 1, 1])])
    assert accumulator.report()[1].tolist() == [6, 3, 1]
    # What comes from the storage is bounded too, but what this process holds already is merged.
    other = feed(make(groups, max_groups=3), [strings([b"x"]), np.array([1])])
    loaded = GROUP_BY.load(groups, {"max_groups": 3}, other.dump())
    refusal(Code.RESOURCE_EXHAUSTED, accumulator.merge, loaded)
    empty = make(groups, max_groups=1)
    empty.merge(GROUP_BY.load(groups, {"max_groups": 1}, accumulator.dump()))
    accumulator.merge(other)
    assert len(accumulator.report()[0]) == 4
    assert len(empty.report()[0]) == 3


def test_the_memory_of_long_keys_is_bounded():
    accumulator = make(group_by([("k", STRING)]), max_bytes=100_000)
    feed(accumulator, [strings([b"a" * 60_000, b"a" * 60_000])])
    message = refusal(Code.RESOURCE_EXHAUSTED, accumulator.validate, [strings([b"b" * 60_000])])
    assert "max_bytes is 100000" in message
    feed(accumulator, [strings([b"a" * 60_000, b"b"])])
    assert [len(key) for key in accumulator.report()[0]] == [60_000, 1]


def test_the_extremum_of_a_group_of_nulls_is_0_or_nan():
    for dtype, missing in ((INT64, 0), (DOUBLE, math.nan)):
        groups = group_by(
            [("k", INT32)], nested("GoogleSQL:min", [("v", dtype), ("there", INT64)], dtype)
        )
        rows = [np.array([1, 2, 2], "i4"), np.array([5, 7, 6], dtype.numpy), np.array([0, 1, 2])]
        np.testing.assert_array_equal(feed(make(groups), rows).report()[1], [missing, 6])


def test_a_value_that_is_none_is_refused_only_where_it_counts():
    groups = group_by(
        [("k", INT32)], nested("GoogleSQL:max", [("v", DOUBLE), ("there", INT32)], DOUBLE)
    )
    rows = [np.array([1, 1], "i4"), np.array([math.inf, 2.0]), np.array([0, 1], "i4")]
    assert feed(make(groups), rows).report()[1].tolist() == [2]
    rows[2] = np.array([1, 1], "i4")
    assert "'v' has inf" in refusal(Code.INVALID_ARGUMENT, make(groups).validate, rows)


QUANTILE = (Parameter("quantile", np.array(0.9)),)


def test_quantiles_are_within_their_error_and_counted_by_weight():
    rng = np.random.default_rng(7)
    values = rng.lognormal(3, 2, 5000) * rng.choice([-1, 1], 5000, p=[0.2, 0.8])
    keys = rng.integers(0, 3, 5000).astype("i4")
    weights = rng.integers(0, 4, 5000)
    for error in (0.01, 0.1):
        parameters = (*QUANTILE, Parameter("relative_error", np.array(error)))
        groups = group_by(
            [("k", INT32)],
            nested("fcp:approx_quantile", [("v", DOUBLE), ("n", INT64)], DOUBLE, parameters),
        )
        accumulator = make(groups)
        for part in np.array_split(np.arange(5000), 7):
            feed(accumulator, [keys[part], values[part], weights[part]])
        found = dict(zip(*(c.tolist() for c in accumulator.report()), strict=True))
        for key, estimate in found.items():
            own = np.repeat(values[keys == key], weights[keys == key])
            exact = np.quantile(own, 0.9, method="inverted_cdf")
            assert abs(estimate - exact) <= error * abs(exact) * (1 + 1e-9)


def test_buckets_and_their_values_are_near_the_numbers():
    numbers = np.array([0, 1e-12, 3, -3, 1e9, -1e20, 1.0])
    near = bucket_values(buckets(numbers))
    np.testing.assert_allclose(near, np.where(np.abs(numbers) < 1e-9, 0, numbers), rtol=0.0100001)
    assert (np.diff(buckets(np.sort(numbers))) >= 0).all()
    values = np.arange(1, 1002)
    assert quantile_of_buckets(buckets(values), np.ones(1001), 0.5) == pytest.approx(501, rel=0.01)
    assert math.isnan(quantile_of_buckets([1, 2], [0, -3], 0.5))
    with pytest.raises(ValueError, match="relative error"):
        buckets(numbers, 0.9)


@pytest.mark.parametrize("count", [0, 1, 40, 3000, 60_000])
def test_distinct_values_are_counted_within_a_few_per_cent(count):
    groups = group_by([("k", INT32)], nested("fcp:approx_count_distinct", [("code", INT64)], INT64))
    codes = np.concatenate([distinct_codes(range(count)), [0]])
    accumulator = make(groups)
    for part in (codes, codes[: count // 2], np.zeros(1, "i8")):
        feed(accumulator, [np.ones(part.size, "i4"), part])
    # The values are always the same, and so is the estimate; its standard error is 1.6 %.
    assert accumulator.report()[1].tolist() == [pytest.approx(count, rel=0.05, abs=0.5)]


def test_codes_are_of_values_as_sql_compares_them():
    same = [1, 1.0, np.int32(1), True]
    assert len({*distinct_codes(same)}) == 1
    different = [1, "1", b"1", 1.5, "a", b"a", ""]
    assert len({*distinct_codes(different)}) == len(different)
    assert distinct_codes([None, math.nan]).tolist() == [0, 0]
    with pytest.raises(TypeError, match="list"):
        distinct_codes([[1]])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (nested("GoogleSQL:min", [("v", STRING)], STRING), "a string tensor"),
        (nested("GoogleSQL:min", [("v", INT32)], INT64), "of one dtype"),
        (nested("GoogleSQL:min", [("v", INT32), ("n", DOUBLE)], INT32), "int32 or int64"),
        (nested("GoogleSQL:max", [("v", INT32)], INT32, QUANTILE), "1 parameters"),
        (nested("fcp:approx_quantile", [("v", INT32)], DOUBLE), "quantile must be given"),
        (nested("fcp:approx_quantile", [("v", INT32)], INT32, QUANTILE), "of dtype double"),
        (
            nested("fcp:approx_quantile", [("v", INT32)], DOUBLE, (Parameter("q", np.array(0.5)),)),
            "it takes quantile, relative_error",
        ),
        (nested("fcp:approx_count_distinct", [("c", INT32)], INT64), "one column of int64"),
    ],
)
def test_columns_that_are_refused(value, expected):
    message = refusal(Code.INVALID_ARGUMENT, make, group_by([("k", INT32)], value))
    assert expected in message


@pytest.mark.parametrize(
    ("uri", "rows", "expected"),
    [
        ("fcp:approx_count_distinct", [[-1]], "no code"),
        ("fcp:approx_count_distinct", [[64]], "no code"),
        ("fcp:approx_count_distinct", [[1 << 30]], "no code"),
        ("fcp:approx_quantile", [[math.nan], [1]], "'v' has nan"),
        ("fcp:approx_quantile", [[1.0], [-1]], "counts are 0 or more"),
        ("fcp:approx_quantile", [[1.0, 1.0], [2**63 - 1, 1]], "out of the range of int64"),
    ],
)
def test_rows_that_are_refused(uri, rows, expected):
    if len(rows) == 1:
        value = nested(uri, [("c", INT64)], INT64)
    else:
        value = nested(uri, [("v", DOUBLE), ("n", INT64)], DOUBLE, QUANTILE)
    tensors = [np.ones(len(rows[0]), "i4"), np.array(rows[0])]
    tensors += [np.array(part) for part in rows[1:]]
    accumulator = make(group_by([("k", INT32)], value))
    assert expected in refusal(Code.INVALID_ARGUMENT, accumulator.validate, tensors)


class TestGroupByOfEveryColumn(AggregatorConformance):
    factory = GROUP_BY
    max_examples = 12
    intrinsic = group_by(
        [("k", INT32)],
        nested("GoogleSQL:min", [("v", DOUBLE), ("there", INT32)], DOUBLE),
        nested("GoogleSQL:max", [("v", DOUBLE)], DOUBLE),
        nested("fcp:approx_quantile", [("v", DOUBLE), ("n", INT64)], DOUBLE, QUANTILE),
        nested("fcp:approx_count_distinct", [("code", INT64)], INT64),
    )

    def contributions(self):
        row = st.tuples(*map(st.integers, (0, 0, 0, 0), (2, 40, 2, 99)))
        return st.lists(row, max_size=6).map(self._tensors)

    def refused(self):
        return st.just(self._tensors([(0, 1, 1, 1)])[:-1] + [np.array([-5])])

    def normalise(self, result):
        order = np.argsort(result[0])
        return [tensor[order] for tensor in result]

    @staticmethod
    def _tensors(rows):
        keys, values, counts, members = np.array(rows, "i8").reshape(-1, 4).T
        numbers = values.astype("f8")
        there = (counts > 0).astype("i4")
        codes = distinct_codes(members.tolist())
        return [keys.astype("i4"), numbers, there, numbers, numbers, counts.copy(), codes]


def test_a_device_with_too_few_rows_is_refused():
    # Published clients of 2026 do not keep to min_output_row_count with their default flags.
    accumulator = make(
        group_by([("k", INT32)], nested("GoogleSQL:sum", [("v", INT64)], INT64), rows=3)
    )
    few, enough = ([np.arange(n, dtype="i4"), np.ones(n, "i8")] for n in (2, 3))
    words = refusal(Code.INVALID_ARGUMENT, accumulator.validate, few)
    assert words == "the contribution has 2 rows; at least 3 are asked for"
    assert accumulator.num_inputs == 0
    assert [tensor.tolist() for tensor in feed(accumulator, enough).report()] == [
        [0, 1, 2],
        [1, 1, 1],
    ]
    refusal(Code.INVALID_ARGUMENT, make, group_by([("k", INT32)], rows=0))
