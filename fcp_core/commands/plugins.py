"""``fcp plugins``: list what is installed, check it, and trace calls of its hooks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcp_core.commands.output import make_table, print_tables, say
from fcp_core.errors import UsageError, plugin_errors

if TYPE_CHECKING:
    from fcp_core.commands.invocation import Invocation
    from fcp_core.plugins.manager import Plugins
    from fcp_core.plugins.offers import PluginSource


@click.group(invoke_without_command=True)
@click.pass_context
def plugins(ctx: click.Context) -> None:
    """List what is installed, from where, and what is active; check and trace it."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@plugins.command("list")
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List them: the same as without a command."""
    loaded = invocation.plugins
    installed = make_table("plugin", "from", "hooks")
    for plugin in loaded.plugins:
        installed.add_row(plugin.source.name, plugin.source.source, ", ".join(plugin.hooks))
    offers = make_table("kind", "name", "active", "plugin", "summary")
    for offer in loaded.offers():
        active = "yes" if offer.active else ""
        offers.add_row(offer.kind, offer.name, active, offer.plugin.name, offer.summary)
    print_tables(installed, offers)


@plugins.command()
@click.argument("module", required=False)
@click.pass_obj
def check(invocation: Invocation, module: str | None) -> None:
    """Check the plugins and the configuration without starting a server.

    MODULE is a module, an object in one (module:object) or a .py file, which is checked with the
    others as if [fcp] plugins named it; without it, everything that is installed and configured is
    checked. Aggregators accumulate, merge and report small contributions. The exit status is 2 if
    anything is wrong.
    """
    from fcp_core.plugins.discovery import explain

    loaded = invocation.load_plugins(modules=[] if module is None else [module])
    chosen = [item for item in loaded.plugins if module is None or _is_named(item.source, module)]
    for item in chosen:
        click.echo(f"{item.source}")
        _echo("hooks", item.hooks)
        _echo("offers", [f"{o.kind} {o.name}" for o in loaded.offers() if o.plugin is item.source])
        _echo(
            "options",
            [
                value.option.label
                for value in loaded.config.options()
                if not value.scope and value.option.declared_by == str(item.source)
            ],
        )
    # What fails is said below, once, with its place.
    logging.getLogger("fcp_core.aggregation").setLevel(logging.CRITICAL)
    problems = []
    for what, make, is_chosen in _makers(loaded):
        owner, kind, name = what
        if owner not in [item.source for item in chosen]:
            continue
        try:
            make()
        except plugin_errors() as error:
            what_failed, why = f"the {kind} {name!r} cannot be built: ", explain(error)
            problem = f"{owner}: {what_failed}{why.removeprefix(what_failed)}."
            # What asks for a setting is fine until somebody chooses it; what breaks is not.
            if is_chosen or not isinstance(error, UsageError):
                problems.append(problem)
            else:
                say(f"Not chosen, and not usable as it is configured: {problem}")
    if problems:
        raise UsageError("\n".join(problems))
    click.echo("Nothing is wrong.")


def _is_named(source: PluginSource, module: str) -> bool:
    if module.endswith(".py"):
        return source.path == str(Path(module).expanduser().resolve())
    return module in (source.target, source.target.partition(":")[0])


def _echo(what: str, items: list[str] | tuple[str, ...]) -> None:
    if items:
        click.echo(f"  {what}: {', '.join(items)}")


def _makers(
    loaded: Plugins,
) -> Iterator[tuple[tuple[PluginSource, str, str], Callable[[], object], bool]]:
    """Iterate over what can be built without a task: whose it is, how, and whether it is chosen."""
    from fcp_core.aggregation.trial import try_aggregator

    for offer in loaded.offers():
        for scope in loaded.scopes():
            makers: dict[str, Callable[[str], object]] = {
                "selection": scope.make_selection_policy,
                "protocol": scope.make_protocol,
                "eligibility": scope.make_eligibility_policy,
            }
            whole: dict[str, Callable[[], object]] = {}
            is_chosen = (offer.kind, offer.name) in {(k, n) for k, n, _ in scope.chosen()}
            if is_chosen and scope is loaded:
                whole = {"storage": loaded.make_storage, "engine": loaded.make_engine}
            what = (offer.plugin, offer.kind, offer.name)
            if offer.kind in whole:
                yield what, whole[offer.kind], True
            elif offer.kind in makers and (is_chosen or scope is loaded):
                yield what, functools.partial(makers[offer.kind], offer.name), is_chosen
            elif offer.kind == "aggregator" and (is_chosen or scope is loaded):
                options = scope.aggregator_options().get(offer.name, {})
                attempt = functools.partial(try_aggregator, loaded.aggregators[offer.name], options)
                yield what, attempt, is_chosen or offer.active


@plugins.command()
@click.option(
    "--population", default="traced", show_default=True, help="The population of the check-in."
)
@click.pass_obj
def trace(invocation: Invocation, population: str) -> None:
    """Print every hook call of a start-up and of one simulated device session.

    The hooks really run: an observer hears of the session, a plugin that writes or sends
    something does so. The storage and the network are left alone: the session is in this process
    and in memory. Any other command prints its hook calls with --trace-hooks.
    """
    import asyncio

    from fcp_core.commands.trial_session import run_trial_session
    from fcp_core.protocol.status import StatusError

    output = _Output()
    output.say("loading")
    loaded = invocation.load_plugins(trace=lambda call: output.say(f"  {call}"))
    logging.getLogger("fcp.services").setLevel(logging.ERROR)
    try:
        asyncio.run(run_trial_session(loaded, population, output.say))
    except StatusError as error:
        raise UsageError(f"the session ended with {error.code.name}: {error.message}.") from error
    if output.broken is not None:
        raise output.broken


class _Output:
    """Prints until nobody reads any more: that is no fault of the hook that is being traced."""

    def __init__(self) -> None:
        self.broken: BrokenPipeError | None = None

    def say(self, line: str) -> None:
        """Print a line; remember if that cannot be."""
        if self.broken is None:
            try:
                click.echo(line)
            except BrokenPipeError as error:
                self.broken = error
