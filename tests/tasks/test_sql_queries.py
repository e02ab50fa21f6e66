"""Queries in SQL: what devices and the server do with them gives what one database would give."""

from __future__ import annotations

import math
import sqlite3
import sys
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcp_core.aggregation.configuration import parse_configuration
from fcp_core.errors import MissingExtraError, UsageError
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import plan_pb2, selection_criteria_pb2
from fcp_core.protocol.sql import literal_sql
from fcp_core.tasks.sql_query import SqlQuery
from tests.tasks.sql_simulation import answer, contributions, oracle, rows_of, stores_of

pytest.importorskip("sqlglot")

COLUMNS = ("app", "version", "seconds", "crashed")
DEVICES = [
    {"launches": (COLUMNS, rows)}
    for rows in (
        [("maps", 1, 2.5, 0), ("maps", 2, 1.25, 1), ("mail", 1, None, 0)],
        [("maps", 2, 8.0, 1), (None, 2, 3.0, 0), ("it's", 1, -4.5, None)],
        [],
        [("mail", 2, 0.0, 1), ("mail", 2, 1e6, 0), ("1", 1, 7.0, 0), (1, 1, 9.0, 0)],
    )
]


def near(found, expected):
    """Whether two values are equal but for rounding."""
    numbers = isinstance(found, (int, float)) and isinstance(expected, (int, float))
    return (
        math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)
        if numbers
        else (found == expected)
    )


def as_shown(rows, table):
    """Return rows with text where a column of the table has text beside other things."""

    def shown(value, column):
        if value is None or not column.is_text or isinstance(value, str):
            return value
        if isinstance(value, bytes):
            return f"X'{value.hex()}'"
        return str(int(value) if float(value).is_integer() else value)

    return [tuple(map(shown, row, table.columns)) for row in rows]


def in_order(rows):
    """Sort rows of any values; numbers by their value."""

    def place(value):
        return (0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, repr(value))

    return sorted(rows, key=lambda row: [place(value) for value in row])


def check(sql, devices, folder, types=None):
    """Compare the answer with that of one database that has all the tables."""
    table = answer(SqlQuery(sql, types=types or {}), stores_of(folder, devices))
    found, expected = rows_of(table), as_shown(oracle(sql, devices), table)
    if "ORDER BY" not in sql:
        found, expected = in_order(found), in_order(expected)
    assert len(found) == len(expected), (found, expected)
    for left, right in zip(found, expected, strict=True):
        assert all(map(near, left, right)), (left, right)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT app, COUNT(*) AS n, AVG(seconds) FROM launches GROUP BY app ORDER BY n DESC, app",
        "SELECT COUNT(*), COUNT(seconds), TOTAL(seconds), AVG(seconds), SUM(crashed) FROM launches",
        "SELECT app, version, SUM(crashed = 1) * 100.0 / COUNT(*) AS rate FROM launches"
        " GROUP BY app, version HAVING COUNT(*) > 1 ORDER BY rate DESC LIMIT 3",
        "SELECT version, COUNT(*) FILTER (WHERE crashed), SUM(seconds) FILTER (WHERE seconds > 1)"
        " FROM launches GROUP BY 1",
        "SELECT DISTINCT app, version FROM launches",
        "SELECT app || '!' AS shout, COUNT(*) FROM launches GROUP BY shout",
        "SELECT version + 1, MAX(0, COUNT(*) - 2) FROM launches GROUP BY version ORDER BY 1",
        "SELECT CASE WHEN SUM(seconds) > 3 THEN 'much' ELSE 'little' END, app FROM launches"
        " WHERE seconds IS NOT NULL GROUP BY app",
        "WITH long AS (SELECT * FROM launches WHERE seconds > 1) SELECT COUNT(*) FROM long",
        "SELECT a, COUNT(*) FROM (SELECT lower(app) AS a FROM launches) GROUP BY a",
        "SELECT SUM(seconds) FROM launches WHERE app = 'nothing'",
        "SELECT lower(app) AS app, COUNT(*) FROM launches GROUP BY app",
        "SELECT version % 2 AS version, COUNT(*) AS n FROM launches GROUP BY 1 ORDER BY version",
        "SELECT app FROM launches GROUP BY app ORDER BY SUM(seconds) DESC LIMIT 2 OFFSET 1",
        "SELECT typeof(seconds), COUNT(*) FROM launches GROUP BY typeof(seconds)",
    ],
)
def test_answers_are_those_of_one_database(sql, tmp_path):
    check(sql, DEVICES, tmp_path, types={"crashed": "integer"})


