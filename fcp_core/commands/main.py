"""The command line: ``fcp``. Its commands are the core's own and those of plugins."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import click

from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from fcp_core.plugins.manager import Plugins
    from fcp_core.plugins.tracing import TraceSink

#: The core's commands that are imported when they are used: module, attribute and short help.
_LAZY = {
    "bench": ("fcp_core.commands.bench", "bench", "Put a server under load."),
    "client": ("fcp_core.commands.client", "client", "Take part as a device."),
    "eligibility": (
        "fcp_core.commands.eligibility",
        "eligibility",
        "Say how devices find out what they are eligible for.",
    ),
    "keys": ("fcp_core.commands.keys", "keys", "Rotate the keys that sign what devices get."),
    "plugin": ("fcp_core.commands.plugin", "plugin", "Write a plugin of your own."),
    "plugins": (
        "fcp_core.commands.plugins",
        "plugins",
        "List what is installed, from where, and what is active; check and trace it.",
    ),
    "openapi": ("fcp_core.commands.tasks", "openapi", "Print the description of the admin API."),
    "serve": ("fcp_core.commands.serve", "serve", "Serve devices, and programs elsewhere."),
    "simulate": (
        "fcp_core.commands.simulate",
        "simulate",
        "Try selection policies on virtual devices.",
    ),
    "tasks": ("fcp_core.commands.tasks", "tasks", "Submit, list, watch and cancel tasks."),
}


class _Mistake(click.ClickException):
    """A UsageError as the command line shows it: one paragraph, and exit status 2."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        click.echo(f"fcp: {self.message}", file=file, err=file is None)


@dataclass
class Invocation:
    """What was given before the command's name; a command finds it in ``ctx.obj``.

    :param config_file: the argument of ``--config``.
    :param overrides: the arguments of ``--set``, by dotted name.
    """

    config_file: str | None = None
    overrides: dict[str, str] = field(default_factory=dict)
    _plugins: Plugins | None = field(default=None, repr=False)

    def load_plugins(
        self,
        *,
        extra: Iterable[object] = (),
        overrides: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        modules: Sequence[str] = (),
        trace: TraceSink | None = None,
    ) -> Plugins:
        """Load the plugins and the configuration as the command line says.

        :param extra: further plugin objects.
        :param overrides: the command's own options; they win over ``--set``.
        :param defaults: the command's own defaults; everything wins over them.
        :param modules: modules or files to load as if ``[fcp] plugins`` named them too.
        :param trace: told of every hook call.
        :raises UsageError: if anything about them is wrong.
        """
        from fcp_core.plugins.manager import Plugins

        return Plugins.load(
            config_file=self.config_file,
            overrides={**self.overrides, **(overrides or {})},
            overrides_origin="the command line",
            defaults=defaults,
            extra=extra,
            modules=modules,
            trace=trace,
        )

    @property
    def plugins(self) -> Plugins:
        """The plugins without any extra; loaded once."""
        if self._plugins is None:
            self._plugins = self.load_plugins()
        return self._plugins


class _Root(click.Group):
    """Finds commands in the core, then in the plugins, and imports them when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*self.commands, *_LAZY, *_plugin_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None."""
        if cmd_name in _LAZY:
            module, attribute, _ = _LAZY[cmd_name]
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        return self.commands.get(cmd_name) or _plugin_commands(ctx).get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing those that are imported late."""
        try:
            from_plugins = _plugin_commands(ctx)
        except UsageError as error:
            from_plugins = {}
            formatter.write_paragraph()
            formatter.write_text(f"The commands of plugins cannot be listed: {error}")
        rows = {name: text for name, (_, _, text) in _LAZY.items()}
        for name, command in {**from_plugins, **self.commands}.items():
            if not command.hidden:
                rows[name] = command.get_short_help_str(150)
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a UsageError becomes a message."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise _Mistake(str(error)) from error


def _plugin_commands(ctx: click.Context) -> Mapping[str, click.Command]:
    if ctx.obj is None:
        ctx.obj = _invocation(ctx)
    commands: Mapping[str, click.Command] = ctx.obj.plugins.commands
    clashes = sorted(set(commands) & {*_LAZY, "config"})
    if clashes:
        owners = {o.name: o.plugin for o in ctx.obj.plugins.offers() if o.kind == "command"}
        raise UsageError(
            "\n".join(
                f"{owners[name]} brings a command {name!r}, which fcp has." for name in clashes
            )
        )
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
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
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


def make_table(*columns: str) -> Table:
    """Return an empty table as all commands print it."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_tables(*tables: Table) -> None:
    """Print tables: as wide as the terminal, or as wide as they are into a pipe."""
    from rich.console import Console

    # A pipe gets whole lines, so that they can be searched.
    console = Console(width=None if sys.stdout.isatty() else 2000, highlight=False, markup=False)
    for table in tables:
        console.print(table)


def main() -> None:
    """Run the command line and exit."""
    cli(prog_name="fcp")
