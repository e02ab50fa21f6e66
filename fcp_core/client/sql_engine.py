"""Answers SQL queries with SQLite: reading only, from a closed set of statements, within limits."""

from __future__ import annotations

import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fcp_core.client.sql_files import DATABASES, SUFFIXES, read_table
from fcp_core.errors import UsageError
from fcp_core.protocol import sketches
from fcp_core.protocol.sql import DISTINCT_CODE, SUMMED_GROUPS
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.summed_groups import Layout

#: What a query may call beside ours; SQLite's functions that read files, load code or name its
#: parts are not among them.
FUNCTIONS = frozenset(
    [
        "->",
        "->>",
        "abs",
        "acos",
        "asin",
        "atan",
        "atan2",
        "avg",
        "ceil",
        "ceiling",
        "coalesce",
        "concat",
        "cos",
        "count",
        "cume_dist",
        "date",
        "datetime",
        "degrees",
        "dense_rank",
        "exp",
        "first_value",
        "floor",
        "glob",
        "group_concat",
        "hex",
        "ifnull",
        "iif",
        "instr",
        "json_array_length",
        "json_extract",
        "json_type",
        "json_valid",
        "julianday",
        "lag",
        "last_value",
        "lead",
        "length",
        "like",
        "ln",
        "log",
        "log10",
        "log2",
        "lower",
        "ltrim",
        "max",
        "median",
        "min",
        "mod",
        "nth_value",
        "ntile",
        "nullif",
        "octet_length",
        "percent_rank",
        "pi",
        "pow",
        "power",
        "quote",
        "radians",
        "rank",
        "replace",
        "round",
        "row_number",
        "rtrim",
        "sign",
        "sin",
        "sqrt",
        "strftime",
        "string_agg",
        "substr",
        "substring",
        "sum",
        "tan",
        "time",
        "timediff",
        "total",
        "trim",
        "trunc",
        "typeof",
        "unicode",
        "unixepoch",
        "upper",
    ]
)
#: Table-valued functions that read nothing but their arguments.
_TABLE_FUNCTIONS = frozenset({"json_each", "json_tree"})
_STATEMENT = re.compile(r"\s*(SELECT|WITH)\b", re.IGNORECASE)
#: Of SQLite's mathematical functions, which not every build has, those that queries are made of.
_MATHEMATICS: dict[str, Callable[..., Any]] = {
    "ln": lambda x: math.log(x) if x is not None and x > 0 else None,
    "exp": lambda x: None if x is None else math.exp(min(x, 709.0)),
    "sqrt": lambda x: math.sqrt(x) if x is not None and x >= 0 else None,
    "ceil": lambda x: None if x is None else math.ceil(x),
    "floor": lambda x: None if x is None else math.floor(x),
    "power": lambda x, y: None if x is None or y is None else math.pow(x, y),
}
#: How many steps of SQLite's machine there are between two looks at the clock.
_STEPS = 10_000
_ALLOWED, _REFUSED = sqlite3.SQLITE_OK, sqlite3.SQLITE_DENY
#: SQLite's number of a recursive query, which the standard library has no name for.
_RECURSIVE = 33
_WHAT = {
    getattr(sqlite3, f"SQLITE_{name}"): words
    for name, words in {
        "ATTACH": "it attaches another database",
        "DETACH": "it detaches a database",
        "PRAGMA": "it has a pragma",
        "INSERT": "it writes",
        "UPDATE": "it writes",
        "DELETE": "it writes",
        "TRANSACTION": "it is about transactions",
        "SAVEPOINT": "it is about transactions",
    }.items()
} | {_RECURSIVE: "it is recursive"}


@dataclass(frozen=True)
class SQLLimits:
    """What a query may take.

    :param seconds: that it may run.
    :param rows: that its answer may have.
    :param answer_bytes: of the texts and numbers of its answer.
    :param value_bytes: of a single text, in between too, where Python lets that be limited (3.11).
    :param file_bytes: of a file that is no database, and so is read into memory.
    :param memory_bytes: that DuckDB may take for what it computes with.
    """

    seconds: float = 30.0
    rows: int = 100_000
    answer_bytes: int = 16 << 20
    value_bytes: int = 1 << 20
    file_bytes: int = 64 << 20
    memory_bytes: int = 256 << 20