SLOW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
CELLS = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.floats(-100, 100, width=16),
    st.sampled_from(["", "a", "A", "it's", "1", "NULL", "é", "x" * 40, "a\0b", "\0", "a\0"]),
    st.binary(max_size=2),
)
NUMBERS = st.one_of(st.none(), st.integers(-1000, 1000), st.floats(-1e3, 1e3, width=32))
TABLES = st.lists(st.lists(st.tuples(CELLS, CELLS, NUMBERS), max_size=6), min_size=1, max_size=5)
AGGREGATES = st.lists(
    st.sampled_from(
        [
            "COUNT(*)",
            "COUNT(x)",
            "AVG(x)",
            "TOTAL(x)",
            "SUM(x IS NULL)",
            "COUNT(*) FILTER (WHERE x > 0)",
            "SUM(CASE WHEN x > 0 THEN 1 ELSE 0 END) + COUNT(*)",
        ]
    ),
    min_size=1,
    max_size=4,
)
KEYS = st.sampled_from(["", "a", "b", "a, b", "x > 0, a", "typeof(a)"])


@pytest.mark.slow
@settings(SLOW, max_examples=60)
@given(TABLES, AGGREGATES, KEYS)
def test_any_answer_is_that_of_one_database(tmp_path, tables, aggregates, keys):
    grouped = f" GROUP BY {keys}" if keys else ""
    shown = ", ".join(filter(None, [keys, *aggregates]))
    devices = [{"t": (("a", "b", "x"), rows)} for rows in tables]
    check(f"SELECT {shown} FROM t{grouped}", devices, tmp_path)


@pytest.mark.slow
@settings(SLOW, max_examples=25)
@given(TABLES, st.sampled_from(["", "a"]))
def test_the_least_and_the_greatest_are_those_of_one_database(tmp_path, tables, keys):
    shown = "MIN(x), MAX(x), MAX(x) - MIN(x), MIN(x) FILTER (WHERE x > 5)"
    sql = f"SELECT {shown} FROM t" if not keys else f"SELECT {keys}, {shown} FROM t GROUP BY {keys}"
    check(sql, [{"t": (("a", "b", "x"), rows)} for rows in tables], tmp_path)


@pytest.mark.slow
@settings(SLOW, max_examples=25)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), NUMBERS), max_size=8), min_size=1, max_size=6
    ),
    st.sampled_from([0, 0.1, 0.5, 0.9, 1]),
    st.sampled_from([0.002, 0.01, 0.1]),
)
def test_quantiles_are_within_their_error(tmp_path, tables, quantile, error):
    devices = [{"t": (("a", "x"), rows)} for rows in tables]
    sql = f"SELECT a, APPROX_QUANTILE(x, {quantile}, {error}) FROM t GROUP BY a"
    found = dict(rows_of(answer(SqlQuery(sql), stores_of(tmp_path, devices))))
    for key in {row[0] for rows in tables for row in rows}:
        values = sorted(x for rows in tables for name, x in rows if name == key and x is not None)
        if not values:
            assert found[key] is None
            continue
        place = max(math.ceil(quantile * len(values) - 1e-9), 1) - 1
        assert found[key] == pytest.approx(values[place], rel=error * 1.001, abs=1e-9)


@pytest.mark.slow
def test_distinct_values_are_counted_nearly(tmp_path):
    devices = [
        {"t": (("a", "x"), [(n % 2, x) for x in range(100 * n, 100 * n + 300)] + [(1, None)])}
        for n in range(20)
    ]
    sql = "SELECT a, APPROX_DISTINCT(x), COUNT(x), APPROX_COUNT_DISTINCT(x % 10) FROM t GROUP BY a"
    found = {
        row[0]: row[1:] for row in rows_of(answer(SqlQuery(sql), stores_of(tmp_path, devices)))
    }
    exact = oracle(
        sql.replace("APPROX_DISTINCT(", "COUNT(DISTINCT ").replace(
            "APPROX_COUNT_DISTINCT(", "COUNT(DISTINCT "
        ),
        devices,
    )
    for key, distinct, count, few in exact:
        assert found[key][0] == pytest.approx(distinct, rel=0.08)
        assert found[key][1:] == (count, few)


