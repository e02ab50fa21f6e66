"""``fcp tasks schedule``, ``schedules`` and ``unschedule``: tasks that the server repeats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcp_core.commands.output import make_table, print_tables
from fcp_core.commands.tasks import FILE, connected, local_time, read_task
from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from fcp_core.admin.schedules import ScheduleSummary


@click.command()
@click.argument("file", type=FILE)
@click.pass_obj
def schedule(connect: Any, file: Path) -> None:
    """Have the server offer the task that FILE describes now, and once in each of its periods.

    The server keeps the schedule: it goes on when it is restarted, and misses what was due while
    it was down. A second one of the same name replaces the first.
    """
    spec, every = read_task(file)
    if every is None:
        raise UsageError(f"{file} has no [schedule]; write one: every = '1d', for instance.")
    with connected(connect) as client:
        made = client.schedule(spec, every)
    click.echo(made.task_id)
    click.echo(
        f"{made.name} of {made.population} again at {local_time(made.next)}{_forecast(made)}",
        err=True,
    )


@click.command()
@click.pass_obj
def schedules(connect: Any) -> None:
    """List the tasks that the server offers again and again."""
    with connected(connect) as client:
        found = client.schedules().schedules
    table = make_table("population", "name", "every", "next", "last", "task", "left", "problem")
    for one in found:
        table.add_row(
            one.population,
            one.name,
            f"{one.every / 86400:.6g} d",
            local_time(one.next),
            "" if one.last is None else local_time(one.last),
            one.task_id,
            "" if one.repetitions is None else str(one.repetitions),
            one.problem,
        )
    print_tables(table)


@click.command()
@click.argument("population")
@click.argument("name")
@click.pass_obj
def unschedule(connect: Any, population: str, name: str) -> None:
    """Have the task NAME of POPULATION offered no more; what was offered goes on."""
    with connected(connect) as client:
        client.unschedule(population, name)


def _forecast(made: ScheduleSummary) -> str:
    if made.repetitions is None:
        return ""
    return f"; the budget is for {made.repetitions} more"
