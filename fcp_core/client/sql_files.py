"""Reads the tables of files that are no databases: CSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from fcp_core.errors import MissingExtraError, UsageError
from fcp_core.protocol.status import Code, StatusError

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_LEADING_ZERO = re.compile(r"[+-]?0\d")


@dataclass(frozen=True)
class FileTable:
    """A table that was read from a file.

    :param rows: of None, integers, floats, text and bytes.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def read_table(path: Path, max_bytes: int) -> FileTable:
    """Read a file by its suffix.

    An empty field of a CSV file is NULL; a column of it whose other fields are all numbers is one
    of numbers. What is nested in JSON or Parquet is kept as JSON text.

    :param max_bytes: of the file; it is held in memory.
    :raises StatusError: INVALID_ARGUMENT for a file that cannot be read; RESOURCE_EXHAUSTED for one
        that is too large.
    :raises UsageError: for Parquet without the package that reads it.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise StatusError(
                Code.RESOURCE_EXHAUSTED,
                f"{path.name} has more than {max_bytes} bytes, which is the most that is read into "
                "memory; keep such data in SQLite",
            )
        table = _READERS[path.suffix.lower()](path)
    except (OSError, ValueError, csv.Error) as error:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{path.name} cannot be read as a table: {error}"
        ) from error
    folded = [column.lower() for column in table.columns]
    if not folded or "" in folded or len(set(folded)) < len(folded):
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{path.name}: its columns need names, each another one"
        )
    return table


def _csv(path: Path, delimiter: str = ",") -> FileTable:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        columns = next(reader, [])
        rows = [row for row in reader if row]
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise ValueError(f"row {number} has {len(row)} fields instead of {len(columns)}")
    fields = [_typed([row[place] for row in rows]) for place in range(len(columns))]
    return FileTable(columns, list(zip(*fields, strict=True)))


def _tsv(path: Path) -> FileTable:
    return _csv(path, "\t")


def _typed(texts: list[str]) -> list[Any]:
    given = [text for text in texts if text]
    if all(_INTEGER.fullmatch(text) for text in given):
        return [int(text) if text else None for text in texts]
    if all(_NUMBER.fullmatch(text) and not _LEADING_ZERO.match(text) for text in given):
        return [float(text) if text else None for text in texts]
    return [text or None for text in texts]


def _json_lines(path: Path) -> FileTable:
    columns: dict[str, int] = {}
    records = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"line {number} is no JSON object")
            for name in record:
                columns.setdefault(name, len(columns))
            records.append(record)
    rows = [[plain(record.get(name)) for name in columns] for record in records]
    return FileTable(list(columns), rows)


def _parquet(path: Path) -> FileTable:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingExtraError("reading Parquet", "analytics") from None
    except ImportError as error:
        raise UsageError(f"reading Parquet: pyarrow cannot be imported: {error}.") from error
    try:
        table = pyarrow.parquet.read_table(path)
        columns = [[plain(value) for value in column.to_pylist()] for column in table.columns]
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
    return FileTable(table.column_names, list(zip(*columns, strict=True)))


def plain(value: Any) -> Any:
    """Return a value as SQLite stores it.

    :raises ValueError: for a whole number that has more than 64 bits.
    """
    if value is None or isinstance(value, (float, str, bytes)):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{value} is no integer of 64 bits")
        return int(value)
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, Decimal):
        return float(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


_READERS = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
#: Files that are databases already.
DATABASES = frozenset({".db", ".sqlite", ".sqlite3"})
#: The suffixes of files that a device may have its tables in.
SUFFIXES = (*sorted(DATABASES), *_READERS)