def test_devices_are_counted(tmp_path):
    stores = stores_of(tmp_path, DEVICES)
    for sql, expected in {
        "SELECT DEVICES() FROM launches": [(3,)],
        "SELECT DEVICES(), COUNT(*) FROM launches": [(3, 10)],
        "SELECT version, DEVICES() FROM launches GROUP BY version ORDER BY 1": [(1, 3), (2, 3)],
        "SELECT app, DEVICES() FROM launches GROUP BY 1 HAVING DEVICES() > 1 ORDER BY 1": [
            ("mail", 2),
            ("maps", 2),
        ],
        "SELECT DISTINCT app FROM launches ORDER BY 1": [
            *[(app,) for app in (None, "1", "1", "it's", "mail", "maps")]
        ],
        "SELECT SUM(n) FROM (SELECT COUNT(*) AS n FROM launches)": [(10.0,)],
    }.items():
        assert rows_of(answer(SqlQuery(sql), stores)) == expected
    both = SqlQuery(
        "SELECT app FROM launches GROUP BY app HAVING DEVICES() > 1 AND DEVICES() >= 1",
        min_devices=3,
    )
    assert rows_of(answer(both, stores)) == []
    only = SqlQuery("SELECT app FROM launches GROUP BY app ORDER BY app", min_devices=2)
    assert rows_of(answer(only, stores)) == [("mail",), ("maps",)]


def test_numbers_are_put_into_buckets(tmp_path):
    numbers = [-1, 0, 4.9, 5, 9.99, 10, 1000, None, 0.3]
    devices = [{"t": (("x",), [(number,)])} for number in numbers]
    stores = stores_of(tmp_path, devices)
    sql = "SELECT WIDTH_BUCKET(x, 0, 10, 2) AS b, COUNT(*) FROM t GROUP BY b ORDER BY b"
    assert rows_of(answer(SqlQuery(sql), stores)) == [(None, 1), (0, 1), (1, 3), (2, 2), (3, 2)]
    sql = "SELECT LOG_BUCKET(x, 10) AS least, COUNT(*) FROM t GROUP BY least ORDER BY least"
    found = rows_of(answer(SqlQuery(sql), stores))
    assert [count for _, count in found] == [1, 1, 1, 1, 3, 1, 1]
    assert [least for least, _ in found] == [None, -1, 0, 0.1, 1, 10, 1000]


def test_a_plan_is_one_that_published_clients_run():
    query = SqlQuery("SELECT app, COUNT(*) AS n FROM launches GROUP BY app", minimum_rows=4)
    spec = query.to_spec(population="people", name="question", goal_count=5)
    (intrinsic,) = parse_configuration(spec.aggregation)
    assert [(each.name, each.value.tolist()) for each in intrinsic.parameters] == [
        ("minimum_rows", 4)
    ]
    plan = plan_pb2.ClientOnlyPlan.FromString(spec.plan)
    (asked,) = plan.phase.example_query_spec.example_queries
    assert asked.example_selector.collection_uri == "app:/tables"
    criteria = selection_criteria_pb2.SelectionCriteria()
    assert asked.example_selector.criteria.Unpack(criteria)
    assert "FROM launches" in criteria.client_query.raw_sql
    names = {spec.vector_name for spec in asked.output_vector_specs.values()}
    assert names == {column.name for column in criteria.client_query.output_columns}
    kinds = plan.phase.federated_example_query.aggregations
    assert {kind.WhichOneof("protocol_config") for kind in kinds.values()} == {
        "tf_v1_checkpoint_aggregation"
    }


