"""DuckDB answers what SQLite does, and reaches nothing but what it is given."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")
pytest.importorskip("sqlglot")

import duckdb
import pyarrow
from pyarrow import parquet

from fcp_core.client import SQLLimits, SQLStore
from fcp_core.client.duckdb_engine import DuckDBEngine
from fcp_core.client.sql_engine import SQLiteEngine
from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_core.tasks.sql_query import SqlQuery
from tests.tasks.sql_simulation import answer, rows_of

LAUNCHES = {
    "app": ["maps", "maps", "mail", None, "it's", "a\0b", "Mail"],
    "seconds": [1.5, 3.0, None, 1e300, -0.1, 2.0, float("inf")],
    "n": [1, 2, 3, None, 5, 7, -7],
    "data": [b"\0x", b"", None, b"a", b"a", b"'", b"a"],
}


@pytest.fixture
def launches(tmp_path):
    path = tmp_path / "launches.parquet"
    parquet.write_table(pyarrow.table(LAUNCHES), path)
    return path


@pytest.fixture
def engine(launches):
    (launches.parent / "notes.csv").write_text("app,zip,age\nmaps,007,3\nmail,12,\n")
    return DuckDBEngine([launches, launches.parent / "notes.csv"], SQLLimits(seconds=60))


def rows(engine, sql):
    return sorted(map(repr, map(tuple, engine.answer(sql, lambda table: True).rows)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT app, COUNT(*), SUM(n), TOTAL(seconds) FROM launches GROUP BY app",
        "SELECT seconds, data, n, COUNT(*) FROM launches GROUP BY 1, 2, 3",
        "SELECT n / 2, n % 3, 1.0 * n / 4, COUNT(*) FROM launches GROUP BY 1, 2, 3",
        "SELECT app LIKE 'M%', app = 'maps' AND n > 1, COUNT(*) FROM launches GROUP BY 1, 2",
        "SELECT AVG(CLAMP(n, 0, 4)), VAR_POP(n), MIN(n), MAX(seconds) FROM launches",
        "SELECT APPROX_DISTINCT(app), APPROX_DISTINCT(seconds), APPROX_QUANTILE(n, 0.5)"
        " FROM launches",
        "SELECT WIDTH_BUCKET(n, 0, 10, 5), LOG_BUCKET(n, 2), COUNT(*) FROM launches GROUP BY 1, 2",
        "WITH x AS (SELECT * FROM launches WHERE n > 1) SELECT app, DEVICES() FROM x GROUP BY 1",
        "SELECT CAST(seconds AS INTEGER) AS i, COUNT(*) FROM launches WHERE seconds < 9 GROUP BY 1",
        "SELECT typeof(n), COUNT(*) FILTER (WHERE n IS NULL),"
        " SUM(CASE WHEN n > 2 THEN 1 ELSE 0 END) FROM launches GROUP BY 1",
        "SELECT app || '-' || n || app AS k, replace(app, 'a', 'bb') AS r, COUNT(*) FROM launches"
        " GROUP BY 1, 2",
        "SELECT upper(substr(trim(app), 1, 2)), length(app), round(seconds, 1), abs(n), COUNT(*)"
        " FROM launches WHERE n < 7 GROUP BY 1, 2, 3, 4",
        "SELECT COUNT(*), APPROX_QUANTILE(n, 0.5) FROM launches HAVING DEVICES() >= 2",
        "SELECT a.app, zip, SUM(age) FROM launches AS a JOIN notes AS b ON a.app = b.app"
        " GROUP BY a.app, zip",
    ],
)
def test_devices_answer_as_with_sqlite(engine, launches, sql):
    other = SQLiteEngine([launches, launches.parent / "notes.csv"], SQLLimits())
    for part in SqlQuery(sql).lowered().parts:
        assert rows(engine, part.sql) == rows(other, part.sql)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "duckdb"])
def test_nan_is_null_and_letters_and_products_are_those_of_sqlite(tmp_path, suffix):
    """A file with zeros of both signs: DuckDB's optimizer thinks that it has no NaN."""
    x = [0.0, math.nan, -0.0, math.nan, 2.0]
    table = {"x": x, "app": ["É", "é", "aé", None, "A"], "n": [2**62, 1, None, -(2**62), 3]}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    if suffix == "jsonl":
        lines = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    elif suffix == "duckdb":
        with duckdb.connect(str(tmp_path / "t.duckdb")) as database:
            database.execute(f"CREATE TABLE t AS FROM read_parquet('{tmp_path}/t.parquet')")
    ours = DuckDBEngine([tmp_path / f"t.{suffix}"], SQLLimits(seconds=60))
    other = SQLiteEngine([tmp_path / "t.parquet"], SQLLimits())
    for sql in (
        "SELECT x, x > 1, COUNT(*), COUNT(x) FROM t GROUP BY 1, 2",
        "SELECT COUNT(*) FROM t WHERE x = x OR x > 5",
        "SELECT UPPER(app), LOWER(app), VAR_POP(n) FROM t GROUP BY 1, 2",
    ):
        for part in SqlQuery(sql).lowered().parts:
            assert rows(ours, part.sql) == rows(other, part.sql)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT app, COUNT(*), SUM(CLAMP(n, -2, 4)) FROM launches GROUP BY app",
        "SELECT DISTINCT app, n FROM launches",
        "SELECT COUNT(*) FROM launches",
        "SELECT app, MAX(n) FROM launches GROUP BY app",
    ],
)
def test_tables_under_masks_are_those_of_sqlite(engine, launches, sql):
    other = SQLiteEngine([launches], SQLLimits())
    for part in SqlQuery(sql, masked=True, capacity=20).lowered().parts:
        assert rows(engine, part.sql) == rows(other, part.sql)


