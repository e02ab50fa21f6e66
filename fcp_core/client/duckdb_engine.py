"""Answers SQL queries with DuckDB: the same questions as SQLite, over large Parquet files.

Queries come in SQLite's dialect, are held to a closed set of tables and functions, and are
rewritten. DuckDB itself may reach nothing but the files that it was given: other files, the
network, extensions and its own configuration are closed before a query is run.
"""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fcp_core.client.duckdb_dialect import MACROS, rewritten
from fcp_core.client.sql_engine import (
    Answer,
    SQLLimits,
    SummedGroups,
    check_paths,
    counted,
    identifier,
    refused,
)
from fcp_core.client.sql_files import SUFFIXES, plain, read_table
from fcp_core.errors import MissingExtraError
from fcp_core.protocol import sketches
from fcp_core.protocol.status import Code, StatusError

try:
    import duckdb
    import pyarrow
except ModuleNotFoundError:
    raise MissingExtraError("asking DuckDB", "duckdb") from None

_DATABASE = ".duckdb"
_PARQUET = ".parquet"
#: Closed once the files are open; the last one closes this list.
_CLOSED = (
    "SET enable_external_access = false",
    "SET old_implicit_casting = true",
    "SET lock_configuration = true",
)
#: How many rows are taken at a time.
_ROWS = 10_000


class DuckDBEngine:
    """Answers queries about the tables of some files.

    Parquet files and DuckDB databases are read where they lie; CSV and JSON lines are read into
    memory, as SQLite's engine does.

    :param paths: as those of :class:`~fcp_core.client.sql_engine.SQLiteEngine`, with ``.duckdb``
        databases in the place of SQLite's.
    :raises UsageError: if there is none, or one of a kind that it does not read.
    """

    def __init__(self, paths: Sequence[Path], limits: SQLLimits) -> None:
        known = (_DATABASE, *(suffix for suffix in SUFFIXES if suffix not in _SQLITE))
        check_paths(paths, known, "DuckDB's tables are read from")
        self._paths = paths
        self._limits = limits

    def answer(self, sql: str, allowed: Callable[[str], bool]) -> Answer:
        """Return the answer to one SELECT in SQLite's dialect.

        :param allowed: whether the table of a name may be read.
        :raises StatusError: as ``SQLiteEngine.answer`` does; also INVALID_ARGUMENT for values of
            types that DuckDB does not compare.
        """
        with (
            contextlib.closing(self._connected()) as database,
            # DuckDB calls from threads of its own, one at a time.
            contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as literals,
        ):
            tables = self._open(database, literals)
            query = rewritten(sql, lambda name: name in tables and allowed(name))
            for statement in _CLOSED:
                database.execute(statement)
            timer = threading.Timer(self._limits.seconds, database.interrupt)
            timer.start()
            try:
                cursor = database.execute(query)
                columns = [column[0] for column in cursor.description or ()]
                return Answer(columns, counted(_rows(cursor), self._limits))
            except duckdb.Error as error:
                raise self._explained(error) from error
            finally:
                timer.cancel()

    def _connected(self) -> Any:
        return duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "memory_limit": f"{self._limits.memory_bytes}B",
                "temp_directory": "",
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
                "python_enable_replacements": False,
                # By a Parquet file's statistics it takes columns for ones without NaN that have it.
                "disabled_optimizers": "statistics_propagation",
            },
        )

    def _open(self, database: Any, literals: sqlite3.Connection) -> set[str]:
        """Make a table or a view for each that the files have; return their names."""

        def real_literal(number: float) -> str:
            if number.is_integer() and abs(number) < 1 << 63:
                return str(int(number))
            return real_quote(number)

        def real_quote(number: float) -> str:
            literal: str = literals.execute("SELECT quote(?)", (number,)).fetchone()[0]
            return literal

        def code_of_literal(literal: str) -> int:
            try:
                value: Any = float(literal) if set(literal) & set(".eIif") else int(literal)
            except ValueError:
                value = literals.execute(f"SELECT {literal}").fetchone()[0]
            return int(sketches.distinct_codes([value])[0])

        for name, function, given, result in (
            ("fcp_real_literal", real_literal, ["DOUBLE"], "VARCHAR"),
            ("fcp_real_quote", real_quote, ["DOUBLE"], "VARCHAR"),
            ("fcp_code_of_literal", code_of_literal, ["VARCHAR"], "BIGINT"),
            ("fcp_table_of_groups", _table_of_groups, _TABLE, "BLOB"),
        ):
            database.create_function(name, function, given, result)
        for macro in MACROS:
            database.execute(macro)
        read = [path for path in self._paths if path.suffix.lower() == _PARQUET]
        places = ", ".join(_text(str(path.absolute())) for path in read)
        database.execute(f"SET allowed_paths = [{places}]")
        tables: set[str] = set()
        for number, path in enumerate(self._paths):
            try:
                tables.update(self._table(database, number, path))
            except duckdb.Error as error:
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"{path.name} cannot be read as a table: {error}"
                ) from error
        return tables

    def _table(self, database: Any, number: int, path: Path) -> Iterator[str]:
        suffix, name = path.suffix.lower(), identifier(path.stem)
        where = _text(str(path.absolute()))
        if suffix == _PARQUET:
            _view(database, name, f"read_parquet({where})")
            yield path.stem.lower()
        elif suffix == _DATABASE:
            database.execute(f"ATTACH {where} AS d{number} (READ_ONLY)")
            found = database.execute(
                "SELECT table_name FROM duckdb_tables() WHERE database_name = ? AND NOT internal",
                [f"d{number}"],
            ).fetchall()
            for (table,) in found:
                quoted = identifier(table)
                _view(database, quoted, f"d{number}.{quoted}")
                yield table.lower()
        else:
            table = read_table(path, self._limits.file_bytes)
            columns = [_column(values) for values in zip(*table.rows, strict=True)]
            columns = columns or [pyarrow.array([], pyarrow.string()) for _ in table.columns]
            database.register("fcp_read", pyarrow.table(columns, list(table.columns)))
            database.execute(f"CREATE TABLE {name} AS SELECT * FROM fcp_read")
            database.unregister("fcp_read")
            yield path.stem.lower()

    def _explained(self, error: Exception) -> StatusError:
        if isinstance(error, duckdb.InterruptException):
            words = f"the SQL query took more than {self._limits.seconds} seconds"
            return StatusError(Code.DEADLINE_EXCEEDED, words)
        if isinstance(error, duckdb.OutOfMemoryException):
            words = f"the SQL query took more than {self._limits.memory_bytes} bytes of memory"
            return StatusError(Code.RESOURCE_EXHAUSTED, words)
        if "too long" in str(error):
            return StatusError(
                Code.RESOURCE_EXHAUSTED, "the SQL query makes a text that is too long"
            )
        if isinstance(error, duckdb.PermissionException):
            return refused("it does more than reading its tables")
        # What values an error is about is the device's own.
        return StatusError(Code.INVALID_ARGUMENT, f"the SQL query: {type(error).__name__}")


