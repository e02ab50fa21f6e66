"""The plugins of one server: loads them, and resolves what the configuration chooses."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click
import pluggy

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import EngineFactory
from fcp_core.errors import UsageError
from fcp_core.plugins import discovery
from fcp_core.plugins.calls import HookCaller
from fcp_core.plugins.choices import Choices, Offered
from fcp_core.plugins.config import Config, OptionRegistry, Sources, did_you_mean, load_config
from fcp_core.plugins.files import normal
from fcp_core.plugins.implementations import Call, collect_calls, run_all
from fcp_core.plugins.loading import find, new_manager, take
from fcp_core.plugins.offers import LoadedPlugin, Offer, PluginSource
from fcp_core.plugins.options import add_core_options, check_core_options
from fcp_core.plugins.pages import PagesFactory
from fcp_core.plugins.task_choices import TaskChoices
from fcp_core.plugins.tracing import TraceSink
from fcp_core.protocol import routes
from fcp_core.rounds.ledger import Ledger
from fcp_core.rounds.policies import EligibilityPolicyFactory, SelectionPolicyFactory
from fcp_core.rounds.protocols import AggregationProtocolFactory
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.rounds.token_parts import MAX_EXTRA
from fcp_core.storage.contract import StorageFactory

logger = logging.getLogger(__name__)

#: What is registered: the kind, the hook, what the hook must return, the section's prefix.
_KINDS: tuple[tuple[str, str, type], ...] = (
    ("aggregator", "fcp_register_aggregators", AggregatorFactory),
    ("protocol", "fcp_register_aggregation_protocols", AggregationProtocolFactory),
    ("selection", "fcp_register_selection_policies", SelectionPolicyFactory),
    ("eligibility", "fcp_register_eligibility_policies", EligibilityPolicyFactory),
    ("storage", "fcp_register_storages", StorageFactory),
    ("engine", "fcp_register_engines", EngineFactory),
    ("pages", "fcp_register_pages", PagesFactory),
    ("ledger", "fcp_register_ledgers", Ledger),
    ("command", "fcp_register_commands", click.Command),
)

#: Hooks that every process of a server calls.
_NEEDED_EVERYWHERE = frozenset(
    {
        "fcp_add_options",
        "fcp_authenticate",
        "fcp_register_aggregators",
        "fcp_register_engines",
    }
)


class Plugins(HookCaller, Choices):
    """The plugins of one server. Made by :meth:`load`; there is none at module level."""

    def __init__(
        self,
        config: Config,
        manager: pluggy.PluginManager,
        calls: Mapping[str, Sequence[Call]],
    ) -> None:
        HookCaller.__init__(self, config, manager, calls)
        Choices.__init__(self, config, Offered())
        self.plugins: tuple[LoadedPlugin, ...] = ()
        self._owners: dict[tuple[str, str], PluginSource] = {}
        self._recipe: dict[str, Any] = {}
        self._local: list[str] = []

    def recipe(self) -> dict[str, Any]:
        """Return the arguments of :meth:`load` for a worker process.

        Plugins that the program brings as objects are not among them: they observe, select and
        decide in this process only.

        :raises UsageError: if one of those would be needed there too.
        """
        if self._local:
            raise UsageError(
                f"plugins that are objects of this program cannot serve in several processes: "
                f"{', '.join(self._local)}. Name their modules in [fcp] plugins instead."
            )
        return dict(self._recipe)

    @classmethod
    def load(
        cls,
        *,
        config_file: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        overrides_origin: str = "the program's overrides",
        defaults: Mapping[str, Any] | None = None,
        extra: Iterable[object] = (),
        working_folder: str | os.PathLike[str] | None = None,
        entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
        modules: Sequence[str] = (),
        trace: TraceSink | None = None,
    ) -> Plugins:
        """Find, import, check and register the plugins, and read the configuration.

        :param config_file: the configuration file; see :mod:`fcp_core.plugins.config`.
        :param environ: the environment; ``os.environ`` by default.
        :param overrides: configuration values that win, by dotted name.
        :param defaults: defaults in place of the declared ones, by dotted name.
        :param extra: the program's own plugin objects; each replaces an installed one of its class.
        :param working_folder: where configuration files are looked for; by default the current one.
        :param entry_points: instead of the installed ones.
        :param modules: modules or files to load as if ``[fcp] plugins`` named them too.
        :param trace: called with every hook call; None: they are logged if ``trace_hooks`` is set.
        :raises UsageError: with all problems of the first stage that has any, one a line.
        """
        discovery.check_owner()
        extra = list(extra)
        recipe = {
            "config_file": config_file,
            "environ": environ,
            "overrides": overrides,
            "overrides_origin": overrides_origin,
            "defaults": defaults,
            "working_folder": os.getcwd() if working_folder is None else working_folder,
            "modules": list(modules),
        }
        sources = Sources(
            config_file=config_file,
            environ=environ,
            overrides=overrides,
            overrides_origin=overrides_origin,
            working_folder=working_folder,
        )
        for path in sources.ignored:
            logger.warning("%s is ignored, since %s has the configuration", path, sources.file)
        registry = OptionRegistry(defaults)
        add_core_options(registry)
        loaded = discovery.import_plugins(find(registry, sources, modules, extra, entry_points))
        manager = new_manager(loaded, registry, sources, trace)
        calls = collect_calls(manager, loaded)
        run_all(calls["fcp_add_options"], lambda call: _declare(call, registry))
        config = load_config(registry, sources)
        check_core_options(config)
        plugins = cls(config, manager, calls)
        plugins._recipe = recipe
        plugins._register(loaded, extra)
        plugins._check_choices()
        return plugins

    def _register(
        self, loaded: Sequence[tuple[PluginSource, object]], extra: Sequence[object]
    ) -> None:
        """Keep what was loaded, and collect what it offers."""
        self.plugins = tuple(
            LoadedPlugin(
                source,
                plugin,
                tuple(
                    sorted(
                        hook
                        for hook, calls in self._calls.items()
                        if any(call.source is source for call in calls)
                    )
                ),
            )
            for source, plugin in loaded
        )
        self._local = [
            f"{item.source.name} ({', '.join(needed)})"
            for item in self.plugins
            if any(item.plugin is plugin for plugin in extra)
            and (needed := sorted(_NEEDED_EVERYWHERE.intersection(item.hooks)))
        ]
        self._collect()

    def _check_choices(self) -> None:
        """Check the configured choices of all scopes; log what each plugin offers.

        :raises UsageError: naming everything that is wrong.
        """
        problems = list(self._misnamed()) or [
            problem for choices in self.scopes() for problem in choices.problems()
        ]
        if problems:
            raise UsageError("\n".join(dict.fromkeys(problems)))
        for item in self.plugins:
            offers = [f"{o.kind} {o.name}" for o in self.offers() if o.plugin is item.source]
            logger.info("%s: %s", item.source, ", ".join(offers) or ", ".join(item.hooks))

    # What is offered, and what is chosen.

    def for_population(self, name: str) -> Choices:
        """Return the choices for the tasks of a population."""
        return Choices(self.config.scoped(name), self.offered)

    def for_task(self, spec: TaskSpec) -> TaskChoices:
        """Return the choices for a task; its own win."""
        return TaskChoices(self.config.scoped(spec.population, spec.name), self.offered, spec)

    def offers(self) -> list[Offer]:
        """Return everything that is offered, sorted by kind and name."""
        scopes = self.scopes()
        chosen = {(kind, name) for scope in scopes for kind, name, _ in scope.chosen()}
        replaced = self.aggregator_choices()
        offers = []
        for kind, _, _ in _KINDS:
            for name, factory in sorted(self.offered.table(kind).items()):
                if kind == "command":
                    summary, active = factory.get_short_help_str(80), True
                else:
                    # All ledgers are asked; whatever else there is, is chosen.
                    summary = factory.summary
                    active = kind == "ledger" or (kind, name) in chosen
                if kind == "aggregator":
                    # The reference implementation of a URI carries its name.
                    active = active or (name in factory.uris and name not in replaced)
                offers.append(Offer(kind, name, summary, self._owners[kind, name], active))
        return offers

    def check_task(self, task: TaskSpec) -> list[str]:
        """Return the problems of a task's choices, and those that plugins find, a sentence each."""
        return self.for_task(task).problems() + super().check_task(task)

    # Building the object.

    def _collect(self) -> None:
        for kind, hook, expected in _KINDS:
            run_all(
                self._calls[hook],
                lambda call, k=kind, e=expected: self._take(call, k, e),  # type: ignore[misc]
            )

    def _take(self, call: Call, kind: str, expected: type) -> None:
        answer = call(config=self.config.visible_to(str(call.source)))
        for factory in take(
            answer, call.source, kind, expected, self.offered.table(kind), self._owners
        ):
            if isinstance(factory, AggregationProtocolFactory):
                for file in factory.files:
                    routes.add(file)
                _check_names(factory)

    def _misnamed(self) -> Iterator[str]:
        """Yield where plugins name what there is not, a sentence each."""

        def wrong(kind: str, name: str, why: str) -> str:
            return f"{self._owners[kind, name]}: the {kind} {name!r} {why}"

        for name, protocol in self.protocols.items():
            for uri, chosen in protocol.aggregators.items():
                if chosen not in self.aggregators:
                    why = self.offered.missing("aggregator", chosen)
                    yield wrong("protocol", name, f"has {chosen!r} for {uri}: {why}")
                elif uri not in self.aggregators[chosen].uris:
                    yield wrong("protocol", name, f"has {chosen!r}, which does not serve {uri}.")
        for name, aggregator in self.aggregators.items():
            if aggregator.protocol is not None and aggregator.protocol not in self.protocols:
                why = self.offered.missing("protocol", aggregator.protocol)
                yield wrong("aggregator", name, f"is for a protocol that is not there: {why}")
        for name, policy in self.selection_policies.items():
            options = self.config.section(f"selection.{name}")
            if policy.wraps is not None and policy.wraps not in options:
                hint = did_you_mean(policy.wraps, options, repr)
                why = f"wraps by an option {policy.wraps!r}, which it does not have.{hint}"
                yield wrong("selection", name, why)
        kinds = {kind for kind, _, _ in _KINDS}
        declared = {
            section: option.declared_by
            for option in (value.option for value in self.config.options())
            for section in ([f"{option.section}.{n}" for n in option.of] or [option.section])
        }
        for section, owner in declared.items():
            kind, _, name = section.partition(".")
            known = self.offered.table(kind) if kind in kinds and owner != "fcp" else (name,)
            if name not in map(normal, known):
                hint = did_you_mean(name, known, repr)
                why = f"its options are for the {kind} {name!r}, which nobody offers"
                yield f"{owner}: {why}.{hint}"

    def scopes(self) -> list[Choices]:
        """Return the choices for the server, and for each population and task with a section."""
        return [
            self,
            *(self.for_population(name) for name in self.config.scopes("population")),
            *(
                Choices(self.config.scoped(task=name), self.offered)
                for name in self.config.scopes("task")
            ),
        ]