def test_a_query_is_answered_by_a_store_with_duckdb(launches):
    sql = "SELECT app, COUNT(*) AS k FROM launches GROUP BY app ORDER BY k DESC, app LIMIT 2"
    stores = [SQLStore(launches, engine="duckdb"), SQLStore(launches)]
    assert rows_of(answer(SqlQuery(sql), stores)) == [("maps", 4), (None, 2)]


def test_databases_of_duckdb_are_read_where_they_lie(tmp_path):
    path = tmp_path / "usage.duckdb"
    with duckdb.connect(str(path)) as database:
        database.execute("CREATE TABLE opened (app VARCHAR, day DATE)")
        database.execute("INSERT INTO opened VALUES ('maps', '2026-01-05')")
    before = path.read_bytes()
    engine = DuckDBEngine([path], SQLLimits())
    assert rows(engine, "SELECT app, day FROM opened") == ["('maps', '2026-01-05')"]
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["usage.duckdb"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT * FROM read_csv('SECRET')", "table"),
        ("SELECT * FROM 'SECRET'", "table"),
        ('SELECT * FROM "SECRET"', "table"),
        ("SELECT content FROM read_text('SECRET')", "table"),
        ("SELECT (SELECT content FROM read_text('SECRET')) FROM launches", "table"),
        ("SELECT * FROM duckdb_settings()", "table"),
        ("SELECT * FROM information_schema.tables", "table"),
        ("SELECT * FROM sqlite_master", "table"),
        ("SELECT * FROM d0.launches", "table"),
        ("SELECT * FROM launches, LATERAL (SELECT * FROM read_text('SECRET'))", "table"),
        ("SELECT getenv('HOME') FROM launches", "function 'getenv'"),
        ("SELECT repeat(app, 1000000000) FROM launches", "function 'repeat'"),
        ("SELECT TRY_CAST(app AS INTEGER) FROM launches", "function 'try_cast'"),
        ("SELECT fcp_real_literal(1.5) FROM launches", "function 'fcp_real_literal'"),
        ("SELECT list(app) FROM launches", "function"),
        ("SELECT fcp_literal(app) FROM launches", "function 'fcp_literal'"),
        ("SELECT CAST(app AS BLOB) FROM launches", "is not for it"),
        ("WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT 1 FROM r) SELECT * FROM r", "recursive"),
        ("COPY launches TO 'SECRET'", "no SELECT"),
        ("ATTACH 'SECRET'", "no SELECT"),
        ("INSTALL httpfs", "no SELECT"),
        ("SET threads = 4", "no SELECT"),
        ("SELECT 1; SELECT 2", "no SELECT"),
        ("CREATE TABLE t AS SELECT 1", "no SELECT"),
        ("DELETE FROM launches", "no SELECT"),
    ],
)
def test_what_is_more_than_reading_is_refused(engine, tmp_path, sql, words):
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    with pytest.raises(StatusError, match=words) as refused:
        rows(engine, sql.replace("SECRET", str(tmp_path / "secret.csv")))
    assert refused.value.code is Code.PERMISSION_DENIED
    assert (tmp_path / "secret.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('SECRET')",
        "SELECT content FROM read_text('SECRET')",
        "SELECT * FROM 'SECRET'",
        "ATTACH 'SECRET'",
        "COPY launches TO 'SECRET'",
        "COPY launches TO 'GIVEN' (FORMAT parquet)",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET memory_limit = '9GB'",
        "SET allowed_paths = ['SECRET']",
    ],
)
def test_duckdb_itself_is_closed_behind_the_list(engine, launches, monkeypatch, statement):
    """Whatever came through the rewriting, nothing but the given files could be read."""
    secret = launches.parent / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    before = launches.read_bytes()
    sql = statement.replace("SECRET", str(secret)).replace("GIVEN", str(launches))
    monkeypatch.setattr("fcp_core.client.duckdb_engine.rewritten", lambda query, readable: sql)
    with pytest.raises(StatusError):
        rows(engine, "SELECT 1")
    assert (secret.read_text(), launches.read_bytes()) == ("a,b\n1,2\n", before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "sql", "code"),
    [
        ({"rows": 3}, "SELECT n FROM launches", Code.RESOURCE_EXHAUSTED),
        ({"answer_bytes": 9}, "SELECT app FROM launches", Code.RESOURCE_EXHAUSTED),
        (
            {"memory_bytes": 16 << 20},
            "SELECT COUNT(*) FROM (SELECT DISTINCT a.n * 1.0001 + b.n * 31 + c.n * 1e3 + d.n * 1e5"
            " + e.n * 1e7 + f.n * 1e9 + g.n * 1e11 + h.n * 1e13 AS x FROM launches a, launches b,"
            " launches c, launches d, launches e, launches f, launches g, launches h)",
            Code.RESOURCE_EXHAUSTED,
        ),
        (
            {},
            "SELECT length(x) AS n FROM (SELECT replace(x, 'x', 'xxxxxxxxxx') AS x FROM"
            " (SELECT replace(x, 'x', 'xxxxxxxxxxxxxxxxxxxx') AS x FROM (SELECT replace("
            + " || ".join(["'xxxxxxxxxxxxxxxxxxxxxxxx'"] * 40)
            + ", 'x', 'xxxxxxxxxxxxxxx') AS x)))",
            Code.RESOURCE_EXHAUSTED,
        ),
        (
            {"seconds": 0.05},
            "SELECT COUNT(*) FROM launches a, launches b, launches c, launches d, launches e,"
            " launches f, launches g, launches h, launches i, launches j, launches k, launches l"
            " WHERE a.n + b.n + c.n + d.n + e.n + f.n + g.n + h.n + i.n + j.n + k.n = 3",
            Code.DEADLINE_EXCEEDED,
        ),
    ],
)
def test_what_takes_too_much_is_stopped(launches, limits, sql, code):
    with pytest.raises(StatusError) as stopped:
        rows(DuckDBEngine([launches], SQLLimits(**limits)), sql)
    assert stopped.value.code is code


