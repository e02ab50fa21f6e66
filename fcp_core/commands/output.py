"""What commands write: tables on the terminal or into a pipe, and files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def one_line(text: str) -> str:
    """Return what others may have written as it may be shown: nothing in it has an effect."""
    from fcp_core.rounds.text import escaped

    return escaped(text)


def say(text: str, *, err: bool = False) -> None:
    """Print a line that may hold what a device, a server or another operator wrote.

    :param err: print it beside the output.
    """
    click.echo(one_line(text), err=err)


def line_by_line(text: str) -> str:
    """Return a text of several lines as it may be shown on a terminal."""
    return "\n".join(map(one_line, text.split("\n")))


def print_data(text: str) -> None:
    """Print a result: as it is into a pipe, and fit for a terminal on one."""
    click.echo(line_by_line(text) if sys.stdout.isatty() else text, nl=False, color=True)


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
    """Print tables as wide as they are; on a terminal that is narrower, a paragraph for each row.

    A pipe gets whole lines, so that they can be searched.
    """
    from rich.console import Console

    # With a height, or a terminal that says little of itself counts as one of 80 columns.
    wide = Console(width=2000, height=100, highlight=False, markup=False)
    terminal = Console(highlight=False, markup=False)
    for table in tables:
        for column in table.columns:  # what is in them others may have written
            column._cells[:] = [one_line(str(cell)) for cell in column._cells]
        needed = wide.measure(table).maximum
        if sys.stdout.isatty() and needed > terminal.width:
            for line in _paragraphs(table, terminal.width):
                terminal.print(line)
        else:
            wide.print(table, width=needed)


def _paragraphs(table: Table, width: int) -> Iterator[Text]:
    """Return the lines of a table that is too wide: what tells a row apart, then the rest."""
    import textwrap

    from rich.text import Text

    names = [str(column.header) for column in table.columns]
    rows = [
        [str(cell) for cell in cells]
        for cells in zip(*(column.cells for column in table.columns), strict=True)
    ]
    head = next(
        (n for n in range(1, len(names)) if len({tuple(row[:n]) for row in rows}) == len(rows)), 1
    )
    for row in rows:
        yield Text(" ".join(row[:head]), style="bold")
        rest = zip(names[head:], row[head:], strict=True)
        told = "; ".join(f"{name}: {cell}" for name, cell in rest if cell)
        for line in textwrap.wrap(told, width - 4, break_on_hyphens=False):
            yield Text(f"    {line}")


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
