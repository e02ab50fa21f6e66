"""A result as a table: the columns of a checkpoint, written as CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from fcp_core.errors import MissingExtraError, UsageError
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.status import Code, StatusError

#: What the name of a column ends with that has the standard deviations of another one's values.
ERROR = " stddev"
#: How many rows a notebook shows.
_SHOWN = 50


@dataclass(frozen=True)
class Column:
    """A column.

    :param dtype: a NumPy name, or ``string``.
    :param values: integers, floats, or strings; None: there is none, as SQL's NULL.
    """

    name: str
    dtype: str
    values: list[Any]

    @property
    def is_text(self) -> bool:
        """Whether it holds strings."""
        return self.dtype == "string"


@dataclass(frozen=True)
class Table:
    """Columns of one length, at least one."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, checkpoint: bytes) -> Table:
        """Read the table that a checkpoint is: each tensor a column, a scalar a column of one row.

        Bytes that are not UTF-8 are shown with backslashes; in a column with such bytes every
        backslash of a text is doubled, so that two values never look alike.

        :raises StatusError: FAILED_PRECONDITION if it is no table; INVALID_ARGUMENT if it is no
            checkpoint.
        """
        columns = []
        for name, tensor in open_checkpoint(checkpoint).items():
            if tensor.ndim > 1:
                raise _no_table(f"tensor {name!r} has {tensor.ndim} dimensions")
            values = tensor.reshape(-1).tolist()
            text = tensor.dtype.kind == "O"
            if text:
                values = _texts(values)
            columns.append(Column(name, "string" if text else tensor.dtype.name, values))
        lengths = {column.name: len(column.values) for column in columns}
        if len(set(lengths.values())) > 1:
            sizes = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise _no_table(f"its tensors have different lengths ({sizes})")
        return cls(tuple(columns))

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Iterate over the rows."""
        return zip(*(column.values for column in self.columns), strict=True)

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it; of a long one the first rows."""
        head = "".join(f"<th>{escape(column.name)}</th>" for column in self.columns)
        rows = [
            "".join(f"<td>{'NULL' if v is None else escape(str(v))}</td>" for v in row)
            for row in islice(self.rows(), _SHOWN)
        ]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        more = len(self.columns[0].values) - len(rows)
        note = f"<p>and {more} rows more</p>" if more > 0 else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"

    def to_csv(self) -> str:
        """Return the table as CSV, with a line of names first and lines that end in a newline.

        :raises StatusError: FAILED_PRECONDITION for a NUL in a text, before Python 3.11.
        """
        target = io.StringIO()
        # Readers take a lone carriage return for a line's end, but the writer does not quote it.
        returns = any(
            "\r" in str(v) for c in self.columns if c.is_text for v in (c.name, *c.values)
        )
        writer = csv.writer(
            target,
            lineterminator="\n",
            quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL,
        )
        try:
            writer.writerow([column.name for column in self.columns])
            writer.writerows(self.rows())
        except csv.Error as error:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"this Python cannot write the table as CSV ({error}); ask for JSON",
            ) from None
        return target.getvalue()

    def to_json(self) -> str:
        """Return the table as one line of JSON."""
        return f"{msgspec.json.encode(self).decode()}\n"

    def write(self, path: Path, suffix: str | None = None) -> None:
        """Write a file: Parquet if its name ends in ``.parquet``, JSON in ``.json``, else CSV.

        :param suffix: the suffix to go by; None: that of the name.
        :raises MissingExtraError: for Parquet without the package that writes it.
        :raises UsageError: if the file cannot be written, or that package does not work here.
        """
        suffix = path.suffix if suffix is None else suffix
        try:
            if suffix == ".parquet":
                self._write_parquet(path)
            elif suffix == ".json":
                path.write_text(self.to_json(), encoding="utf-8")
            else:
                path.write_text(self.to_csv(), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.") from None

    def _write_parquet(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError:
            raise MissingExtraError("writing Parquet", "analytics") from None
        except ImportError as error:
            raise UsageError(f"writing Parquet: pyarrow cannot be imported: {error}.") from error
        arrays = [
            pyarrow.array(column.values, pyarrow.string() if column.is_text else column.dtype)
            for column in self.columns
        ]
        names = [column.name for column in self.columns]
        pyarrow.parquet.write_table(pyarrow.table(arrays, names), path)


def _texts(values: list[bytes]) -> list[str]:
    try:
        return [value.decode("utf-8") for value in values]
    except UnicodeDecodeError:
        escaped = (value.replace(b"\\", b"\\\\") for value in values)
        return [value.decode("utf-8", "backslashreplace") for value in escaped]


def _no_table(problem: str) -> StatusError:
    return StatusError(
        Code.FAILED_PRECONDITION,
        f"the result is no table: {problem}; ask for the checkpoint (application/octet-stream)",
    )
