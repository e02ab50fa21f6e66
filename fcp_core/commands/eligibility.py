"""``fcp eligibility``: the eligibility tasks of a server's populations, on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcp_core.commands.output import make_table, print_tables, write_file
from fcp_core.commands.tasks import FILE, admin_group, connected, local_time

if TYPE_CHECKING:
    from fcp_core.rounds.eligibility import PolicyChoice

eligibility = admin_group(
    "eligibility", "Say how the devices of a population find out what they are eligible for."
)


@eligibility.command("set")
@click.argument("file", type=FILE)
@click.pass_obj
def set_(connect: Any, file: Path) -> None:
    """Give a population the eligibility task that FILE describes, in place of the one it has."""
    from fcp_core.tasks.eligibilityfile import read_eligibility_file

    population, task = read_eligibility_file(file)
    with connected(connect) as client:
        client.set_eligibility_task(population, task)


@eligibility.command("list")
@click.pass_obj
def list_(connect: Any) -> None:
    """List the populations that have an eligibility task."""
    with connected(connect) as client:
        found = client.eligibility_tasks().eligibility_tasks
    table = make_table("population", "plan", "for tasks", "policies", "since")
    for task in found:
        table.add_row(
            task.population,
            f"{task.plan_size} bytes" if task.plan_size else "",
            _names(task.task_names) if task.plan_size else "",
            ", ".join(policy.policy for policy in task.policies),
            local_time(task.created),
        )
    print_tables(table)


@eligibility.command("show")
@click.argument("population")
@click.option("--plan", type=FILE, help="A file for the plan.")
@click.option("--checkpoint", type=FILE, help="A file for the plan's checkpoint.")
@click.pass_obj
def show_(connect: Any, population: str, plan: Path | None, checkpoint: Path | None) -> None:
    """Show the eligibility task of POPULATION; status 1 if it has none."""
    from fcp_core.admin.messages import EligibilitySummary

    with connected(connect) as client:
        task = client.eligibility_task(population)
    for path, data in ((plan, task.plan), (checkpoint, task.checkpoint)):
        if path is not None:
            write_file(path, data)
    if task.plan:
        covers = f", covers {', '.join(task.covers)}" if task.covers else ""
        click.echo(f"a plan of {len(task.plan)} bytes for {_names(task.task_names)}{covers}")
    for policy in EligibilitySummary.of(population, task, 0.0).policies:
        click.echo(_line(policy))


@eligibility.command()
@click.argument("population")
@click.pass_obj
def remove(connect: Any, population: str) -> None:
    """Take the eligibility task of POPULATION away; that it has none is no error."""
    with connected(connect) as client:
        client.remove_eligibility_task(population)


def _line(policy: PolicyChoice) -> str:
    options = "".join(f", {name} = {value}" for name, value in policy.options.items())
    return f"{policy.policy} for {_names(policy.task_names)}{options}"


def _names(names: Any) -> str:
    return "all tasks" if names is None else ", ".join(names) or "no task"
