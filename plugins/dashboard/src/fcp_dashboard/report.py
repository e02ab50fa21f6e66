"""The report of a task: one HTML file that needs nothing else, to be kept or sent to somebody."""

from __future__ import annotations

from typing import Any

import msgspec

from fcp_core.admin.messages import Task
from fcp_dashboard import formats, marks
from fcp_dashboard.marks import quoted
from fcp_dashboard.render import generate, static
from fcp_dashboard.snapshot import Snapshot
from fcp_dashboard.views.results import result_page
from fcp_dashboard.views.task import task_page

#: The most rows of a result that are in a report, and the most characters of a cell.
ROWS, CELL = 100, 200


def report(snapshot: Snapshot, task: Task, data: bytes | None) -> bytes:
    """Return the report of a task.

    :param data: its result, a checkpoint; None: there is none.
    """
    sections: list[Any] = []
    if data is not None:
        for section in result_page(task, data).sections:
            rows = [[_cut(cell) for cell in row] for row in section.rows[:ROWS]]
            sections.append(_Section(section, rows))
    facts = msgspec.json.format(msgspec.json.encode(task), indent=1).decode()
    return generate(
        "report.html",
        style=static("style.css").decode(),
        sections=sections,
        json=facts,
        made=snapshot.at,
        f=formats,
        marks=marks,
        url=quoted,
        **task_page(snapshot, task),
    )


class _Section:
    """A section with the rows that there is room for."""

    def __init__(self, section: Any, rows: list[list[Any]]) -> None:
        self.heading, self.caption = section.heading, section.caption
        self.columns, self.rows, self.chart = section.columns, rows, section.chart
        self.more = len(section.rows) > len(rows)


def _cut(cell: Any) -> Any:
    return f"{cell[: CELL - 1]}…" if isinstance(cell, str) and len(cell) > CELL else cell
