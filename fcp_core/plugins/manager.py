"""One server's plugins: what is installed and what the configuration chooses."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click
import pluggy

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import Engine, EngineFactory
from fcp_core.aggregation.protocol import AggregationProtocol, AggregationProtocolFactory
from fcp_core.errors import UsageError
from fcp_core.plugins import discovery
from fcp_core.plugins.calls import Call, HookCaller, collect_calls, run_all
from fcp_core.plugins.config import Config, OptionRegistry, Sources, did_you_mean, load_config
from fcp_core.plugins.discovery import PluginSource
from fcp_core.plugins.options import add_core_options, check_core_options
from fcp_core.rounds.policies import (
    EligibilityPolicy,
    EligibilityPolicyFactory,
    SelectionPolicy,
    SelectionPolicyFactory,
)
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.storage.contract import Storage, StorageFactory

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: What is registered: the kind, the hook, what the hook must return, the section's prefix.
_KINDS: tuple[tuple[str, str, type], ...] = (
    ("aggregator", "fcp_register_aggregators", AggregatorFactory),
    ("protocol", "fcp_register_aggregation_protocols", AggregationProtocolFactory),
    ("selection", "fcp_register_selection_policies", SelectionPolicyFactory),
    ("eligibility", "fcp_register_eligibility_policies", EligibilityPolicyFactory),
    ("storage", "fcp_register_storages", StorageFactory),
    ("engine", "fcp_register_engines", EngineFactory),
    ("command", "fcp_register_commands", click.Command),
)


@dataclass(frozen=True)
class Offer:
    """One thing that a plugin offers.

    :param kind: aggregator, protocol, selection, eligibility, storage, engine or command.
    :param active: whether the configuration chooses it.
    """

    kind: str
    name: str
    summary: str
    plugin: PluginSource
    active: bool = False


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that is in use, the hooks it implements and what it offers."""

    source: PluginSource
    plugin: object = field(repr=False)
    hooks: tuple[str, ...]