#: The capacity, the bytes of a key, the salt, how many numbers there are; the keys and the numbers.
_TABLE = ["BIGINT", "BIGINT", "VARCHAR", "BIGINT", "VARCHAR[]", "BIGINT[][]"]


def _table_of_groups(
    capacity: int,
    key_bytes: int,
    salt: str,
    count: int,
    keys: Sequence[str | None],
    rows: Sequence[Sequence[int]],
) -> bytes:
    """Return the table of a device's groups, of which only the sum over devices is seen."""
    table = SummedGroups()
    for key, numbers in zip(keys, rows, strict=True):
        table.step(capacity, key_bytes, salt, key, *list(numbers)[:count])
    return table.finalize() or b""


_SQLITE = frozenset({".db", ".sqlite", ".sqlite3"})


def _column(values: Sequence[Any]) -> Any:
    """Return a column of one type; one of several is text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) <= 1:
        whole = (
            [float(v) if isinstance(v, int) else v for v in values] if len(kinds) > 1 else values
        )
        # NaN is NULL, as it is in SQLite.
        of = None if kinds else pyarrow.string()
        return pyarrow.array(whole if kinds else values, of, from_pandas=True)
    return pyarrow.array([None if value is None else str(value) for value in values])


def _rows(cursor: Any) -> Iterator[Sequence[Any]]:
    while rows := cursor.fetchmany(_ROWS):
        for row in rows:
            yield [_value(value) for value in row]


def _view(database: Any, name: str, source: str) -> None:
    """Make a view of a table in which NaN is NULL."""
    columns = []
    for column, kind, *_ in database.execute(f"DESCRIBE SELECT * FROM {source}").fetchall():
        quoted = identifier(column)
        number = f"CASE WHEN NOT isnan({quoted}) THEN {quoted} END AS {quoted}"
        columns.append(number if kind in ("DOUBLE", "FLOAT") else quoted)
    database.execute(f"CREATE VIEW {name} AS SELECT {', '.join(columns)} FROM {source}")


def _value(value: Any) -> Any:
    """Return a value as SQLite has it."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (datetime.datetime, datetime.date)):
        return str(value)
    return plain(value)


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
