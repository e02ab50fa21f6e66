"""How an SQL query for devices travels: as the criteria of an example selector."""

from __future__ import annotations

from fcp_core.protocol.protos import sql_query_pb2
from fcp_core.protocol.protos.selection_criteria_pb2 import SelectionCriteria

#: The type of the criteria, as an ``Any`` names it.
TYPE_URL = "type.googleapis.com/fedsql.SelectionCriteria"
#: The version of SQL queries that our client knows.
CLIENT_SQL_VERSION = 1
#: Functions that devices have beside SQLite's: the code of a value for an approximate count of
#: distinct values, and the table of all groups that is summed under masks.
DISTINCT_CODE = "fcp_distinct_code"
SUMMED_GROUPS = "fcp_summed_groups"


def selection_criteria(sql: str, columns: dict[str, int]) -> bytes:
    """Return the criteria that ask a device for the answer to a query.

    :param sql: one SELECT, in SQLite's dialect.
    :param columns: the data type, of ``data_type.proto``, of each column of the answer, by name.
    """
    criteria = SelectionCriteria(min_client_sql_version=CLIENT_SQL_VERSION)
    criteria.client_query.sql_dialect = sql_query_pb2.SqlQuery.SQLITE
    criteria.client_query.raw_sql = sql
    for name, data_type in columns.items():
        column = criteria.client_query.output_columns.add(name=name)
        column.type = data_type  # type: ignore[assignment]
    return criteria.SerializeToString(deterministic=True)


def literal_sql(x: str) -> str:
    """Return an expression whose value is that of another one as an SQL literal, a text.

    So NULL, numbers, text and bytes are told apart, and equal numbers are one.

    :param x: an expression in SQLite's dialect.
    """
    whole = f"CAST({x} AS INTEGER)"
    is_whole = f"typeof({x}) = 'real' AND {x} = {whole}"
    literal = f"quote(CASE WHEN {is_whole} THEN {whole} ELSE {x} END)"
    # SQLite quotes a text up to its first NUL only, and takes its length so. Databases may be in
    # UTF-16, where most letters have a zero byte.
    data = f"CAST({x} AS BLOB)"
    cut = f"typeof({x}) = 'text' AND {data} <> CAST(substr({x}, 1, length({x})) AS BLOB)"
    text = f"'CAST(' || quote({data}) || ' AS TEXT)'"
    return f"CASE WHEN {cut} THEN {text} ELSE {literal} END"
