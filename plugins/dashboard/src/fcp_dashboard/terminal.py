"""``fcp top``: the overview in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Literal

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fcp_core.protocol.status import Code, StatusError
from fcp_dashboard import formats
from fcp_dashboard.facts import STEPS
from fcp_dashboard.snapshot import Snapshot
from fcp_dashboard.views.overview import expected_end

#: How many tasks are shown if the terminal does not say how high it is.
_ROWS = 30
_TICKS = " ▁▂▃▄▅▆▇█"
_COLOURS = {
    "open": "cyan",
    "closing": "yellow",
    "completed": "green",
    "failed": "red",
    "cancelled": "dim",
}


def run(look: Callable[[], bytes], *, once: bool, interval: float) -> None:
    """Show the server until it is interrupted; once, if nobody watches a terminal.

    :param look: returns a snapshot as JSON.
    :param interval: seconds between two looks.
    """
    console = Console(highlight=False)
    snapshot = _read(look())
    if once or not sys.stdout.isatty():
        console.print(screen(snapshot, _ROWS))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        trouble = ""
        while True:
            rows = max(3, console.height - 10 - len(snapshot.populations))
            live.update(screen(snapshot, rows, trouble), refresh=True)
            try:
                time.sleep(interval)
                snapshot, trouble = _read(look()), ""
            except KeyboardInterrupt:
                return
            except StatusError as error:
                if error.code is not Code.UNAVAILABLE:
                    raise
                trouble = error.message


def _read(data: bytes) -> Snapshot:
    return msgspec.json.decode(data, type=Snapshot)


def screen(snapshot: Snapshot, rows: int, trouble: str = "") -> RenderableType:
    """Return what is on the screen.

    :param rows: how many tasks there is room for.
    :param trouble: why it is an old picture.
    """
    parts: list[RenderableType] = [_head(snapshot)]
    if trouble or snapshot.problem:
        parts.append(Text(trouble or snapshot.problem, style="red"))
    return Group(*parts, _populations(snapshot), _tasks(snapshot, rows))


def _head(snapshot: Snapshot) -> Text:
    rate = sum(each.check_in_rate for each in snapshot.populations)
    text = Text("fcp ", style="bold")
    text.append(formats.day(snapshot.at), style="dim")
    for label, value in (
        ("check-ins/s", formats.rate(rate)),
        ("waiting", formats.number(sum(each.waiting for each in snapshot.populations))),
        ("at work", formats.number(sum(each.at_work for each in snapshot.populations))),
        ("members", formats.number(len(snapshot.members))),
    ):
        text.append(f"   {label} ", style="dim")
        text.append(value, style="bold")
    return text


def _table(*columns: tuple[str, Literal["left", "right"]]) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    for label, justify in columns:
        table.add_column(label, justify=justify, no_wrap=True, overflow="ellipsis")
    return table


def _populations(snapshot: Snapshot) -> Table:
    table = _table(
        ("population", "left"),
        ("ten minutes", "left"),
        ("check-ins/s", "right"),
        ("devices", "right"),
        ("waiting", "right"),
        ("at work", "right"),
        ("missing", "right"),
        ("last", "right"),
    )
    seen = snapshot.populations_seen()
    for each in snapshot.populations:
        known = seen.get(each.name)
        last = each.last_check_in
        table.add_row(
            Text(each.name),
            Text(_course(known.check_ins if known is not None else [0] * STEPS), style="green"),
            formats.rate(each.check_in_rate),
            formats.number(each.size),
            formats.number(each.waiting),
            formats.number(each.at_work),
            formats.number(each.missing),
            formats.DASH if last is None else formats.seconds(max(0.0, snapshot.at - last)),
        )
    return table


def _tasks(snapshot: Snapshot, rows: int) -> Table:
    table = _table(
        ("task", "left"),
        ("population", "left"),
        ("state", "left"),
        ("contributed", "right"),
        ("", "left"),
        ("at work", "right"),
        ("dropped", "right"),
        ("end", "right"),
        ("waits for", "left"),
    )
    seen = snapshot.tasks_seen()
    tasks = sorted(snapshot.tasks, key=lambda task: (task.finished is not None, -task.created))
    for task in tasks[:rows]:
        end = expected_end(task, seen.get(task.task_id), snapshot.at)
        why = task.problem or task.waits_for
        if task.error is not None:
            why = f"{task.error.status}: {task.error.message}"
        table.add_row(
            Text(task.name),
            Text(task.population),
            Text(task.state, style=_COLOURS[task.state]),
            f"{formats.number(task.contributed)}/{formats.number(task.goal_count)}",
            ProgressBar(task.goal_count, task.contributed, width=12),
            formats.number(task.pending),
            formats.number(task.dropped),
            formats.DASH if end is None else formats.seconds(end - snapshot.at),
            Text(why, overflow="ellipsis", no_wrap=True),
        )
    if len(tasks) > rows:
        table.add_row(Text(f"and {len(tasks) - rows} more", style="dim"))
    return table


def _course(values: list[int]) -> str:
    """Return a course as a row of small columns, three figures each."""
    sums = [sum(values[place : place + 3]) for place in range(0, len(values), 3)]
    top = max([*sums, 1])
    return "".join(_TICKS[-(-value * (len(_TICKS) - 1) // top)] for value in sums)
