"""The commands: a link to log in, the dashboard in the terminal, and the report of a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcp_core.commands.tasks import admin_options, connect, connected
from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError

if TYPE_CHECKING:
    from fcp_core.admin.client import AdminClient


@click.command()
@admin_options
@click.option("--open", "opened", is_flag=True, help="Open it in a browser.")
@click.pass_obj
def dashboard(invocation: Any, /, opened: bool, **given: Any) -> None:
    """Print a link that logs a browser in to the dashboard of a server, once."""
    import msgspec

    with connected(lambda: connect(invocation, **given)) as client:
        found = msgspec.json.decode(_ask(client, "dashboard/link", "POST"))
        url = client.url + found["path"]
    click.echo(url)
    if opened:
        click.launch(url)


@click.command()
@admin_options
@click.option("--once", is_flag=True, help="Print it once, and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2),
    default=2.0,
    show_default=True,
    help="Seconds from one look to the next.",
)
@click.pass_obj
def top(invocation: Any, /, once: bool, interval: float, **given: Any) -> None:
    """Show what the devices and tasks of a server do, live."""
    from fcp_dashboard.terminal import run

    with connected(lambda: connect(invocation, **given)) as client:
        run(lambda: _ask(client, "dashboard/snapshot.json"), once=once, interval=interval)


@click.command("tasks-report")
@click.argument("task_id")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The HTML file.",
)
@click.pass_obj
def tasks_report(connect: Any, task_id: str, output: Path) -> None:
    """Write the report of a task into one HTML file that needs nothing else."""
    from urllib.parse import quote

    from fcp_core.commands.output import write_file

    with connected(connect) as client:
        path = f"dashboard/tasks/{quote(task_id, safe='')}/report.html"
        write_file(output, _ask(client, path))


def _ask(client: AdminClient, path: str, verb: str = "GET") -> bytes:
    """Ask the dashboard.

    :raises UsageError: if the server has none.
    :raises StatusError: what it says.
    """
    try:
        return client.page(path, verb)
    except StatusError as error:
        if error.code is Code.NOT_FOUND and "HTTP status" in error.message:
            raise UsageError(
                f"{client.url} has no dashboard; 'fcp serve --dashboard' has one."
            ) from None
        raise


COMMANDS: list[click.Command] = [dashboard, top, tasks_report]
