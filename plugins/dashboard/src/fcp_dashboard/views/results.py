"""Results: the table or the tensors of one task, and the rounds of a program."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from itertools import islice
from typing import Any
from urllib.parse import quote

import numpy as np

from fcp_core.admin.messages import Task
from fcp_core.errors import UsageError
from fcp_core.lab.charts import Lines, page
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.status import StatusError
from fcp_core.tasks.plots import bar_chart
from fcp_core.tasks.sql_query import SqlQuery
from fcp_core.tasks.tables import Table
from fcp_dashboard import formats
from fcp_dashboard.facts import TaskSeen
from fcp_dashboard.snapshot import Snapshot
from fcp_dashboard.views.overview import page_of
from fcp_dashboard.views.tables import Cell, Plain, Section

#: How many rows of a result, tensors of a checkpoint, rounds of a program, and programs are shown.
ROWS, TENSORS, ROUNDS, PROGRAMS = 200, 200, 50, 100
#: How many lines a chart has.
_LINES = 6


def result_page(task: Task, data: bytes) -> Plain:
    """Return the page of a task's result; it takes a while for a large one.

    :param data: the checkpoint.
    """
    downloads = [("The checkpoint", "result.ckpt", f"{task.task_id}.ckpt")]
    try:
        table = SqlQuery.shown(task.query, data, task.release)
    except StatusError:
        sections = [_tensors(data)]
    else:
        sections = [_table(task, table)]
        downloads.insert(0, ("The table as CSV", "result.csv", f"{task.task_id}.csv"))
    return Plain(
        f"Result of {task.name}",
        sections,
        crumbs=[("Back to the task", f"../{quote(task.task_id, safe='')}")],
        downloads=downloads,
        cards=[
            ("Contributions", formats.number(task.contributed), ""),
            ("Size", formats.size(len(data)), ""),
        ],
    )


def _table(task: Task, table: Table) -> Section:
    chart = ""
    try:
        if table.columns and len(table.columns[0].values) > 1:
            chart = bar_chart(table, task.name)
    except UsageError:
        pass  # there is nothing but text
    rows = [[_value(value) for value in row] for row in islice(table.rows(), ROWS)]
    total = len(table.columns[0].values) if table.columns else 0
    more = f"; the first {ROWS} are shown" if total > ROWS else ""
    return Section(
        "Table",
        f"{formats.of(total, 'row')}{more}.",
        [(column.name, "long" if column.is_text else "n") for column in table.columns],
        rows,
        "It has no rows.",
        chart=chart,
    )


def _tensors(data: bytes) -> Section:
    rows = []
    found = open_checkpoint(data)
    for name in list(found)[:TENSORS]:
        tensor = found[name]
        numbers = tensor.dtype.kind in "biuf" and tensor.size
        low, mean, high = (
            (float(np.min(tensor)), float(np.mean(tensor)), float(np.max(tensor)))
            if numbers
            else (math.nan,) * 3
        )
        rows.append(
            [
                name,
                tensor.dtype.name if tensor.dtype.kind != "O" else "string",
                " x ".join(map(str, tensor.shape)) or "one",
                formats.number(tensor.size),
                *(
                    formats.figure(value) if numbers else formats.DASH
                    for value in (low, mean, high)
                ),
            ]
        )
    return Section(
        "Tensors",
        f"{formats.of(len(found), 'tensor')}; it is no table.",
        [
            ("Tensor", "mono long"),
            ("Type", ""),
            ("Shape", "nowrap"),
            ("Values", "n"),
            ("Least", "n"),
            ("Mean", "n"),
            ("Most", "n"),
        ],
        rows,
        "It has no tensors.",
    )


def _value(value: Any) -> str:
    return formats.figure(value) if isinstance(value, float) else str(value)


def scalars(data: bytes) -> dict[str, float]:
    """Return the single numbers of a result, by name: metrics, and what is like them."""
    found = {}
    for name, tensor in open_checkpoint(data).items():
        if tensor.dtype.kind in "biuf" and tensor.size == 1:
            value = float(tensor.reshape(-1)[0])
            if math.isfinite(value):
                found[name] = value
    return found


def programs(snapshot: Snapshot, query: Mapping[str, str]) -> Plain:
    """Return a page of the names of tasks: what a program calls again and again is one.

    :param query: ``page``.
    """
    groups: dict[tuple[str, str], list[Task]] = defaultdict(list)
    for task in snapshot.tasks:
        groups[task.population, task.name].append(task)
    rows: list[list[Cell]] = []
    latest = sorted(groups.items(), key=lambda item: -max(task.created for task in item[1]))
    pages = max(1, math.ceil(len(latest) / PROGRAMS))
    number = min(page_of(query), pages)
    for (population, name), tasks in latest[(number - 1) * PROGRAMS : number * PROGRAMS]:
        ended = [task for task in tasks if task.finished is not None]
        done = [task for task in ended if task.state == "completed"]
        times = [task.finished - task.created for task in done if task.finished is not None]
        last = max(tasks, key=lambda task: task.created)
        address = f"program?population={quote(population, safe='')}&name={quote(name, safe='')}"
        rows.append(
            [
                (name, address),
                population,
                formats.number(len(tasks)),
                formats.share(len(done), len(ended)),
                formats.seconds(formats.quantile(times, 0.5)),
                f'<span class="state {last.state}">{last.state}</span>'.encode(),
                formats.day(last.created),
            ]
        )
    return Plain(
        "Programs",
        [
            Section(
                "",
                "Tasks of one name are the rounds of a program; the latest first.",
                [
                    ("Name", "name"),
                    ("Population", "name"),
                    ("Rounds", "n"),
                    ("With a result", "n"),
                    ("Median time", "n"),
                    ("Last one", ""),
                    ("Began", "nowrap"),
                ],
                rows,
                "No task was submitted yet.",
            )
        ],
        lead=f"Page {number} of {pages}, of {formats.number(len(latest))} names."
        if pages > 1
        else "",
        crumbs=[
            (label, f"programs?page={other}")
            for label, other in (("Later ones", number - 1), ("Earlier ones", number + 1))
            if 1 <= other <= pages
        ],
    )


def rounds_of(snapshot: Snapshot, population: str, name: str) -> list[Task]:
    """Return the last tasks of a name, the oldest first."""
    found = [t for t in snapshot.tasks if (t.population, t.name) == (population, name)]
    return sorted(found, key=lambda task: task.created)[-ROUNDS:]


def program(snapshot: Snapshot, rounds: list[Task], metrics: dict[str, dict[str, float]]) -> Plain:
    """Return the page of a program: its rounds, and its metrics by round.

    :param rounds: as :func:`rounds_of` returns them, one at least.
    :param metrics: of each round whose result was read, its single numbers, by the task's id.
    """
    seen = snapshot.tasks_seen()
    rows: list[list[Cell]] = []
    for number, task in reversed(list(enumerate(rounds, 1))):
        known = seen.get(task.task_id) or TaskSeen(task.task_id, task.population, task.name)
        took = None if task.finished is None else task.finished - task.created
        rows.append(
            [
                (str(number), f"tasks/{quote(task.task_id, safe='')}"),
                f'<span class="state {task.state}">{task.state}</span>'.encode(),
                f"{formats.number(task.contributed)} of {formats.number(task.goal_count)}",
                formats.number(task.assigned),
                formats.share(task.dropped, task.assigned),
                formats.seconds(took),
                formats.size(known.bytes) if known.bytes else formats.DASH,
                formats.day(task.created),
            ]
        )
    sections = [
        Section(
            "Rounds",
            "The latest first.",
            [
                ("Round", "n"),
                ("State", ""),
                ("Contributed", "n"),
                ("Assigned", "n"),
                ("Dropped", "n"),
                ("Took", "n"),
                ("Received", "n"),
                ("Began", "nowrap"),
            ],
            rows,
            chart=_course(rounds),
        )
    ]
    names = sorted({name for values in metrics.values() for name in values})
    if names:
        sections.append(_metrics(rounds, metrics, names))
    return Plain(
        rounds[0].name, sections, crumbs=[(f"Population {rounds[0].population}", "programs")]
    )


def _course(rounds: list[Task]) -> str:
    """Draw how long rounds took and how many devices they lost."""
    times = [
        (number, task.finished - task.created)
        for number, task in enumerate(rounds, 1)
        if task.state == "completed" and task.finished is not None
    ]
    lost = [
        (number, task.dropped / task.assigned)
        for number, task in enumerate(rounds, 1)
        if task.assigned
    ]
    if len(times) < 2:
        return ""
    last = float(len(rounds))
    return page(
        "By round",
        [],
        [
            Lines("Time of a round", "round", "seconds", [("time", _floats(times))], last),
            Lines("Devices that dropped out", "round", "share", [("lost", _floats(lost))], last),
        ],
    )


def _metrics(rounds: list[Task], metrics: dict[str, dict[str, float]], names: list[str]) -> Section:
    shown = names[:_LINES]
    panels = []
    for name in shown:
        points = [
            (number, metrics[task.task_id][name])
            for number, task in enumerate(rounds, 1)
            if name in metrics.get(task.task_id, {})
        ]
        if len(points) > 1:
            panels.append(Lines(name, "round", "", [(name, _floats(points))], float(len(rounds))))
    rows = [
        [
            str(number),
            *(
                formats.figure(metrics[task.task_id][name])
                if name in metrics.get(task.task_id, {})
                else formats.DASH
                for name in shown
            ),
        ]
        for number, task in reversed(list(enumerate(rounds, 1)))
    ]
    return Section(
        "Single numbers of the results",
        "Metrics of a program, and what else is one number a round.",
        [("Round", "n"), *((name, "n") for name in shown)],
        rows,
        chart=page("By round", [], panels) if panels else "",
    )


def _floats(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points]
