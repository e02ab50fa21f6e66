"""The file that describes a task of analytics, in TOML; ``docs/serving.md`` says what is in it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fcp_core.rounds.specification import PolicyChoice, TaskSpec
from fcp_core.tasks.analytics import Aggregate, Analytics, Query, Vector, with_policies
from fcp_core.tasks.fields import read_fields
from fcp_core.tasks.schedule import Schedule
from fcp_core.tasks.sql_query import SqlQuery, SqlTask
from fcp_core.tasks.tomlfile import TomlTable, parse_toml, read_text

#: The fields of a specification that come of the other tables; ``[task]`` may have all others.
MADE = frozenset(
    {"plan", "aggregation", "checkpoint", "slices", "result_format", "eligibility", "query"}
)


def read_task_file(path: Path) -> Analytics | SqlTask:
    """Read a task file.

    :raises UsageError: naming the file, the line and what is wrong.
    """
    return parse_task(read_text(path, "task file"), str(path))


def parse_task(text: str, shown: str = "task") -> Analytics | SqlTask:
    """Read the text of a task file.

    :param shown: what errors call the file.
    :raises UsageError: as :func:`read_task_file`.
    """
    root = parse_toml(text, shown)
    task = root.table("task")
    schedule = _schedule(root)
    if isinstance(root.raw("query"), dict):
        return _sql_task(root, task, schedule)
    queries = tuple(_query(table) for table in root.tables("query"))
    result = root.table("result")
    eligibility = _policies(root)
    analytics = Analytics(
        queries=queries,
        group_by=tuple(result.strings("group_by")),
        sums=result.columns("sum"),
        counts=result.columns("count"),
        aggregates=_aggregates(result),
        minimum_group_size=result.get("minimum_group_size", int, None),
        eligibility=eligibility,
        schedule=schedule,
        **read_fields(task, TaskSpec, besides=MADE),
    )
    for table in (task, result, root):
        table.check_all_read()
    return analytics


def _schedule(root: TomlTable) -> Schedule | None:
    """Read when the task is submitted again."""
    if "schedule" not in root.names():
        root.know("schedule")
        return None
    table = root.table("schedule")
    every, starting = table.duration("every"), table.raw("starting")
    table.know("starting")
    table.check_all_read()
    if every is None or not 0 < every <= 1e9:
        raise table.wrong("every", "it must be like '1d' or '7d'")
    if starting is None:
        return Schedule(every)
    if not isinstance(starting, datetime) or starting.tzinfo is None:
        raise table.wrong("starting", "it must be a time with its zone, 2026-01-05T02:00:00Z")
    return Schedule(every, starting.timestamp())


def _sql_task(root: TomlTable, task: TomlTable, schedule: Schedule | None) -> SqlTask:
    """Read a task with one query in SQL."""
    query = root.table("query")
    if "vectors" in query.names():
        raise query.wrong("vectors", "queries with vectors are begun with [[query]], each of them")
    asked = SqlQuery(**read_fields(query, SqlQuery, besides=()))
    fields = read_fields(task, TaskSpec, besides=MADE)
    read = SqlTask(asked, with_policies(_policies(root), fields), schedule)
    for table in (task, query, root):
        table.check_all_read()
    return read


def _policies(root: TomlTable) -> dict[str, Mapping[str, Any]]:
    choices = [read_policy(table) for table in root.tables("eligibility", ())]
    return {choice.policy: choice.options for choice in choices}


def read_policy(table: TomlTable) -> PolicyChoice:
    """Return an eligibility policy: its name, and its options beside it.

    :raises UsageError: if it has no name.
    """
    name = table.get("policy", str)
    return PolicyChoice(name, {key: table.raw(key) for key in table.names() if key != "policy"})


def _aggregates(result: TomlTable) -> dict[str, Aggregate]:
    if "aggregate" not in result.names():
        result.know("aggregate")
        return {}
    columns = result.table("aggregate")
    aggregates = {}
    for name in columns.names():
        column = columns.table(name)
        dtype, length = column.get("dtype", str, None), column.get("length", int, None)
        if length is not None and (dtype is None or length < 1):
            raise column.wrong("length", "it needs a dtype beside it, and must be at least 1")
        aggregates[name] = Aggregate(
            column.get("uri", str),
            tuple(column.strings("vectors")),
            None if dtype is None else Vector(dtype, length),
        )
        column.check_all_read()
    return aggregates


def _query(table: TomlTable) -> Query:
    if "sql" in table.names():
        raise table.wrong("sql", "a question in SQL is one table, [query] and not [[query]]")
    vectors = {}
    given = table.table("vectors")
    for name in given.names():
        if isinstance(given.raw(name), dict):
            vector = given.table(name)
            vectors[name] = Vector(
                vector.get("dtype", str),
                vector.get("length", int, None),
                vector.get("largest", int, None),
            )
            vector.check_all_read()
        else:
            vectors[name] = Vector(given.get(name, str))
    query = Query(
        collection_uri=table.get("collection_uri", str),
        vectors=vectors,
        criteria=_criteria(table),
        minimum_rows=table.get("minimum_rows", int, 0),
    )
    table.check_all_read()
    return query


def _criteria(table: TomlTable) -> tuple[str, bytes] | None:
    if "criteria" not in table.names():
        return None
    criteria = table.table("criteria")
    text, encoded = criteria.get("text", str, None), criteria.get("base64", str, None)
    type_url = criteria.get("type_url", str)
    criteria.check_all_read()
    if (text is None) == (encoded is None):
        raise criteria.wrong(None, "it needs either 'text' or 'base64'")
    if text is not None:
        return type_url, text.encode()
    try:
        return type_url, base64.b64decode(encoded or "", validate=True)
    except binascii.Error as error:
        raise criteria.wrong("base64", f"{error}") from None
