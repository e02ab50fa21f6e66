"""What a device answers in SQL, and what it refuses."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from fcp_core.client import SQLLimits, SQLStore
from fcp_core.errors import UsageError
from fcp_core.protocol import sql
from fcp_core.protocol.protos import data_type_pb2, plan_pb2
from fcp_core.protocol.status import Code, StatusError

TYPES = {
    "n": data_type_pb2.INT64,
    "x": data_type_pb2.DOUBLE,
    "t": data_type_pb2.STRING,
    "b": data_type_pb2.BYTES,
}


def ask(store, text, *columns, **criteria):
    """Return the columns of an answer, as lists."""
    query = plan_pb2.ExampleQuerySpec.ExampleQuery()
    query.example_selector.collection_uri = "app:/tables"
    query.example_selector.criteria.type_url = criteria.get("type_url", sql.TYPE_URL)
    query.example_selector.criteria.value = criteria.get("value") or sql.selection_criteria(
        text, {name: TYPES[name] for name in columns}
    )
    for name in columns:
        query.output_vector_specs[f"out {name}"].vector_name = name
        query.output_vector_specs[f"out {name}"].data_type = TYPES[name]
    result = store.query(query)
    assert not columns or result.stats.output_rows_count == len(list(values(result, columns[0])))
    return [list(values(result, name)) for name in columns]


def values(result, name):
    found = result.vector_data.vectors[name]
    return getattr(found, found.WhichOneof("values")).value


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "device.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE launches (app, seconds)")
        connection.execute("CREATE TABLE messages (text)")
        connection.execute("CREATE VIEW long AS SELECT * FROM launches WHERE seconds > 2")
        rows = [("maps", 1.5), ("maps", 3), ("mail", None)]
        connection.executemany("INSERT INTO launches VALUES (?, ?)", rows)
        connection.execute("INSERT INTO messages VALUES ('secret')")
        connection.commit()
    return path


def test_a_database_is_asked(database):
    text = "SELECT app AS t, COUNT(*) AS n, TOTAL(seconds) AS x FROM launches GROUP BY 1 ORDER BY 1"
    answer = ask(SQLStore(database), text, "t", "n", "x")
    assert answer == [["mail", "maps"], [1, 2], [0.0, 4.5]]
    assert ask(SQLStore(database), "SELECT app AS b FROM long", "b") == [[b"maps"]]
    assert ask(SQLStore(database), "SELECT app AS t FROM launches WHERE 0", "t") == [[]]
    text = "SELECT e.value AS n FROM messages, json_each('[' || length(text) || ', 7]') AS e"
    assert ask(SQLStore(database), text, "n") == [[6, 7]]


def test_files_are_tables(tmp_path, database):
    (tmp_path / "phones.csv").write_text('name,zip,age\n"a, b",007,3\nc,12,\n')
    (tmp_path / "events.jsonl").write_text('{"kind": "tap", "at": {"x": 1}}\n\n{"n": true}\n')
    store = SQLStore(database, tmp_path / "phones.csv", tmp_path / "events.jsonl")
    answer = ask(store, "SELECT name AS t, COALESCE(age, -1) AS n FROM phones", "t", "n")
    assert answer == [["a, b", "c"], [3, -1]]
    assert ask(store, "SELECT zip AS t FROM phones", "t") == [["007", "12"]]
    text = "SELECT json_extract(at, '$.x') AS n FROM events WHERE kind IS NOT NULL"
    assert ask(store, text, "n") == [[1]]
    joined = "SELECT COUNT(*) AS n FROM launches JOIN events ON events.n = 1"
    assert ask(store, joined, "n") == [[3]]


def test_parquet_is_a_table(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"n": [1, 2, None], "t": ["a", "b", "c"], "list": [[1], None, [2]]})
    parquet.write_table(table, tmp_path / "p.parquet")
    answer = ask(
        SQLStore(tmp_path / "p.parquet"), "SELECT SUM(n) AS n, MAX(list) AS t FROM p", "n", "t"
    )
    assert answer == [[3], [json.dumps([2])]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("INSERT INTO launches VALUES (1, 2)", "it is no SELECT"),
        ("PRAGMA table_info(launches)", "it is no SELECT"),
        ("ATTACH 'other.db' AS o", "it is no SELECT"),
        ("EXPLAIN SELECT 1", "it is no SELECT"),
        ("WITH x AS (SELECT 1) DELETE FROM launches", "it writes"),
        ("SELECT load_extension('x')", "the function 'load_extension'"),
        ("SELECT randomblob(1000)", "the function 'randomblob'"),
        ("SELECT * FROM sqlite_master", "the table 'sqlite_master'"),
        ("SELECT * FROM pragma_table_info('launches')", "is refused"),
        ("SELECT * FROM messages", "the table 'messages'"),
        ("SELECT text FROM (SELECT * FROM MESSAGES)", "the table 'messages'"),
        (
            "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT * FROM r",
            "it is recursive",
        ),
    ],
)
def test_what_is_more_than_reading_is_refused(database, text, words):
    store = SQLStore(database, hidden=["mess*"])
    before = database.read_bytes()
    with pytest.raises(StatusError, match=words) as caught:
        ask(store, text, "n")
    assert caught.value.code is Code.PERMISSION_DENIED
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("SELECT 1 AS n; SELECT 2", ["n"], "one statement"),
        ("SELECT nonsense FROM launches", ["n"], "no such column: nonsense"),
        ("SELECT 1 AS n FROM nowhere", ["n"], "no such table: nowhere"),
        ("SELECT 1 AS other", ["n"], "has no column 'n'; it has other"),
        ("SELECT seconds AS x FROM launches", ["x"], "double values only, and no NULL"),
        ("SELECT 1.5 AS n", ["n"], "int64 values only"),
        ("SELECT 1 AS t", ["t"], "string values only"),
        ("SELECT 1 AS b", ["b"], "bytes values only"),
    ],
)
def test_what_cannot_be_answered_is_said(database, text, columns, words):
    with pytest.raises(StatusError, match=words) as caught:
        ask(SQLStore(database), text, *columns)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("limits", "text", "code"),
    [
        (
            SQLLimits(seconds=0.2),
            f"SELECT COUNT(*) AS n FROM {', '.join(f'numbers {name}' for name in 'abcdefgh')}",
            Code.DEADLINE_EXCEEDED,
        ),
        (SQLLimits(rows=10), "SELECT a.n AS n FROM numbers a, numbers b", Code.RESOURCE_EXHAUSTED),
        (
            SQLLimits(answer_bytes=100),
            "SELECT hex(hex(hex(n))) || 'xxxxxxxxxxxxxxxxxx' AS t FROM numbers",
            Code.RESOURCE_EXHAUSTED,
        ),
        (SQLLimits(file_bytes=10), "SELECT n FROM numbers", Code.RESOURCE_EXHAUSTED),
    ],
)
def test_what_takes_too_much_is_stopped(tmp_path, limits, text, code):
    path = tmp_path / "numbers.csv"
    path.write_text("\n".join(["n", *map(str, range(100))]))
    with pytest.raises(StatusError) as caught:
        ask(SQLStore(path, limits=limits), text, "t" if " AS t" in text else "n")
    assert caught.value.code is code


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(UsageError, match="at least one file"):
        SQLStore()
    with pytest.raises(UsageError, match=r"read from files in .*\.csv"):
        SQLStore(tmp_path / "notes.txt")
    for name, content in {
        "gone.csv": None,
        "gone.db": None,
        "bad.db": "this is no database, but text that is long enough to look at" * 20,
        "bad.csv": "a,b\n1\n",
        "twice.csv": "a,A\n1,2\n",
        "bad.jsonl": "[1]\n",
        "bad.parquet": "x",
    }.items():
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(StatusError, match=name) as caught:
            ask(SQLStore(tmp_path / name), "SELECT 1 AS n", "n")
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_other_questions_are_refused(database):
    store = SQLStore(database)
    with pytest.raises(StatusError, match="answers only example queries"):
        store.examples(plan_pb2.ExampleSelector(collection_uri="app:/tables"))
    with pytest.raises(StatusError, match="is asked in SQL"):
        ask(store, "SELECT 1 AS n", "n", type_url="type.googleapis.com/other")
    with pytest.raises(StatusError, match="no SelectionCriteria"):
        ask(store, "", "n", value=b"\xff")
    with pytest.raises(StatusError, match="hold no client_query"):
        ask(store, "", "n", value=b"\x18\x01")
    with pytest.raises(StatusError, match="version 7") as caught:
        ask(store, "", "n", value=b"\x18\x07")
    assert caught.value.code is Code.UNIMPLEMENTED
