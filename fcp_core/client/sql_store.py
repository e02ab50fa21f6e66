"""An example store that is asked in SQL, over files that the device has."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError

from fcp_core.client.sql_engine import SQLiteEngine, SQLLimits
from fcp_core.client.stores import ExampleStore
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import data_type_pb2, example_query_result_pb2
from fcp_core.protocol.protos.selection_criteria_pb2 import SelectionCriteria
from fcp_core.protocol.sql import CLIENT_SQL_VERSION, TYPE_URL
from fcp_core.protocol.status import Code, StatusError

if TYPE_CHECKING:
    from fcp_core.protocol.protos.example_query_result_pb2 import ExampleQueryResult
    from fcp_core.protocol.protos.plan_pb2 import ExampleQuerySpec, ExampleSelector

#: Where the values of a column go, by its data type.
_FIELDS: dict[Any, str] = {
    data_type_pb2.INT32: "int32_values",
    data_type_pb2.INT64: "int64_values",
    data_type_pb2.FLOAT: "float_values",
    data_type_pb2.DOUBLE: "double_values",
    data_type_pb2.STRING: "string_values",
    data_type_pb2.BYTES: "bytes_values",
}
_BITS: dict[Any, int] = {data_type_pb2.INT32: 32, data_type_pb2.INT64: 64}


class SQLStore(ExampleStore):
    """Answers example queries whose selector carries a ``fedsql.SelectionCriteria``.

    What a query may do is a closed set: one SELECT, which reads tables and calls functions of a
    list, for a limited time.

    :param paths: SQLite databases (``.db``, ``.sqlite``, ``.sqlite3``), and files in CSV, JSON
        lines or Parquet, each a table with the name of the file without its suffix.
    :param limits: what a query may take; None: the usual limits.
    :param hidden: names of tables that no query may read; ``*`` stands for any letters.
    :param engine: what answers: ``sqlite``, or ``duckdb`` for large Parquet files and DuckDB's own
        databases (``.duckdb``), which the extra ``duckdb`` has.
    :raises UsageError: for files that cannot be tables.
    :raises MissingExtraError: for an engine that is not installed.
    """

    def __init__(
        self,
        *paths: str | os.PathLike[str],
        limits: SQLLimits | None = None,
        hidden: Collection[str] = (),
        engine: str = "sqlite",
    ) -> None:
        self._hidden = tuple(name.lower() for name in hidden)
        self._engine = _engine(engine)([Path(path) for path in paths], limits or SQLLimits())

    def examples(self, selector: ExampleSelector) -> Iterable[bytes]:
        """Refuse: such a collection answers queries only.

        :raises StatusError: INVALID_ARGUMENT.
        """
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"collection {selector.collection_uri!r} has tables, and answers only example queries "
            f"with criteria of the type {TYPE_URL}",
        )

    def query(self, query: ExampleQuerySpec.ExampleQuery) -> ExampleQueryResult:
        """Run the query's SQL and return its columns.

        :raises StatusError: INVALID_ARGUMENT if the criteria are none that it understands, or the
            answer does not have the columns that the query wants; PERMISSION_DENIED,
            DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED for SQL that does or takes too much.
        """
        answer = self._engine.answer(_sql(query.example_selector), self._may_read)
        places = {name: place for place, name in enumerate(answer.columns)}
        result = example_query_result_pb2.ExampleQueryResult()
        for spec in query.output_vector_specs.values():
            name = spec.vector_name
            if name not in places:
                columns = ", ".join(answer.columns)
                raise _bad(f"the answer has no column {name!r}; it has {columns}")
            values = [row[places[name]] for row in answer.rows]
            field = _FIELDS.get(spec.data_type, "")
            if not field:
                raise _bad(f"column {name!r}: SQL has no values of the type {spec.data_type}")
            target = getattr(result.vector_data.vectors[name], field)
            target.SetInParent()
            target.value.extend(_checked(name, spec.data_type, values))
        result.stats.output_rows_count = len(answer.rows)
        return result

    def _may_read(self, table: str) -> bool:
        return not any(fnmatchcase(table.lower(), pattern) for pattern in self._hidden)


def _engine(name: str) -> Any:
    if name == "sqlite":
        return SQLiteEngine
    if name == "duckdb":
        from fcp_core.client.duckdb_engine import DuckDBEngine

        return DuckDBEngine
    raise UsageError(f"there is no SQL engine {name!r}; there is sqlite, duckdb.")


def _sql(selector: ExampleSelector) -> str:
    if selector.criteria.type_url != TYPE_URL:
        raise _bad(
            f"collection {selector.collection_uri!r} is asked in SQL, with criteria of the type "
            f"{TYPE_URL}, not {selector.criteria.type_url or 'without any'}"
        )
    try:
        criteria = SelectionCriteria.FromString(selector.criteria.value)
    except DecodeError as error:
        raise _bad(f"the criteria are no SelectionCriteria: {error}") from error
    if criteria.min_client_sql_version > CLIENT_SQL_VERSION:
        raise StatusError(
            Code.UNIMPLEMENTED,
            f"the query is for clients that know version {criteria.min_client_sql_version} of SQL "
            f"queries; this one knows {CLIENT_SQL_VERSION}",
        )
    if not criteria.HasField("client_query"):
        raise _bad("the criteria hold no client_query")
    sql: str = criteria.client_query.raw_sql
    return sql


def _checked(name: str, data_type: int, values: list[Any]) -> list[Any]:
    """Return a column as what the plan wants."""
    if data_type == data_type_pb2.INT64 and len(values) == 1 and isinstance(values[0], bytes):
        # One value of bytes is a whole vector, such as a table of groups.
        if len(values[0]) % 8 == 0:
            return np.frombuffer(values[0], "<i8").tolist()  # type: ignore[no-any-return]
    elif data_type in _BITS:
        limit = 2 ** (_BITS[data_type] - 1)
        if all(_is_whole(value) and -limit <= value < limit for value in values):
            return [int(value) for value in values]
    elif data_type == data_type_pb2.STRING:
        if all(isinstance(value, str) for value in values):
            return values
    elif data_type == data_type_pb2.BYTES:
        if all(isinstance(value, (str, bytes)) for value in values):
            return [value.encode() if isinstance(value, str) else value for value in values]
    elif all(isinstance(value, (int, float)) for value in values):
        return values
    kind = _FIELDS[data_type].partition("_")[0]
    raise _bad(f"column {name!r} of the answer must hold {kind} values only, and no NULL")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _bad(problem: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, problem)