def test_nothing_but_what_is_aggregated_leaves_a_device(tmp_path):
    query = SqlQuery("SELECT COUNT(*) FROM launches WHERE app = 'maps'")
    _, sent = contributions(query, stores_of(tmp_path, DEVICES))
    opened = [open_checkpoint(blob) for blob in sent]
    assert [{name: c[name].tolist() for name in c} for c in opened] == [
        {"COUNT(*)": [count]} for count in (2, 1, 0, 0)
    ]


def test_without_the_parser_there_is_a_word_for_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("fcp_core.tasks.sql_low")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("fcp_core.tasks.sql_parsing", "fcp_core.tasks.sql_measures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "sqlglot", None)
    with pytest.raises(MissingExtraError, match=r"fcp-server\[analytics\]"):
        SqlQuery("SELECT COUNT(*) FROM t").lowered()


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT * FROM t", "SELECT \\*: rows stay on the devices"),
        ("SELECT t.* FROM t", "rows stay on the devices"),
        ("SELECT app FROM t", "SELECT: app is neither in GROUP BY nor in an aggregate"),
        ("SELECT COUNT(*) FROM t ORDER BY app", "ORDER BY: app is neither"),
        ("SELECT COUNT(*) FROM t HAVING app = 1", "HAVING: app is neither"),
        ("SELECT COUNT(DISTINCT app) FROM t", "write APPROX_DISTINCT"),
        ("SELECT MEDIAN(x) FROM t", "write APPROX_QUANTILE"),
        ("SELECT PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY x) FROM t", "write APPROX_QUANTILE"),
        ("SELECT GROUP_CONCAT(x) FROM t", "GROUP_CONCAT\\(x\\) cannot be aggregated"),
        ("SELECT SUM(x) OVER () FROM t", "leave OVER out"),
        ("SELECT SUM(COUNT(*)) FROM t", "has another aggregate"),
        ("SELECT COUNT(*), (SELECT 1) FROM t", "SELECT has a subquery"),
        ("SELECT COUNT(*) FROM t GROUP BY ROLLUP (a)", "ROLLUP"),
        ("SELECT COUNT(*) FROM t GROUP BY COUNT(*)", "GROUP BY has an aggregate"),
        ("SELECT a, COUNT(*) FROM t GROUP BY 3", "GROUP BY 3: there is no such column"),
        ("SELECT COUNT(*) FROM t UNION SELECT 1", "UNION of two aggregations"),
        ("SELECT 1; SELECT 2", "here are 2 statements"),
        ("DELETE FROM t", "not DELETE"),
        ("ATTACH 'x' AS y", "not ATTACH"),
        ("SELECT COUNT(*)", "has no FROM"),
        ("SELECT COUNT(* FROM t", "cannot be read as SQL"),
        ("", "here are 0 statements"),
        ("WITH RECURSIVE r AS (SELECT 1 UNION SELECT 2) SELECT COUNT(*) FROM r", "RECURSIVE"),
        ("SELECT COUNT(*) FROM t GROUP BY WIDTH_BUCKET(x, 0, y, 5)", "takes a value, two bounds"),
        ("SELECT COUNT(*) FROM t GROUP BY WIDTH_BUCKET(x, 5, 5, 5)", "takes a value, two bounds"),
        ("SELECT COUNT(*) FROM t GROUP BY LOG_BUCKET(x, 1)", "takes a value and a base"),
        ("SELECT COUNT(*) FROM t GROUP BY LOG_BUCKET(x)", "takes a value and a base"),
        ("SELECT APPROX_QUANTILE(x, 2) FROM t", "from 0 to 1"),
        ("SELECT APPROX_QUANTILE(x, y) FROM t", "must be written numbers"),
        ("SELECT APPROX_QUANTILE(x, 0.5, 0.9) FROM t", "from 0.002 to 0.5"),
        # What would be noticed only when devices have answered, and the budget is spent.
        ("SELECT ODD(COUNT(*)) FROM t", "what the query shows .*no such function: ODD"),
        ("SELECT a, COUNT(*) FROM t GROUP BY a HAVING a MATCH 'b'", "unable to use function MATCH"),
        ("SELECT a, COUNT(*) AS n FROM t GROUP BY a ORDER BY n COLLATE odd", "no such collation"),
        ("SELECT COUNT(*) FROM t LIMIT 'a'", "what the query shows cannot be computed: datatype"),
        ("SELECT COUNT(*) FROM t LIMIT a", "no such column: a"),
        ("SELECT COUNT(*) FROM t GROUP BY -1", "GROUP BY -1: there is no such column"),
        (
            "SELECT a, COUNT(*) FROM t GROUP BY a ORDER BY -1",
            "ORDER BY -1: there is no such column",
        ),
        ("SELECT COUNT(*) FROM t WHERE a = ?", r"\? has no value; write the value"),
        ("SELECT SUM(:b) FROM t", ":b has no value"),
        ("SELECT COUNT(*) FROM t WHERE a = $b", r"\$b has no value"),
        ("SELECT COUNT(*) FROM t TABLESAMPLE (5)", "SQLite does not have that: TABLESAMPLE"),
    ],
)
def test_what_cannot_be_answered_is_named(sql, words):
    with pytest.raises(UsageError, match=words):
        SqlQuery(sql).lowered()


