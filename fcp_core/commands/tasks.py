"""``fcp tasks`` and ``fcp openapi``: the admin API on the command line."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from fcp_core.commands.course import show_course, summary
from fcp_core.commands.output import (
    make_table,
    one_line,
    print_data,
    print_tables,
    say,
    write_file,
)
from fcp_core.errors import UsageError, reason

if TYPE_CHECKING:
    from fcp_core.admin.client import AdminClient
    from fcp_core.rounds.specification import TaskSpec
    from fcp_core.tasks.schedule import Schedule

F = TypeVar("F", bound=Callable[..., Any])
#: A way to make a client of a server's admin API.
Connect: TypeAlias = "Callable[[], AdminClient]"

#: The options that lead to a server.
_TO_A_SERVER = ("server", "token_file", "ca_file", "client_certfile", "client_keyfile")

_TOKEN = (
    "The token comes from --token-file, or from [fcp:admin] token_file, or from the environment "
    "variable FCP_ADMIN__TOKEN."
)

FILE = click.Path(dir_okay=False, path_type=Path)


class _Group(click.Group):
    """Finds commands that plugins bring for it: ``tasks-report`` is ``fcp tasks report``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*self.commands, *self._more(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None.

        :raises UsageError: if it is one that a distribution of ours would bring.
        """
        from fcp_core.commands.invocation import refuse_uninstalled

        found = self.commands.get(cmd_name) or self._more(ctx).get(cmd_name)
        if found is None:
            refuse_uninstalled(f"{self.name}-{cmd_name}")
        return found

    def _more(self, ctx: click.Context) -> dict[str, click.Command]:
        from fcp_core.commands.invocation import Invocation

        if not isinstance(ctx.obj, Invocation):
            return {}
        begins = f"{self.name}-"
        commands: Mapping[str, click.Command] = ctx.obj.plugin_commands.commands
        return {
            name.removeprefix(begins): command
            for name, command in commands.items()
            if name.startswith(begins)
        }


def admin_group(name: str, text: str) -> click.Group:
    """Return a group of commands that find a way to make a client in ``ctx.obj``.

    :param text: what its help begins with.
    """

    @click.group(name, cls=_Group, help=f"{text}\n\n{_TOKEN}")
    @admin_options
    @click.pass_context
    def group(ctx: click.Context, /, **options: Any) -> None:
        invocation = ctx.obj
        ctx.obj = lambda: connect(invocation, **options)

    return group


def admin_command(name: str, text: str) -> Callable[[Callable[..., None]], click.Command]:
    """Return what makes a command of a function that takes a :data:`Connect` and its options.

    :param text: what its help begins with.
    """

    def made(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        @click.pass_obj
        def run(invocation: Any, /, **options: Any) -> None:
            to_server = {each: options.pop(each) for each in _TO_A_SERVER}
            function(lambda: connect(invocation, **to_server), **options)

        return click.command(name, help=f"{text}\n\n{_TOKEN}")(admin_options(run))

    return made


def admin_options(command: F) -> F:
    """Give a command the options that lead to a server: the arguments of :func:`connect`."""
    for option in reversed(
        (
            click.option("--server", help="The server's address [default: [fcp:admin] url]."),
            click.option("--token-file", type=FILE, help="A file with its admin token."),
            click.option(
                "--ca-file", type=FILE, help="PEM certificates to trust, not the system's."
            ),
            click.option(
                "--client-certfile",
                type=FILE,
                help="A PEM certificate to show [default: [fcp:admin] client_certfile].",
            ),
            click.option("--client-keyfile", type=FILE, help="Its key, if in a file of its own."),
        )
    ):
        command = option(command)
    return command


tasks = admin_group("tasks", "Submit, list, watch and cancel the tasks of a server.")


def connect(
    invocation: Any,
    server: str | None = None,
    token_file: Path | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    client_certfile: Path | None = None,
    client_keyfile: Path | None = None,
) -> AdminClient:
    """Return a client of a server's admin API, as the options and the configuration say.

    What is None is as the configuration says.

    :param client_certfile: a client certificate to show, with its key or without.
    :raises UsageError: if there is neither token nor certificate, or something cannot be read.
    """
    from fcp_core.admin.client import AdminClient

    options = invocation.plugins.config.section("admin")
    path = token_file or (None if options["token"] is not None else options["token_file"])
    token = options["token"] if path is None else _read(path)
    certfile, keyfile = options["client_certfile"], options["client_keyfile"]
    if client_certfile is not None:
        certfile, keyfile = client_certfile, client_keyfile
    if token is None and certfile is None:
        raise UsageError(
            "there is no admin token: give --token-file, [fcp:admin] token_file, or the "
            "environment variable FCP_ADMIN__TOKEN."
        )
    return AdminClient(
        server or options["url"],
        token,
        ca_file=ca_file or options["ca_file"],
        certfile=certfile,
        keyfile=keyfile,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the token file {path} cannot be read: {reason(error)}.") from None


@contextmanager
def connected(connect: Connect) -> Iterator[AdminClient]:
    """Give a client; what the server refuses ends the command with its message, and status 1."""
    from fcp_core.protocol.status import StatusError

    with connect() as client:
        try:
            yield client
        except StatusError as error:
            raise click.ClickException(one_line(f"{error.code.name}: {error.message}")) from error


@tasks.command()
@click.argument("file", type=FILE)
@click.option("--key", help="A second submission with the same key returns the first's task.")
@click.option("--watch", "watched", is_flag=True, help="Then watch it until it has ended.")
@click.pass_obj
def submit(connect: Any, file: Path, key: str | None, watched: bool) -> None:
    """Offer the task that FILE describes, and print its id.

    A task with a schedule is offered once in each of its periods, however often it is submitted.
    """
    spec, schedule = read_task(file)
    if key is None and schedule is not None:
        key = schedule.key(f"{spec.population} {spec.name}", time.time())
    with connected(connect) as client:
        task = client.submit(spec, key=key)
        click.echo(task.task_id)
        if watched:
            show_course(client, task.task_id)


def read_task(file: Path) -> tuple[TaskSpec, Schedule | None]:
    """Read a task file.

    :raises UsageError: naming the file and what is wrong.
    """
    from fcp_core.protocol.status import StatusError
    from fcp_core.tasks.taskfile import read_task_file

    read = read_task_file(file)
    try:
        return read.to_spec(), read.schedule
    except StatusError as error:
        raise UsageError(f"{file}: {error.message}.") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


@tasks.command("list")
@click.option("--population", help="Only those of one population.")
@click.option("--state", type=click.Choice(["open", "closing", "completed", "failed", "cancelled"]))
@click.pass_obj
def list_(connect: Any, population: str | None, state: str | None) -> None:
    """List the tasks, oldest first."""
    with connected(connect) as client:
        found = client.list(population, state)
    names = ("task", "population", "name", "state", "contributed", "created", "error")
    table = make_table(*names)
    for task in found:
        table.add_row(
            task.task_id,
            task.population,
            task.name,
            task.state,
            f"{task.contributed}/{task.goal_count}",
            local_time(task.created),
            "" if task.error is None else _cut(f"{task.error.status}: {task.error.message}"),
        )
    print_tables(table)


@tasks.command()
@click.argument("task_id")
@click.pass_obj
def watch(connect: Any, task_id: str) -> None:
    """Show a task until it has ended; status 1 if it has no result."""
    with connected(connect) as client:
        show_course(client, task_id)


@tasks.command()
@click.argument("task_id")
@click.option("--reason", help="A message for its watchers.")
@click.pass_obj
def cancel(connect: Any, task_id: str, reason: str | None) -> None:
    """End a task without a result; one that has ended stays as it is."""
    with connected(connect) as client:
        say(summary(client.cancel(task_id, reason)))


@tasks.command()
@click.argument("task_id")
@click.pass_obj
def forget(connect: Any, task_id: str) -> None:
    """Delete a task that has ended, with its result."""
    with connected(connect) as client:
        client.forget(task_id)


@tasks.command()
@click.argument("task_id")
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="A file: .csv, .json, .parquet, .svg for a chart, or .ckpt for the checkpoint [default: "
    "CSV is printed].",
)
@click.option("--plot", type=FILE, help="An SVG file for a bar chart.")
@click.option("--column", help="What the chart shows [default: the first column of numbers].")
@click.pass_obj
def result(
    connect: Any, task_id: str, output: Path | None, plot: Path | None, column: str | None
) -> None:
    """Fetch a task's result as a table, a checkpoint or a bar chart."""
    from fcp_core.tasks.plots import bar_chart
    from fcp_core.tasks.sql_query import SqlQuery

    if plot is None and output is not None and output.suffix == ".svg":
        plot, output = output, None
    with connected(connect) as client:
        task = client.get(task_id)
        checkpoint = client.result(task_id)
        if output is not None and output.suffix == ".ckpt":
            write_file(output, checkpoint)
            if plot is None:
                return
        table = SqlQuery.answer(task.query, checkpoint, task.release)
    if plot is not None:
        write_file(plot, bar_chart(table, task.name, column).encode())
    if output is None and plot is None:
        print_data(table.to_csv())
    elif output is not None and output.suffix != ".ckpt":
        table.write(output)


@click.command()
def openapi() -> None:
    """Print the description of the admin API (OpenAPI 3.1)."""
    import msgspec

    from fcp_core.admin.openapi import describe

    click.echo(msgspec.json.format(msgspec.json.encode(describe()), indent=2))


def _cut(text: str, most: int = 100) -> str:
    """Return a text that fits a table: 'fcp tasks watch' has all of it."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def local_time(seconds: float) -> str:
    """Return a time since the epoch as the local date and time of day."""
    from datetime import datetime

    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
