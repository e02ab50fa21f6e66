"""The command line: ``fcp``. Its commands are the core's own and those of plugins."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

import click

from fcp_core.commands.bench import bench
from fcp_core.commands.client import client
from fcp_core.commands.db import db
from fcp_core.commands.eligibility import eligibility
from fcp_core.commands.history import history
from fcp_core.commands.invocation import Invocation, refuse_uninstalled
from fcp_core.commands.keys import keys
from fcp_core.commands.members import members
from fcp_core.commands.output import line_by_line, make_table, print_tables
from fcp_core.commands.plugin import plugin
from fcp_core.commands.plugins import plugins
from fcp_core.commands.populations import populations
from fcp_core.commands.query import query
from fcp_core.commands.repeat import repeat
from fcp_core.commands.schedules import schedule, schedules, unschedule
from fcp_core.commands.serve import serve
from fcp_core.commands.simulate import simulate
from fcp_core.commands.tasks import openapi, tasks
from fcp_core.errors import UsageError

__all__ = ["Invocation", "cli", "main"]


class _Mistake(click.ClickException):
    """A UsageError as the command line shows it: one paragraph, and exit status 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        click.echo(f"fcp: {line_by_line(self.message)}", file=file, err=file is None)


class _Root(click.Group):
    """Finds commands in the core, then in the plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*self.commands, *_plugin_commands(self, ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None.

        :raises UsageError: if it is one that a distribution of ours would bring.
        """
        found = self.commands.get(cmd_name) or _plugin_commands(self, ctx).get(cmd_name)
        if found is None:
            refuse_uninstalled(cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; the guess at a mistyped one knows those of plugins too."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=self.list_commands(ctx), ctx=ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; those of plugins only if the plugins can be loaded."""
        try:
            from_plugins = _plugin_commands(self, ctx)
        except UsageError as error:
            from_plugins = {}
            formatter.write_paragraph()
            formatter.write_text(f"The commands of plugins cannot be listed: {error}")
        # What plugins bring for a group of ours is among its commands.
        groups = {name for name, each in self.commands.items() if isinstance(each, click.Group)}
        rows = {
            name: command.get_short_help_str(150)
            for name, command in {**from_plugins, **self.commands}.items()
            if not command.hidden and name.partition("-")[0] not in groups - {name}
        }
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a UsageError becomes a message."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise _Mistake(str(error)) from error
        except click.exceptions.NoSuchOption as error:
            message = _where_it_belongs(error)
            if message is None:
                raise
            raise click.exceptions.NoSuchOption(
                error.option_name, message=message, ctx=error.ctx
            ) from None


def _where_it_belongs(error: click.exceptions.NoSuchOption) -> str | None:
    """Say where an option goes that a command has not, if it is one of a group that it is in."""
    inner = error.ctx
    while inner is not None and inner.parent is not None:
        outer = inner.parent
        if any(error.option_name in each.opts for each in outer.command.params):
            name = inner.info_name
            return (
                f"{inner.command_path} has no option {error.option_name!r}: write it before "
                f'{name!r}, as in "{outer.command_path} {error.option_name} ... {name}".'
            )
        inner = outer
    return None


def _plugin_commands(root: click.Group, ctx: click.Context) -> Mapping[str, click.Command]:
    if ctx.obj is None:
        ctx.obj = _invocation(ctx)
    found = ctx.obj.plugin_commands
    clashes = sorted(set(found.commands) & set(root.commands))
    if clashes:
        raise UsageError(
            "\n".join(
                f"{found.owners[name]} brings a command {name!r}, which fcp has."
                for name in clashes
            )
        )
    commands: Mapping[str, click.Command] = found.commands
    return commands


def _invocation(ctx: click.Context) -> Invocation:
    settings: Sequence[str] = ctx.params.get("settings") or ()
    pairs = [item.partition("=") for item in settings]
    traced = {"trace_hooks": "yes"} if ctx.params.get("trace_hooks") else {}
    return Invocation(
        config_file=ctx.params.get("config_file"),
        overrides={name.strip(): value.strip() for name, _, value in pairs} | traced,
    )


def _check_settings(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    for item in value:
        if "=" not in item:
            raise click.BadParameter(f"{item!r} is not of the form NAME=VALUE.")
    return value


# The options are eager so that they count for --help, which lists the commands of plugins.
@click.group(cls=_Root)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    is_eager=True,
    help="The configuration file, instead of the one in the working folder.",
)
@click.option(
    "-s",
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    is_eager=True,
    callback=_check_settings,
    help="An option that wins over the file: storage=sqlite, storage.sqlite.path=fcp.db.",
)
@click.option(
    "--trace-hooks", is_flag=True, is_eager=True, help="Log every call of a plugin's hook."
)
@click.option("-v", "--verbose", count=True, help="Log what happens; twice: every detail.")
@click.version_option(package_name="fcp-server", message="%(package)s %(version)s")
@click.pass_context
def cli(
    ctx: click.Context,
    config_file: str | None,
    settings: tuple[str, ...],
    trace_hooks: bool,
    verbose: int,
) -> None:
    """Serve federated computations to devices, and take part in them."""
    from fcp_core.rounds.text import TextFormatter

    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    ctx.obj = _invocation(ctx)


@cli.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@click.pass_obj
def show(invocation: Invocation) -> None:
    """Print every option: its value, where that came from, and who declared it."""
    loaded = invocation.plugins.config
    table = make_table("option", "value", "from", "declared by")
    for item in loaded.options():
        table.add_row(item.label, item.shown, item.origin, item.option.declared_by)
    click.echo(f"Configuration file: {loaded.file or 'none'}")
    for path in loaded.ignored:
        click.echo(f"Ignored, since one file wins whole: {path}")
    print_tables(table)


for _command in (
    bench,
    client,
    db,
    eligibility,
    history,
    keys,
    openapi,
    plugin,
    plugins,
    query,
    serve,
    simulate,
    tasks,
    populations,
    members,
):
    cli.add_command(_command)


for command in (repeat, schedule, schedules, unschedule):
    tasks.add_command(command)


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding has no letters for is shown escaped; it is no reason to fail.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="fcp")
