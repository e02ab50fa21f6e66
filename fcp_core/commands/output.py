"""What commands write: tables on the terminal or into a pipe, and files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table


def make_table(*columns: str, right: bool = False) -> Table:
    """Return an empty table as all commands print it.

    :param right: align all columns but the first on the right, for numbers.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        justify = "right" if right and number else "left"
        table.add_column(column, overflow="fold", justify=justify)  # type: ignore[arg-type]
    return table


def print_tables(*tables: Table) -> None:
    """Print tables: as wide as the terminal, or as wide as they are into a pipe."""
    from rich.console import Console

    # A pipe gets whole lines, so that they can be searched.
    console = Console(width=None if sys.stdout.isatty() else 2000, highlight=False, markup=False)
    for table in tables:
        console.print(table)


def write_file(path: Path, data: bytes) -> None:
    """Write a file.

    :raises UsageError: if it cannot be written.
    """
    with _naming(str(path)):
        path.write_bytes(data)


@contextlib.contextmanager
def open_text(name: str) -> Iterator[IO[str]]:
    """Open a file for text; ``-`` is the output.

    :raises UsageError: if it cannot be written.
    """
    if name == "-":
        yield sys.stdout
        return
    with _naming(name), open(name, "w", encoding="utf-8", newline="") as file:
        yield file


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{name} cannot be written: {error.strerror or error}.") from None