def test_nesting_that_is_too_deep_is_said_in_words():
    with pytest.raises(UsageError, match="nested too deeply"):
        SqlQuery(f"SELECT COUNT({'(' * 5000}x{')' * 5000}) FROM t").lowered()


def test_a_nul_does_not_cut_a_key(tmp_path):
    texts = ["a", "a\0", "a\0b", "\0", "", "it's \0 é", "CAST(X'00' AS TEXT)"]
    tables = [{"t": (("k",), [(text,), ("a\0b",)])} for text in texts]
    sql = "SELECT k, COUNT(*) AS n FROM t GROUP BY k"
    table = answer(SqlQuery(sql), stores_of(tmp_path, tables))
    assert sorted(rows_of(table)) == sorted((text, 8 if text == "a\0b" else 1) for text in texts)


def test_a_text_that_is_no_text_is_a_group(tmp_path):
    store = stores_of(tmp_path, [{"t": (("k",), [("a",)])}])[0]
    with closing(sqlite3.connect(tmp_path / "device0.db")) as database:
        database.execute("INSERT INTO t VALUES (CAST(X'FF41' AS TEXT))")
        database.commit()
    table = answer(SqlQuery("SELECT k, COUNT(*) AS n FROM t GROUP BY k ORDER BY k"), [store])
    assert rows_of(table) == [("\\xffA", 1), ("a", 1)]


def test_keys_are_literals_also_in_databases_of_utf_16():
    """Ours cannot be such; those of published clients may be."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("PRAGMA encoding = 'UTF-16'")
        database.execute("CREATE TABLE t (k)")
        database.execute("INSERT INTO t VALUES ('it''s é')")
        found = database.execute(f"SELECT {literal_sql('k')} FROM t").fetchone()
        assert found == ("'it''s é'",)


def test_infinite_keys_are_groups(tmp_path):
    tables = [{"t": (("k",), [(value,)])} for value in (math.inf, -math.inf, 1e300, math.inf)]
    table = answer(
        SqlQuery("SELECT k, COUNT(*) AS n FROM t GROUP BY k"), stores_of(tmp_path, tables)
    )
    assert sorted(rows_of(table)) == [(-math.inf, 1), (1e300, 1), (math.inf, 2)]


def test_a_key_that_is_no_literal_costs_nobody_the_result():
    """A device may send any key, and two literals of one number."""
    query = SqlQuery("SELECT k, COUNT(*) AS n FROM t GROUP BY k ORDER BY n")
    keys = [b"1", b"1.0", b"nonsense", b"\xff", b"'open", b"X'0'", b"9" * 30, b"-" * 9999, b""]
    keys_tensor = np.empty(len(keys), object)
    keys_tensor[:] = keys
    counts = np.arange(1, len(keys) + 1)
    result = write_checkpoint({"k": keys_tensor, "COUNT(*)": counts}, "federated_compute")
    rows = rows_of(query.table(result))
    assert [n for _, n in rows] == counts.tolist()
    assert [k for k, _ in rows][:6] == ["1", "1.0", "nonsense", "\\xff", "'open", "X'0'"]
