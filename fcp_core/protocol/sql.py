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
