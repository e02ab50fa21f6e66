"""``fcp tasks repeat``: a task in each period of its schedule."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcp_core.commands.course import summary
from fcp_core.commands.output import say
from fcp_core.commands.tasks import FILE, connected, read_task
from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from fcp_core.admin.client import AdminClient
    from fcp_core.rounds.specification import TaskSpec
    from fcp_core.tasks.schedule import Schedule


@click.command()
@click.argument("file", type=FILE)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    help="Where the results go, a CSV file for each period [default: here].",
)
@click.option("--times", type=click.IntRange(1), help="For so many periods [default: for ever].")
@click.pass_obj
def repeat(connect: Any, file: Path, folder: Path, times: int | None) -> None:
    """Offer the task that FILE describes in each period of its schedule, and fetch its results.

    It may be stopped and started at any time: in each period the server has the task once. A task
    without a result (its deadline, for instance) does not end it; one that the server refuses,
    because the privacy budget is used up for instance, does.
    """
    from fcp_core.protocol.status import StatusError
    from fcp_core.tasks.schedule import stamp

    spec, schedule = read_task(file)
    if schedule is None:
        raise UsageError(f"{file} has no [schedule]; write one: every = '1d', for instance.")
    click.echo(_forecast(spec, schedule))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}.") from None
    with connected(connect) as client:
        for number in itertools.count(1):
            begin = schedule.begin(time.time())
            task_id = client.submit(spec, key=schedule.key(_names(spec), begin)).task_id
            click.echo(f"{stamp(begin)}: task {task_id}")
            path = folder / f"{spec.name.replace('/', '-')}-{stamp(begin)}.csv"
            try:
                say(_fetch(client, task_id, path))
            except StatusError as error:
                say(f"{stamp(begin)}: {error.code.name}: {error.message}", err=True)
            if number == times:
                return
            while (now := time.time()) < begin + schedule.every:
                # A clock may be set meanwhile.
                time.sleep(min(60.0, begin + schedule.every - now))


def _fetch(client: AdminClient, task_id: str, path: Path) -> str:
    """Wait for a task and write its result; say so.

    :raises StatusError: if it has none.
    """
    from fcp_core.tasks.sql_query import SqlQuery

    task = client.wait(task_id)
    task.check()
    SqlQuery.answer(task.query, client.result(task_id), task.release).write(path)
    return f"{summary(task)}; {path}"


def _names(spec: TaskSpec) -> str:
    return f"{spec.population} {spec.name}"


def _forecast(spec: TaskSpec, schedule: Schedule) -> str:
    """Say what repeating a task comes to."""
    from fcp_core.tasks.sql_query import SqlQuery

    days = schedule.every / 86400
    words = f"{spec.name} every {days:.6g} days"
    query = SqlQuery.from_text(spec.query) if spec.query else None
    if query is None or query.epsilon is None:
        return words
    return (
        f"{words}, each for epsilon {query.epsilon:g} at delta {query.delta:g}: at most epsilon "
        f"{query.epsilon * 7 / days:.6g} a week. For how many more the budget is, says "
        f"'fcp privacy show {spec.population}' on the server."
    )