def test_an_error_names_no_value_of_the_device(engine):
    with pytest.raises(StatusError, match="ConversionException") as error:
        rows(engine, "SELECT SUM(n) FROM launches WHERE app > 3")
    assert "maps" not in error.value.message
    assert error.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(StatusError, match="cannot be read") as error:
        rows(engine, "SELECT FROM WHERE")
    assert error.value.code is Code.INVALID_ARGUMENT


def test_hidden_tables_and_unknown_files(tmp_path, launches):
    engine = DuckDBEngine([launches], SQLLimits())
    with pytest.raises(StatusError, match="'launches' is not for it"):
        engine.answer("SELECT n FROM launches", lambda table: table != "launches")
    (tmp_path / "x.db").write_bytes(b"")
    for paths, words in (([tmp_path / "x.db"], "DuckDB's tables are read from"), ([], "at least")):
        with pytest.raises(UsageError, match=words):
            DuckDBEngine(paths, SQLLimits())
    (tmp_path / "broken.parquet").write_bytes(b"nothing")
    with pytest.raises(StatusError, match="cannot be read as a table"):
        rows(DuckDBEngine([tmp_path / "broken.parquet"], SQLLimits()), "SELECT 1 FROM broken")
    with pytest.raises(UsageError, match="there is sqlite, duckdb"):
        SQLStore(launches, engine="postgres")
