"""What comes before the configuration: finding plugins, and asking them for their commands.

Nothing here imports what plugins implement, so that the command line starts quickly.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

from fcp_core.errors import UsageError
from fcp_core.plugins import discovery
from fcp_core.plugins.config import OptionRegistry, Sources
from fcp_core.plugins.implementations import Call, collect_calls, run_all
from fcp_core.plugins.offers import PluginSource
from fcp_core.plugins.options import add_core_options
from fcp_core.plugins.tracing import TraceSink, log_trace, trace_hooks

if TYPE_CHECKING:
    import click


def new_manager(
    loaded: Sequence[tuple[PluginSource, object]],
    registry: OptionRegistry,
    sources: Sources,
    trace: TraceSink | None,
) -> pluggy.PluginManager:
    """Register the plugins, with a trace of their calls if one is asked for."""
    manager = discovery.new_plugin_manager()
    for source, plugin in reversed(loaded):  # pluggy asks the last one first
        manager.register(plugin, name=source.name)
    if trace is None and sources.value(registry.option("", "trace_hooks")).value:
        logging.getLogger("fcp.hooks").setLevel(logging.INFO)
        trace = log_trace
    if trace is not None:
        trace_hooks(manager, [source for source, _ in loaded], trace)
    return manager


def find(
    registry: OptionRegistry,
    sources: Sources,
    more: Sequence[str],
    extra: Iterable[object],
    entry_points: Iterable[importlib.metadata.EntryPoint] | None,
) -> list[PluginSource]:
    """Find the plugins, as the options say that are read before any is imported."""

    def early(name: str) -> tuple[tuple[str, ...], str]:
        value = sources.value(registry.option("", name))
        return value.value, value.origin

    found = discovery.installed_sources(entry_points)
    modules, origin = early("plugins")
    base = sources.base(registry.option("", "plugins"))
    found += [discovery.configured_source(item, origin, base) for item in modules]
    known = {place for s in found for place in (s.target, s.target.partition(":")[0], s.path)}
    for item in more:
        source = discovery.configured_source(item, "the command line", sources.folder)
        if not known & ({source.target, source.path} - {""}):
            found.append(source)
    extra = list(extra)
    # An object of the program takes the place of what is installed: it was made with a purpose.
    given = {target for plugin in extra for target in discovery.targets_of(plugin)}
    found = [source for source in found if source.target not in given]
    for plugin in extra:
        found.append(discovery.given_source(plugin, [source.name for source in found]))
    active = discovery.select_sources(found, *early("disable_plugins"))
    discovery.check_required(*early("required_plugins"), active)
    return active


def take(
    answer: object,
    source: PluginSource,
    kind: str,
    expected: type,
    table: dict[str, Any],
    owners: dict[tuple[str, str], PluginSource],
) -> Iterator[Any]:
    """Put what a registration hook returned into its table; yield each.

    :param expected: the type of each.
    :param owners: who offers what, by kind and name.
    :raises UsageError: if it is something else, has no usable name, or its name is taken.
    """
    if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Iterable):
        mend = "put it in a list" if isinstance(answer, expected) else "return one"
        raise UsageError(f"it returned {answer!r}, not a list of {expected.__name__}; {mend}")
    for factory in answer:
        if not isinstance(factory, expected):
            raise UsageError(
                f"its list has {factory!r}, which is no {expected.__name__}; leave it out"
            )
        name = factory.name  # type: ignore[attr-defined]
        if not isinstance(name, str) or not re.fullmatch(r"[^\s,\[\]]+", name):
            raise UsageError(f"the name {name!r} of a {kind} must be one word")
        owner = owners.setdefault((kind, name), source)
        if name in table:
            raise UsageError(
                f"the {kind} {name!r} is offered already by {owner}; "
                f"disable one of them with [fcp] disable_plugins"
            )
        table[name] = factory
        yield factory


@dataclass(frozen=True)
class Commands:
    """The commands that plugins bring, by name, and who brings each."""

    commands: dict[str, click.Command] = field(default_factory=dict)
    owners: dict[str, PluginSource] = field(default_factory=dict)


def load_commands(
    *,
    config_file: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    overrides_origin: str = "the command line",
) -> Commands | None:
    """Ask the plugins for their commands, and for nothing else.

    The arguments are those of ``Plugins.load``.

    :returns: None if a plugin wants to see the configuration first, which takes a full load.
    :raises UsageError: if a plugin cannot be imported, or two bring the same command.
    """
    import click

    sources = Sources(
        config_file=config_file, overrides=overrides, overrides_origin=overrides_origin
    )
    registry = OptionRegistry(None)
    add_core_options(registry)
    loaded = discovery.import_plugins(find(registry, sources, (), (), None))
    calls = collect_calls(new_manager(loaded, registry, sources, None), loaded)
    found: dict[str, click.Command] = {}
    owners: dict[tuple[str, str], PluginSource] = {}
    if any(call.arguments for call in calls["fcp_register_commands"]):
        return None

    def ask(call: Call) -> None:
        for _ in take(call(), call.source, "command", click.Command, found, owners):
            pass

    run_all(calls["fcp_register_commands"], ask)
    return Commands(found, {name: source for (_, name), source in owners.items()})