def _check_names(factory: AggregationProtocolFactory) -> None:
    """Check that a protocol names services and methods that there are, each method but once.

    :raises UsageError: if not, or if a method has a name that is too long for an operation.
    """
    methods: list[str] = []
    for what in ("services", "aborting"):
        if isinstance(getattr(factory, what), str):
            raise UsageError(f"{what} of the protocol {factory.name!r} must be a list of names")
    for service in factory.services:
        found = [route.method for route in routes.of_service(service)]
        if not found:
            hint = did_you_mean(service, routes.services(), repr)
            raise UsageError(
                f"the protocol {factory.name!r} serves {service!r}, which has no calls: "
                f"no file declares them with google.api.http.{hint}"
            )
        methods += found
    for method in methods:
        if methods.count(method) > 1:
            raise UsageError(f"the protocol {factory.name!r} has two methods {method}; rename one")
        if len(method) > MAX_EXTRA:
            raise UsageError(
                f"the protocol {factory.name!r} has a method {method}; a name has at most "
                f"{MAX_EXTRA} letters"
            )
    for name in factory.aborting:
        if name not in methods:
            raise UsageError(
                f"aborting of the protocol {factory.name!r} names {name!r}, which is none of its "
                f"methods.{did_you_mean(name, methods, repr)}"
            )


def _declare(call: Call, registry: OptionRegistry) -> None:
    registry.owner = str(call.source)
    call(options=registry)
