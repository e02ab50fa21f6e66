"""Reads TOML files that people write; errors name the line."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcp_core.errors import UsageError, reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_KINDS = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
    dict: "a table",
    list: "an array",
}


def read_text(path: Path, what: str) -> str:
    """Return the text of a file.

    :param what: what errors call it, such as "task file".
    :raises UsageError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the {what} {path} cannot be read: {reason(error)}.") from None


def parse_toml(text: str, shown: str) -> TomlTable:
    """Return the root table of a file.

    :param shown: what errors call the file.
    :raises UsageError: if it is no TOML.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{shown}: {error}.") from None
    return TomlTable(document, (), _Lines(text), shown)


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


class TomlTable:
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
        """Return its keys."""
        return list(self._values)

    def raw(self, name: str) -> Any:
        """Return a value as it is; None if it is missing."""
        return self._values.get(name)

    def wrong(self, name: str | None, problem: str) -> UsageError:
        """Return an error about a key, or about the table."""
        path = self._path if name is None else (*self._path, name)
        line = self._lines.of(path)
        where = self._shown if line is None else f"{self._shown}, line {line}"
        return UsageError(f"{where}: {'.'.join(path) or 'the file'}: {problem}.")

    def know(self, name: str) -> None:
        """Take a key for one that may be there."""
        self._read.append(name)

    def get(self, name: str, kind: type[Any], default: Any = _REQUIRED) -> Any:
        """Return a value.

        :raises UsageError: if it is of another kind, or missing without a default.
        """
        self.know(name)
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
        """Return a string that must be one of several.

        :raises UsageError: if it is another.
        """
        value: str = self.get(name, str, default)
        if value not in choices:
            raise self.wrong(name, f"{value!r} is not one of {', '.join(choices)}")
        return value

    def duration(self, name: str) -> float | None:
        """Return a time in seconds, written as a number or like ``10m``; None if it is missing.

        :raises UsageError: if it is neither.
        """
        if name not in self._values or type(self._values[name]) in (int, float):
            value: float | None = self.get(name, float, None)
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", self.get(name, str))
        if match is None:
            raise self.wrong(name, "it must be like '90s', '10m', '2h' or '1d'")
        return float(match[1]) * _SECONDS[match[2]]

    def strings(self, name: str) -> list[str]:
        """Return an array of strings, empty if it is missing.

        :raises UsageError: if it is another array.
        """
        values = self.get(name, list, [])
        for value in values:
            if not isinstance(value, str):
                raise self.wrong(name, f"it must be an array of strings, not with {value!r}")
        return list(values)

    def columns(self, name: str) -> dict[str, str]:
        """Return names by column: a table, or an array where both are the same.

        :raises UsageError: if it is neither, or the array has a name twice.
        """
        if isinstance(self._values.get(name), list):
            names = self.strings(name)
            twice = next((vector for vector in names if names.count(vector) > 1), None)
            if twice is not None:
                raise self.wrong(name, f"two columns of the result are called {twice!r}")
            return {vector: vector for vector in names}
        if name not in self._values:
            self.know(name)
            return {}
        table = self.table(name)
        return {column: table.get(column, str) for column in table.names()}

    def table(self, name: str) -> TomlTable:
        """Return a table in it.

        :raises UsageError: if it is missing or no table.
        """
        values = self.get(name, dict)
        return TomlTable(values, (*self._path, name), self._lines, self._shown)

    def tables(self, name: str, default: Any = _REQUIRED) -> list[TomlTable]:
        """Return an array of tables in it.

        :raises UsageError: if it is missing or another array.
        """
        values = self.get(name, list, default)
        if not all(isinstance(value, dict) for value in values):
            raise self.wrong(name, f"it must be tables, each begun with [[{name}]]")
        return [
            TomlTable(value, (*self._path, name, str(index)), self._lines, self._shown)
            for index, value in enumerate(values)
        ]

    def check_all_read(self) -> None:
        """Refuse keys that nobody asked for.

        :raises UsageError: naming the first of them.
        """
        for name in self._values:
            if name not in self._read:
                close = difflib.get_close_matches(name, self._read, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"there is {_list(self._read)}"
                raise self.wrong(name, f"there is no such key; {hint}".rstrip("?"))


def _list(names: list[str]) -> str:
    return ", ".join(sorted(set(names)))
