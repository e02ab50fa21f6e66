"""The file that describes a task of analytics, in TOML; ``docs/serving.md`` says what is in it."""

from __future__ import annotations

import base64
import binascii
import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.rounds.tasks import AssignmentMode
from fcp_core.tasks.analytics import Analytics, Query, Vector

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    dict: "a table",
    list: "an array",
}


def read_task_file(path: Path) -> Analytics:
    """Read a task file.

    :raises UsageError: naming the file, the line and what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the task file {path} cannot be read: {error}.") from None
    return parse_task(text, str(path))


def parse_task(text: str, shown: str = "task") -> Analytics:
    """Read the text of a task file.

    :param shown: what errors call the file.
    :raises UsageError: as :func:`read_task_file`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{shown}: {error}.") from None
    root = _Table(document, (), _Lines(text), shown)
    task = root.table("task")
    queries = tuple(_query(table) for table in root.tables("query"))
    result = root.table("result")
    analytics = Analytics(
        population=task.get("population", str),
        name=task.get("name", str),
        goal_count=task.get("goal_count", int),
        minimum_count=task.get("minimum_count", int, None),
        deadline=task.duration("deadline"),
        over_selection=task.get("over_selection", float, None),
        max_at_work=task.get("max_at_work", int, None),
        assignment_mode=AssignmentMode[
            task.choice("assignment_mode", ("single", "multiple"), "single").upper()
        ],
        queries=queries,
        group_by=tuple(result.strings("group_by")),
        sums=result.columns("sum"),
        counts=result.columns("count"),
        minimum_group_size=result.get("minimum_group_size", int, None),
    )
    for table in (task, result, root):
        table.check_all_read()
    return analytics


def _query(table: _Table) -> Query:
    vectors = {}
    given = table.table("vectors")
    for name in given.names():
        if isinstance(given.raw(name), dict):
            vector = given.table(name)
            vectors[name] = Vector(vector.get("dtype", str), vector.get("length", int, None))
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


def _criteria(table: _Table) -> tuple[str, bytes] | None:
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


class _Lines:
    """Finds the line of a key: good enough for an error message, for what people write."""

    def __init__(self, text: str) -> None:
        self._found: dict[tuple[str, ...], int] = {}
        header: tuple[str, ...] = ()
        arrays: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if match := re.match(r"\s*\[\[?\s*([^\[\]]+?)\s*\]", line):
                header = _keys(match[1])
                if line.lstrip().startswith("[["):
                    arrays[header[0]] = arrays.get(header[0], -1) + 1
                if header[0] in arrays:
                    header = (header[0], str(arrays[header[0]]), *header[1:])
                self._found.setdefault(header, number)
            elif match := re.match(r"\s*([\w\"'. -]+?)\s*=", line):
                path = header + _keys(match[1])
                self._found.setdefault(path, number)
                for name in re.findall(r"[{,]\s*([\w-]+)\s*=", line):
                    self._found.setdefault((*path, name), number)

    def of(self, path: tuple[str, ...]) -> int | None:
        """Return the line of a key, or of the table that it is in."""
        while path:
            if path in self._found:
                return self._found[path]
            path = path[:-1]
        return None


def _keys(text: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


_REQUIRED: Any = object()


class _Table:
    """A table of the file that remembers which of its keys were read."""

    def __init__(
        self, values: Mapping[str, Any], path: tuple[str, ...], lines: _Lines, shown: str
    ) -> None:
        self._values = values
        self._path = path
        self._lines = lines
        self._shown = shown
        self._read: list[str] = []

    def names(self) -> list[str]:
        return list(self._values)

    def raw(self, name: str) -> Any:
        return self._values.get(name)

    def wrong(self, name: str | None, problem: str) -> UsageError:
        """Return an error about a key, or about the table."""
        path = self._path if name is None else (*self._path, name)
        line = self._lines.of(path)
        where = self._shown if line is None else f"{self._shown}, line {line}"
        return UsageError(f"{where}: {'.'.join(path) or 'the file'}: {problem}.")

    def get(self, name: str, kind: type[Any], default: Any = _REQUIRED) -> Any:
        self._read.append(name)
        if name not in self._values:
            if default is _REQUIRED:
                raise self.wrong(name, "it is missing")
            return default
        value = self._values[name]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.wrong(name, f"it must be {_KINDS[kind]}, not {value!r}")
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        value: str = self.get(name, str, default)
        if value not in choices:
            raise self.wrong(name, f"{value!r} is not one of {', '.join(choices)}")
        return value

    def duration(self, name: str) -> float | None:
        if name not in self._values or type(self._values[name]) in (int, float):
            value: float | None = self.get(name, float, None)
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", self.get(name, str))
        if match is None:
            raise self.wrong(name, "it must be like '90s', '10m', '2h' or '1d'")
        return float(match[1]) * _SECONDS[match[2]]

    def strings(self, name: str) -> list[str]:
        values = self.get(name, list, [])
        for value in values:
            if not isinstance(value, str):
                raise self.wrong(name, f"it must be an array of strings, not with {value!r}")
        return list(values)

    def columns(self, name: str) -> dict[str, str]:
        """Return names by column: a table, or an array where both are the same."""
        if isinstance(self._values.get(name), list):
            return {vector: vector for vector in self.strings(name)}
        if name not in self._values:
            self._read.append(name)
            return {}
        table = self.table(name)
        return {column: table.get(column, str) for column in table.names()}

    def table(self, name: str) -> _Table:
        values = self.get(name, dict)
        return _Table(values, (*self._path, name), self._lines, self._shown)

    def tables(self, name: str) -> list[_Table]:
        values = self.get(name, list)
        if not all(isinstance(value, dict) for value in values):
            raise self.wrong(name, f"it must be tables, each begun with [[{name}]]")
        return [
            _Table(value, (*self._path, name, str(index)), self._lines, self._shown)
            for index, value in enumerate(values)
        ]

    def check_all_read(self) -> None:
        """Refuse keys that nobody asked for."""
        for name in self._values:
            if name not in self._read:
                close = difflib.get_close_matches(name, self._read, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"there is {_list(self._read)}"
                raise self.wrong(name, f"there is no such key; {hint}".rstrip("?"))


def _list(names: list[str]) -> str:
    return ", ".join(sorted(set(names)))
