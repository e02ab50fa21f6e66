"""``fcp history``: what ran on a device."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def history(file: Path) -> None:
    """Show what ran on a device: FILE is the one that 'fcp client --history' has."""
    from contextlib import closing

    from fcp_core.client.history import History
    from fcp_core.commands.output import make_table, print_tables
    from fcp_core.commands.tasks import local_time

    with closing(History.existing(file)) as kept:
        runs = kept.runs()
    table = make_table("time", "population", "task", "outcome", "collections", "what it said")
    for run in runs:
        table.add_row(
            local_time(run.time),
            run.population,
            run.task_name,
            run.outcome,
            ", ".join(run.collections),
            run.statement,
        )
    print_tables(table)