class Plugins(HookCaller):
    """The plugins of one server. Made by :meth:`load`; there is none at module level.

    Each of the dictionaries maps a name to the factory that a plugin registered under it.
    """

    def __init__(
        self,
        config: Config,
        manager: pluggy.PluginManager,
        calls: Mapping[str, Sequence[Call]],
    ) -> None:
        super().__init__(config, manager, calls)
        self.plugins: tuple[LoadedPlugin, ...] = ()
        self.aggregators: dict[str, AggregatorFactory] = {}
        self.protocols: dict[str, AggregationProtocolFactory] = {}
        self.selection_policies: dict[str, SelectionPolicyFactory] = {}
        self.eligibility_policies: dict[str, EligibilityPolicyFactory] = {}
        self.storages: dict[str, StorageFactory] = {}
        self.engines: dict[str, EngineFactory] = {}
        self.commands: dict[str, click.Command] = {}
        self._owners: dict[tuple[str, str], PluginSource] = {}

    @classmethod
    def load(
        cls,
        *,
        config_file: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        overrides_origin: str = "the program's overrides",
        extra: Iterable[object] = (),
        working_folder: str | os.PathLike[str] | None = None,
        entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
    ) -> Plugins:
        """Find, import, check and register the plugins, and read the configuration.

        :param config_file: the configuration file; see :mod:`fcp_core.plugins.config`.
        :param environ: the environment; ``os.environ`` by default.
        :param overrides: configuration values that win, by dotted name.
        :param extra: plugin objects of the program itself, such as an observer.
        :param working_folder: where configuration files are looked for; by default the current one.
        :param entry_points: instead of the installed ones.
        :raises UsageError: with all problems of the first stage that has any, one a line.
        """
        discovery.check_owner()
        sources = Sources(
            config_file=config_file,
            environ=environ,
            overrides=overrides,
            overrides_origin=overrides_origin,
            working_folder=working_folder,
        )
        for path in sources.ignored:
            logger.warning("%s is ignored, since %s has the configuration", path, sources.file)
        registry = OptionRegistry()
        add_core_options(registry)
        loaded = discovery.import_plugins(_find(registry, sources, extra, entry_points))
        manager = discovery.new_plugin_manager()
        for source, plugin in loaded:
            manager.register(plugin, name=source.name)
        calls = collect_calls(manager, loaded)
        run_all(
            calls["fcp_add_options"], lambda call: _declare(call, registry), "declare its options"
        )
        config = load_config(registry, sources)
        check_core_options(config)
        plugins = cls(config, manager, calls)
        plugins.plugins = tuple(
            LoadedPlugin(
                source,
                plugin,
                tuple(sorted(h for h, c in calls.items() if any(x.source is source for x in c))),
            )
            for source, plugin in loaded
        )
        plugins._collect()
        plugins._check_choices()
        for item in plugins.plugins:
            offers = [f"{o.kind} {o.name}" for o in plugins.offers() if o.plugin is item.source]
            logger.info("%s: %s", item.source, ", ".join(offers) or ", ".join(item.hooks))
        return plugins

    # What is offered, and what is chosen.

    def make_storage(self) -> Storage:
        """Build the configured storage.

        :raises UsageError: if its options do not do.
        """
        name = self.config.get("storage")
        return self.storages[name].make(self.config.section(f"storage.{name}"))

    def make_engine(self) -> Engine:
        """Build the configured engine.

        :raises UsageError: if its options do not do.
        """
        name = self.config.get("engine")
        return self.engines[name].make(self.aggregators, self.config.section(f"engine.{name}"))

    def make_selection_policy(
        self, name: str | None = None, options: Mapping[str, Any] | None = None
    ) -> SelectionPolicy:
        """Build a selection policy.

        :param name: None for the configured one.
        :param options: options that win over the configured ones, such as a task's.
        :raises UsageError: if there is none of that name, or the options do not do.
        """
        factory = self._choose("selection", self.selection_policies, name)
        return factory.make(self.selection_options(factory.name, options))

    def selection_options(
        self, name: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """Return the options of a selection policy, for ``SelectionView.options``."""
        return self.config.section(f"selection.{name or self.config.get('selection')}", options)

    def make_protocol(
        self, name: str | None = None, options: Mapping[str, Any] | None = None
    ) -> AggregationProtocol:
        """Build an aggregation protocol's machine; the arguments are as for selection policies.

        :raises UsageError: if there is none of that name, or the options do not do.
        """
        factory = self._choose("protocol", self.protocols, name)
        return factory.make(self.config.section(f"protocol.{factory.name}", options))

    def make_eligibility_policies(self) -> list[EligibilityPolicy]:
        """Build the configured eligibility policies, in the configured order.

        :raises UsageError: if the options of one do not do.
        """
        return [
            self.eligibility_policies[name].make(self.config.section(f"eligibility.{name}"))
            for name in self.config.get("eligibility")
        ]

    def aggregator_choices(self) -> dict[str, str]:
        """Return which aggregator serves which intrinsic URI, where it is not the reference one."""
        return {
            uri: name
            for name in self.config.get("aggregator")
            for uri in sorted(self.aggregators[name].uris)
        }

    def aggregator_options(self) -> dict[str, Mapping[str, Any]]:
        """Return the options of every aggregator that has any, by the aggregator's name."""
        sections = {name: self.config.section(f"aggregator.{name}") for name in self.aggregators}
        return {name: dict(options) for name, options in sections.items() if options}

    def offers(self) -> list[Offer]:
        """Return everything that is offered, sorted by kind and name."""
        chosen = {(kind, name) for kind, name, _ in self._choices()}
        replaced = self.aggregator_choices()
        offers = []
        for kind, _, _ in _KINDS:
            for name, factory in sorted(self._table(kind).items()):
                if kind == "command":
                    summary, active = factory.get_short_help_str(80), True
                else:
                    summary, active = factory.summary, (kind, name) in chosen
                if kind == "aggregator":
                    # The reference implementation of a URI carries its name.
                    active = active or (name in factory.uris and name not in replaced)
                offers.append(Offer(kind, name, summary, self._owners[kind, name], active))
        return offers

    def check_task(self, task: TaskSpec) -> list[str]:
        """Return what is wrong with a task's choices, and what plugins find; one sentence each."""
        return self._check_task_choices(task) + super().check_task(task)

    # Building the object.

    def _table(self, kind: str) -> dict[str, Any]:
        tables: dict[str, dict[str, Any]] = {
            "aggregator": self.aggregators,
            "protocol": self.protocols,
            "selection": self.selection_policies,
            "eligibility": self.eligibility_policies,
            "storage": self.storages,
            "engine": self.engines,
            "command": self.commands,
        }
        return tables[kind]

    def _collect(self) -> None:
        for kind, hook, expected in _KINDS:
            run_all(
                self._calls[hook],
                lambda call, k=kind, e=expected: self._take(call, k, e),  # type: ignore[misc]
                f"register with {hook}",
            )

    def _take(self, call: Call, kind: str, expected: type) -> None:
        answer = call(config=self.config)
        if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Iterable):
            raise UsageError(f"it returned {answer!r}, not a list of {expected.__name__}")
        for factory in answer:
            if not isinstance(factory, expected):
                raise UsageError(f"its list has {factory!r}, which is no {expected.__name__}")
            name = factory.name  # type: ignore[attr-defined]
            if not isinstance(name, str) or not re.fullmatch(r"[^\s,\[\]]+", name):
                raise UsageError(f"the name {name!r} of a {kind} must be one word")
            owner = self._owners.setdefault((kind, name), call.source)
            table = self._table(kind)
            if name in table:
                raise UsageError(
                    f"the {kind} {name!r} is offered already by {owner}; "
                    f"disable one of them with [fcp] disable_plugins"
                )
            table[name] = factory

    def _choices(self) -> list[tuple[str, str, str]]:
        """Return (kind, name, origin) of everything that the configuration chooses."""
        chosen = [
            (kind, self.config.get(kind), self.config.origin("", kind))
            for kind in ("storage", "engine", "protocol", "selection")
        ]
        for kind in ("eligibility", "aggregator"):
            origin = self.config.origin("", kind)
            chosen += [(kind, name, origin) for name in self.config.get(kind)]
        return chosen

    def _check_choices(self) -> None:
        problems = []
        served: dict[str, str] = {}
        for kind, name, origin in self._choices():
            where = f"[fcp] {kind} (default)" if origin == "default" else origin
            if name not in self._table(kind):
                problems.append(f"{where}: {self._missing(kind, name)}")
            elif kind == "aggregator":
                for uri in sorted(self.aggregators[name].uris):
                    other = served.setdefault(uri, name)
                    if other != name:
                        problems.append(f"{where}: {other} and {name} both serve {uri}; keep one.")
        if problems:
            raise UsageError("\n".join(problems))

    def _missing(self, kind: str, name: str) -> str:
        known = sorted(self._table(kind))
        hint = did_you_mean(name, known, repr)
        return (
            f"no active plugin offers the {kind} {name!r}.{hint} "
            f"Installed: {', '.join(known) or 'none'}."
        )

    def _choose(self, kind: str, table: Mapping[str, T], name: str | None) -> T:
        name = self.config.get(kind) if name is None else name
        if name not in table:
            raise UsageError(self._missing(kind, name))
        return table[name]

    def _check_task_choices(self, task: TaskSpec) -> list[str]:
        problems = []
        protocol = task.protocol or self.config.get("protocol")
        selection = task.selection or self.config.get("selection")
        sections: dict[str, str] = {}
        for kind, name in (("protocol", protocol), ("selection", selection)):
            sections[name] = f"{kind}.{name}"
            if name not in self._table(kind):
                problems.append(self._missing(kind, name))
        for uri, name in task.aggregators.items():
            if name not in self.aggregators:
                problems.append(self._missing("aggregator", name))
            elif uri not in self.aggregators[name].uris:
                serves = ", ".join(sorted(self.aggregators[name].uris))
                problems.append(f"the aggregator {name!r} serves {serves}, not {uri}.")
        sections |= {name: f"aggregator.{name}" for name in self.aggregators}
        sections |= {name: f"eligibility.{name}" for name in self.config.get("eligibility")}
        for name, options in task.options.items():
            if name not in sections:
                hint = did_you_mean(name, sections, repr)
                problems.append(f"the task has options for {name!r}, which it does not use.{hint}")
                continue
            try:
                self.config.section(sections[name], options)
            except UsageError as error:
                problems.append(str(error))
        return problems


def _find(
    registry: OptionRegistry,
    sources: Sources,
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
    for plugin in extra:
        found.append(discovery.given_source(plugin, [source.name for source in found]))
    active = discovery.select_sources(found, *early("disable_plugins"))
    discovery.check_required(*early("required_plugins"), active)
    return active


def _declare(call: Call, registry: OptionRegistry) -> None:
    registry.owner = str(call.source)
    call(options=registry)
