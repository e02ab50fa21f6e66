"""The live display of the demonstration: an observer of the server's events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import thread_time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from typing_extensions import Self

from fcp_core.plugins import hookimpl
from fcp_core.rounds.events import Assigned, CheckedIn, Contributed, Dropped, Event


@dataclass
class Counts:
    """What happened in one round."""

    seen: int = 0
    assigned: int = 0
    contributed: int = 0
    dropped: int = 0


class Board:
    """Counts events and shows them; pass it to the server as a plugin.

    The events arrive on the server's thread, the rounds are begun and ended on the program's.

    :param rounds: how many rounds there are in all.
    :param goal: contributions a round.
    """

    def __init__(self, rounds: int, goal: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.totals = Counts()
        #: What is going on while no round is; shown below the table.
        self.status = ""
        #: Processor time of the server's event loop so far, in seconds.
        self.server_seconds = 0.0
        self._counts = Counts()
        self._lock = Lock()
        self._rows: list[tuple[str, ...]] = []
        columns = (
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=self.console)
        self._all = self._progress.add_task("rounds", total=rounds)
        self._round = self._progress.add_task("this one", total=goal)
        self._live = Live(
            get_renderable=self._render,
            console=self.console,
            refresh_per_second=8,
            transient=not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        """Start to draw, if there is a terminal to draw on."""
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop drawing; the table stays."""
        self._live.stop()

    @hookimpl
    def fcp_event(self, event: Event) -> None:
        """Count one event."""
        self.server_seconds = thread_time()
        with self._lock:
            for counts in (self._counts, self.totals):
                if isinstance(event, CheckedIn):
                    counts.seen += 1
                elif isinstance(event, Assigned):
                    counts.assigned += 1
                elif isinstance(event, Contributed):
                    counts.contributed += 1
                elif isinstance(event, Dropped):
                    counts.dropped += 1
            done = self._counts.contributed
        self._progress.update(self._round, completed=done)

    def skip(self, rounds: int) -> None:
        """Say that the first rounds were done by an earlier run."""
        self._progress.update(self._all, completed=rounds)

    @contextmanager
    def round(self, number: int) -> Iterator[dict[str, float]]:
        """Show one round; put its figures into the dictionary that comes with it."""
        with self._lock:
            self._counts = Counts()
        self._progress.reset(self._round)
        figures: dict[str, float] = {}
        yield figures
        with self._lock:
            counts = self._counts
        row = (
            str(number),
            *(str(n) for n in (counts.seen, counts.assigned, counts.contributed, counts.dropped)),
            *(f"{value:.3f}" for value in figures.values()),
        )
        self._rows.append(row)
        self._progress.advance(self._all)
        if not self.console.is_terminal:
            words = ("round", "seen", "assigned", "contributed", "dropped", *figures)
            line = "  ".join(f"{word} {cell}" for word, cell in zip(words, row, strict=True))
            self.console.print(line, highlight=False, soft_wrap=True)
        self._heads = tuple(figures)

    _heads: tuple[str, ...] = ()

    def _render(self) -> RenderableType:
        table = Table(box=None)
        for head in ("round", "seen", "assigned", "contributed", "dropped", *self._heads):
            table.add_column(head, justify="right")
        for row in list(self._rows):
            table.add_row(*row)
        return Group(table, self._progress, self.status)
