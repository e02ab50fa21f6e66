"""``fcp top``: the overview in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.text import escaped
from fcp_dashboard import formats
from fcp_dashboard.facts import STEPS
from fcp_dashboard.snapshot import Snapshot
from fcp_dashboard.views.overview import busiest, expected_end

#: How many tasks and populations are shown if the terminal does not say how high it is.
_ROWS, _POPULATIONS = 30, 25
#: From so many characters on there is room for the population and a bar of each task.
_WIDE = 110
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
        console.print(screen(snapshot, console.width))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        trouble = ""
        while True:
            live.update(screen(snapshot, console.width, console.height, trouble), refresh=True)
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


def screen(
    snapshot: Snapshot, width: int, height: int | None = None, trouble: str = ""
) -> RenderableType:
    """Return what is on the screen.

    :param width: of the terminal in characters.
    :param height: None: as much as there is need for.
    :param trouble: why it is an old picture.
    """
    parts: list[RenderableType] = [_head(snapshot)]
    if trouble or snapshot.problem:
        parts.append(Text(escaped(trouble or snapshot.problem), style="red"))
    most = _POPULATIONS if height is None else max(3, height // 3)
    populations = min(most, len(snapshot.populations))
    # A task has its line, and two for what it waits for.
    rows = _ROWS if height is None else max(3, (height - 5 - populations) // 3)
    wide = width >= _WIDE
    return Group(*parts, _populations(snapshot, most, wide), *_tasks(snapshot, rows, wide))


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


_NUMBERS = frozenset(
    {"check-ins/s", "devices", "waiting", "at work", "missing", "last", "contributed", "dropped"}
    | {"end"}
)


def _table(*columns: tuple[str, int], header: bool = True) -> Table:
    """Return a table.

    :param columns: labels and widths; 0: its part of what is left. Numbers are on the right.
    """
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim", show_header=header)
    for label, width in columns:
        side: Literal["left", "right"] = "right" if label in _NUMBERS else "left"
        given: dict[str, Any] = {"width": width} if width else {"ratio": 1}
        table.add_column(label, justify=side, no_wrap=True, overflow="ellipsis", **given)
    return table


def _populations(snapshot: Snapshot, most: int, wide: bool) -> Table:
    table = _table(
        ("population", 0),
        *([("ten minutes", STEPS // 3)] if wide else []),
        ("check-ins/s", 11),
        *([("devices", 11)] if wide else []),
        ("waiting", 7),
        ("at work", 7),
        ("missing", 9),
        ("last", 9),
    )
    seen = snapshot.populations_seen()
    for each in busiest(snapshot.populations, most):
        known = seen.get(each.name)
        last = each.last_check_in
        course = _course(known.check_ins if known is not None else [0] * STEPS)
        table.add_row(
            Text(each.name),
            *([Text(course, style="green")] if wide else []),
            formats.rate(each.check_in_rate),
            *([formats.number(each.size)] if wide else []),
            formats.number(each.waiting),
            formats.number(each.at_work),
            formats.number(each.missing),
            formats.DASH if last is None else formats.seconds(max(0.0, snapshot.at - last)),
        )
    if len(snapshot.populations) > most:
        table.add_row(Text(f"and {len(snapshot.populations) - most} more", style="dim"))
    return table


def _tasks(snapshot: Snapshot, rows: int, wide: bool) -> list[RenderableType]:
    """Return the tasks, each with what it waits for below: a column is too narrow for it."""
    columns = (
        ("task", 0),
        *([("population", 0)] if wide else []),
        ("state", 9),
        ("contributed", 15),
        *([("", 12)] if wide else []),
        ("at work", 7),
        ("dropped", 7),
        ("end", 10),
    )
    table = _table(*columns)
    parts: list[RenderableType] = [table]
    seen = snapshot.tasks_seen()
    tasks = sorted(snapshot.tasks, key=lambda task: (task.finished is not None, -task.created))
    for task in tasks[:rows]:
        end = expected_end(task, seen.get(task.task_id), snapshot.at)
        why = task.problem or task.waits_for
        if task.error is not None:
            why = f"{task.error.status}: {task.error.message}"
        table.add_row(
            Text(task.name),
            *([Text(task.population)] if wide else []),
            Text(task.state, style=_COLOURS[task.state]),
            f"{formats.number(task.contributed)}/{formats.number(task.goal_count)}",
            *([ProgressBar(task.goal_count, task.contributed, width=12)] if wide else []),
            formats.number(task.pending),
            formats.number(task.dropped),
            formats.DASH if end is None else formats.seconds(end - snapshot.at),
        )
        if why:
            parts.append(Padding(Text(escaped(why), style="dim"), (0, 0, 0, 2)))
        table = _table(*columns, header=False)
        parts.append(table)
    if len(tasks) > rows:
        table.add_row(Text(f"and {len(tasks) - rows} more", style="dim"))
    return parts


def _course(values: list[int]) -> str:
    """Return a course as a row of small columns, three figures each."""
    sums = [sum(values[place : place + 3]) for place in range(0, len(values), 3)]
    top = max([*sums, 1])
    return "".join(_TICKS[-(-value * (len(_TICKS) - 1) // top)] for value in sums)