@dataclass(frozen=True)
class Answer:
    """The rows of an answer.

    :param rows: of None, integers, floats, text and bytes.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class SQLiteEngine:
    """Answers queries about the tables of some files.

    Each query has a connection of its own, opened for reading. SQLite asks about every table,
    column and function while it prepares a statement, so that what is refused never runs.

    :param paths: databases, whose tables have the names that they have, and other files, each a
        table with the name of the file without its suffix.
    :raises UsageError: if there is none, or one of a kind that is not known.
    """

    def __init__(self, paths: Sequence[Path], limits: SQLLimits) -> None:
        check_paths(paths, SUFFIXES, "tables are read from files in")
        self._paths = paths
        self._limits = limits

    def answer(self, sql: str, allowed: Callable[[str], bool]) -> Answer:
        """Return the answer to one SELECT.

        :param allowed: whether the table of a name may be read.
        :raises StatusError: INVALID_ARGUMENT for one that cannot be understood; PERMISSION_DENIED
            for one that does more than reading what may be read; DEADLINE_EXCEEDED or
            RESOURCE_EXHAUSTED for one that takes too much.
        """
        if not _STATEMENT.match(sql):
            raise refused("it is no SELECT")
        with closing(sqlite3.connect(":memory:", uri=True, isolation_level=None)) as database:
            # A text may have any bytes in SQLite; one that is none must not cost the answer.
            database.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
            self._open(database)
            guard = _Guard(database, allowed, time.monotonic() + self._limits.seconds)
            try:
                cursor = database.execute(sql)
                columns = [column[0] for column in cursor.description or ()]
                return Answer(columns, counted(cursor, self._limits))
            except (sqlite3.Error, sqlite3.Warning) as error:
                raise guard.explain(error, self._limits) from error

    def _open(self, database: sqlite3.Connection) -> None:
        try:
            for number, path in enumerate(self._paths):
                if path.suffix.lower() in DATABASES:
                    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
                    database.execute(f"ATTACH ? AS d{number}", (uri,))
                    # A file that is no database is noticed when it is first read.
                    database.execute(f"SELECT count(*) FROM d{number}.sqlite_master")
                else:
                    self._load(database, path)
            # Views and the like of the files call no function that only code may call.
            database.execute("PRAGMA trusted_schema = 0")
            database.execute("PRAGMA query_only = 1")
        except sqlite3.Error as error:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"{path.name} cannot be read as a database: {error}"
            ) from error
        for name, function in _MATHEMATICS.items():
            arguments = 2 if name == "power" else 1
            try:
                database.execute(f"SELECT {name}({', '.join('1' * arguments)})")
            except sqlite3.OperationalError:
                database.create_function(name, arguments, function, deterministic=True)
        for name in _TABLE_FUNCTIONS:
            # SQLite declares it at its first use, which looks like writing to whoever is asked.
            with suppress(sqlite3.OperationalError):
                database.execute(f"SELECT 1 FROM {name}('[]')")
        database.create_function(DISTINCT_CODE, 1, _distinct_code, deterministic=True)
        database.create_aggregate(SUMMED_GROUPS, -1, SummedGroups)  # type: ignore[arg-type]
        if hasattr(database, "setlimit"):
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._limits.value_bytes)
            database.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000)

    def _load(self, database: sqlite3.Connection, path: Path) -> None:
        table = read_table(path, self._limits.file_bytes)
        columns = ", ".join(identifier(column) for column in table.columns)
        marks = ", ".join("?" * len(table.columns))
        name = identifier(path.stem)
        database.execute(f"CREATE TABLE {name} ({columns})")
        database.executemany(f"INSERT INTO {name} VALUES ({marks})", table.rows)


class _Guard:
    """Asked by SQLite whether a statement may do what it does, and whether it may go on."""

    def __init__(
        self, database: sqlite3.Connection, allowed: Callable[[str], bool], deadline: float
    ) -> None:
        self._allowed = allowed
        self._deadline = deadline
        self._refused = ""
        database.set_authorizer(self._authorize)
        database.set_progress_handler(self._is_over, _STEPS)

    def explain(self, error: BaseException, limits: SQLLimits) -> StatusError:
        if self._refused:
            return refused(self._refused)
        if self._is_over():
            return StatusError(
                Code.DEADLINE_EXCEEDED, f"the SQL query took more than {limits.seconds} seconds"
            )
        if "too big" in str(error):
            return StatusError(Code.RESOURCE_EXHAUSTED, f"the SQL query: {error}")
        return StatusError(Code.INVALID_ARGUMENT, f"the SQL query: {error}")

    def _is_over(self) -> bool:
        return time.monotonic() >= self._deadline

    def _authorize(
        self, action: int, first: str | None, second: str | None, *where: str | None
    ) -> int:
        if action == sqlite3.SQLITE_SELECT:
            return _ALLOWED
        if action == sqlite3.SQLITE_READ:
            table = (first or "").lower()
            internal = table.startswith(("sqlite_", "pragma_")) or table == "dbstat"
            if not internal and (table in _TABLE_FUNCTIONS or self._allowed(table)):
                return _ALLOWED
            return self._refuse(f"the table {first!r} is not for it")
        if action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() in (DISTINCT_CODE, SUMMED_GROUPS, *FUNCTIONS):
                return _ALLOWED
            return self._refuse(f"the function {second!r} is not for it")
        return self._refuse(_WHAT.get(action, "it does more than reading"))

    def _refuse(self, why: str) -> int:
        self._refused = self._refused or why
        return _REFUSED


class SummedGroups:
    """The table of a device's groups, of which only the sum over devices is seen.

    Its arguments are the capacity, the bytes of a key and the salt of the table, and then a group:
    its key, or NULL for none, and its numbers.
    """

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._groups: dict[bytes, list[int]] = {}

    def step(
        self, capacity: int, key_bytes: int, salt: str, key: str | None, *numbers: int
    ) -> None:
        """Take a group."""
        self._layout = Layout(capacity, key_bytes, len(numbers), salt)
        if key is not None:
            before = self._groups.get(key.encode(), [0] * len(numbers))
            self._groups[key.encode()] = [a + b for a, b in zip(before, numbers, strict=True)]

    def finalize(self) -> bytes | None:
        """Return the table; None if it was given nothing."""
        return None if self._layout is None else self._layout.write(self._groups).tobytes()


def _distinct_code(value: Any) -> int:
    return int(sketches.distinct_codes([value])[0])


def check_paths(paths: Sequence[Path], known: Sequence[str], what: str) -> None:
    """Refuse files that an engine does not read.

    :param known: the suffixes of those that it does.
    :param what: what the message says of them.
    :raises UsageError: if there is none, or one of another kind.
    """
    if not paths:
        raise UsageError("a store that is asked in SQL needs at least one file.")
    for path in paths:
        if path.suffix.lower() not in known:
            raise UsageError(f"{path}: {what} {', '.join(known)}.")


def counted(rows: Iterable[Sequence[Any]], limits: SQLLimits) -> list[Sequence[Any]]:
    """Return the rows of an answer.

    :raises StatusError: RESOURCE_EXHAUSTED if there are more than a query may have.
    """
    found: list[Sequence[Any]] = []
    size = 0
    for row in rows:
        size += sum(len(v) if isinstance(v, (str, bytes)) else 8 for v in row)
        if len(found) >= limits.rows or size > limits.answer_bytes:
            raise StatusError(
                Code.RESOURCE_EXHAUSTED,
                f"the answer has more than {limits.rows} rows or {limits.answer_bytes} bytes",
            )
        found.append(row)
    return found


def refused(why: str) -> StatusError:
    """Return the error for a query that does what it may not."""
    return StatusError(Code.PERMISSION_DENIED, f"the SQL query is refused: {why}")


def identifier(name: str) -> str:
    """Return a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'
