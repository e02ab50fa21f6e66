"""What is said of a task while it goes on, and when it has ended."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from fcp_core.commands.output import one_line, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fcp_core.admin.client import AdminClient
    from fcp_core.admin.messages import Task


def show_course(client: AdminClient, task_id: str, *, err: bool = False) -> None:
    """Show a task until it has ended.

    :param err: show it beside the output.
    :raises StatusError: if it ended without a result.
    """
    from rich.console import Console
    from rich.live import Live

    if (sys.stderr if err else sys.stdout).isatty():
        console = Console(highlight=False, stderr=err)
        with Live(console=console, auto_refresh=False) as live:
            for task in client.watch(task_id, 0.5):
                live.update(_progress(task), refresh=True)
    else:
        seen = ""
        for task in client.watch(task_id):
            why = "; ".join([summary(task), *_more(task)])
            # How long nobody came is no news by itself.
            news = why.replace(task.waits_for, re.sub(r"\d+", "", task.waits_for))
            if news != seen:
                say(why, err=err)
            seen = news
    task.check()


def _progress(task: Task) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    bar = ProgressBar(total=task.goal_count, completed=task.contributed, width=60)
    return Group(
        Text(one_line(summary(task))),
        bar,
        *(Text(f"  {one_line(line)}") for line in _more(task)),
    )


def _more(task: Task) -> list[str]:
    """Return what is to be said of a task after its summary."""
    first = [*_waits(task), *task.notes]
    said = "\n".join([summary(task), *first])
    return [*first, *_reasons(task, said), *_noise(task)]


def _noise(task: Task) -> list[str]:
    """Return what noise is in a result, a line for each output."""
    return [
        f"{noise['output']} has {noise['mechanism']} noise of standard deviation "
        f"{noise['stddev']:.4g}"
        for noise in (task.release or {}).get("noise", ())
    ]


def _waits(task: Task) -> list[str]:
    waits = [task.waits_for] if task.waits_for else []
    if task.durability == "round" and task.state in ("open", "closing"):
        waits.append("durability round: a restart of the server loses what was contributed")
    return waits


def _reasons(task: Task, said: str) -> list[str]:
    """Return why devices did not contribute, each with how many, unless that was said."""
    late = "assignment_timeout DEADLINE_EXCEEDED"
    reasons = [
        f"{count} x {'begun, and not done at the assignment timeout' if reason == late else reason}"
        for reason, count in task.reasons.items()
        if reason != "silent" and not re.search(rf"\b{count} x {re.escape(reason)}", said)
    ]
    versions = ", ".join(f"{count} x {version}" for version, count in task.silent.items())
    if versions and f"silent (client versions: {versions})" not in said:
        silent = sum(task.silent.values())
        reasons.append(f"{silent} x silent since they were assigned (client versions: {versions})")
    return reasons


def summary(task: Task) -> str:
    """Return a line about a task."""
    # Counted apart, as in the message of a task that failed.
    silent = task.reasons.get("silent", 0)
    line = (
        f"{task.name} {task.state}: {task.contributed} of {task.goal_count} contributed, "
        f"{task.pending} at work, {task.dropped - silent} dropped, "
        + f"{silent} silent, " * bool(silent)
        + f"{task.surplus} surplus"
    )
    if task.problem:
        line += f" (stuck: {task.problem})"
    return line if task.error is None else f"{line} ({task.error.status}: {task.error.message})"
