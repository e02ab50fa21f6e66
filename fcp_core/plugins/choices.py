"""Resolves configured names to factories and builds them: for the server or a population."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import Engine, EngineFactory
from fcp_core.errors import UsageError, plugin_errors
from fcp_core.plugins.config import Config, did_you_mean
from fcp_core.plugins.discovery import explain
from fcp_core.plugins.pages import PagesFactory
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.ledger import Ledger
from fcp_core.rounds.policies import (
    BoundPolicy,
    EligibilityPolicy,
    EligibilityPolicyFactory,
    SelectionPolicy,
    SelectionPolicyFactory,
)
from fcp_core.rounds.protocols import AggregationProtocol, AggregationProtocolFactory
from fcp_core.storage.contract import Storage, StorageFactory

T = TypeVar("T")

#: What the factories of a kind make.
_MADE: Mapping[str, type] = {
    "storage": Storage,
    "engine": Engine,
    "selection": SelectionPolicy,
    "protocol": AggregationProtocol,
    "eligibility": EligibilityPolicy,
}

#: Where what our other distributions offer comes from, by kind and name.
ELSEWHERE: Mapping[tuple[str, str], str] = {
    ("command", "dashboard"): "fcp-server-dashboard",
    ("command", "privacy"): "fcp-server-privacy",
    ("command", "tasks-report"): "fcp-server-dashboard",
    ("command", "top"): "fcp-server-dashboard",
    ("engine", "dask"): "fcp-server-dask",
    ("ledger", "privacy"): "fcp-server-privacy",
    ("pages", "dashboard"): "fcp-server-dashboard",
    ("protocol", "secagg"): "fcp-server-secagg",
    ("selection", "lottery"): "fcp-server-selection-lottery",
    ("storage", "postgres"): "fcp-server-postgres",
    **{
        ("aggregator", name): "fcp-server-robust"
        for name in (
            *("coordinate_median", "geometric_median", "krum"),
            *("multi_krum", "norm_clipping", "trimmed_mean"),
        )
    },
}


@dataclass(frozen=True)
class Offered:
    """The registered factories of each kind, by name."""

    aggregators: dict[str, AggregatorFactory] = field(default_factory=dict)
    protocols: dict[str, AggregationProtocolFactory] = field(default_factory=dict)
    selection_policies: dict[str, SelectionPolicyFactory] = field(default_factory=dict)
    eligibility_policies: dict[str, EligibilityPolicyFactory] = field(default_factory=dict)
    storages: dict[str, StorageFactory] = field(default_factory=dict)
    engines: dict[str, EngineFactory] = field(default_factory=dict)
    pages: dict[str, PagesFactory] = field(default_factory=dict)
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    commands: dict[str, click.Command] = field(default_factory=dict)

    def table(self, kind: str) -> dict[str, Any]:
        """Return the factories of a kind: aggregator, protocol, selection, ..., by name."""
        tables: dict[str, dict[str, Any]] = {
            "aggregator": self.aggregators,
            "protocol": self.protocols,
            "selection": self.selection_policies,
            "eligibility": self.eligibility_policies,
            "storage": self.storages,
            "engine": self.engines,
            "pages": self.pages,
            "ledger": self.ledgers,
            "command": self.commands,
        }
        return tables[kind]

    def missing(self, kind: str, name: str) -> str:
        """Return the error message for a name that no plugin offers."""
        known = sorted(self.table(kind))
        source = ELSEWHERE.get((kind, name))
        if kind == "aggregator" and ("dp_" in name or name.startswith("differential_privacy")):
            source = "fcp-server-privacy"
        hint = (
            f" It comes with {source}: pip install {source}."
            if source is not None
            else did_you_mean(name, known, repr)
        )
        more = f" Is fcp-server-{name} installed?" if kind == "pages" and source is None else ""
        return (
            f"no active plugin offers the {kind} {name!r}.{hint} "
            f"Installed: {', '.join(known) or 'none'}.{more}"
        )


class Choices:
    """The choices for all tasks, or for those of one population.

    :param config: the configuration as it is there; see :meth:`Config.scoped`.
    """

    def __init__(self, config: Config, offered: Offered) -> None:
        self.config = config
        self.offered = offered
        #: What is offered, by name.
        self.aggregators, self.protocols = offered.aggregators, offered.protocols
        self.selection_policies = offered.selection_policies
        self.eligibility_policies = offered.eligibility_policies
        self.storages, self.engines = offered.storages, offered.engines
        self.pages, self.commands = offered.pages, offered.commands

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """The ledgers: all that there are."""
        return tuple(self.offered.ledgers.values())

    @property
    def selection(self) -> str:
        """The name of the selection policy."""
        return self._name_of("selection")

    @property
    def protocol(self) -> str:
        """The name of the aggregation protocol."""
        return self._name_of("protocol")

    def make_storage(self) -> Storage:
        """Build the storage.

        :raises UsageError: if its options do not do.
        """
        name = self._name_of("storage")
        return _built("storage", name, self.storages[name].make, self._options("storage", name))

    def make_engine(self) -> Engine:
        """Build the engine.

        :raises UsageError: if its options do not do.
        """
        name = self._name_of("engine")
        options = self._options("engine", name)
        return _built("engine", name, self.engines[name].make, self.aggregators, options)

    def make_selection_policy(
        self, name: str | None = None, options: Mapping[str, Any] | None = None
    ) -> SelectionPolicy:
        """Build a selection policy, and the one that it wraps, if it does.

        :param name: None for the one that is chosen.
        :param options: options that win over the configured ones.
        :raises UsageError: if there is none of that name, or its options are invalid.
        """
        *wrappers, (innermost, own) = self.selection_chain(name, options)
        policy = _built("selection", innermost, self.selection_policies[innermost].make, own)
        for wrapper, wrapper_options in reversed(wrappers):
            make = self.selection_policies[wrapper].make
            wrapped = BoundPolicy(policy, own)
            policy = _built("selection", wrapper, make, wrapper_options, wrapped)
            own = wrapper_options
        return policy

    def selection_chain(
        self, name: str | None = None, options: Mapping[str, Any] | None = None
    ) -> list[tuple[str, Mapping[str, Any]]]:
        """Return a selection policy and those that it wraps, outermost first, with their options.

        The first one's options are for ``SelectionView.options``. The arguments are as for
        :meth:`make_selection_policy`.

        :raises UsageError: if one is not installed or wraps itself, or the options do not do.
        """
        name = self._installed("selection", name)
        chain = [(name, self._options("selection", name, options))]
        while (wraps := self.selection_policies[name].wraps) is not None:
            inner = chain[-1][1][wraps]
            label = f"[fcp:selection.{name}] {wraps}"
            if inner not in self.selection_policies:
                raise UsageError(f"{label}: {self.offered.missing('selection', inner)}")
            if inner in dict(chain):
                circle = " wraps ".join([*dict(chain), inner])
                raise UsageError(f"{label}: {circle}; a policy cannot wrap itself.")
            chain.append((inner, self._options("selection", inner)))
            name = inner
        return chain

    def make_protocol(
        self, name: str | None = None, options: Mapping[str, Any] | None = None
    ) -> AggregationProtocol:
        """Build an aggregation protocol's machine; the arguments are as for selection policies.

        :raises UsageError: if there is none of that name, or its options are invalid.
        """
        name = self._installed("protocol", name)
        make = self.protocols[name].make
        return _built("protocol", name, make, self._options("protocol", name, options))

    def protocol_factory(self) -> AggregationProtocolFactory:
        """Return the factory of the aggregation protocol.

        :raises UsageError: if it is not installed.
        """
        return self.protocols[self._installed("protocol", None)]

    def make_eligibility_policies(self) -> list[EligibilityPolicy]:
        """Build the eligibility policies, in the configured order.

        :raises UsageError: if the options of one do not do.
        """
        return [self.make_eligibility_policy(name) for name in self.config.get("eligibility")]

    def make_eligibility_policy(
        self, name: str, options: Mapping[str, Any] | None = None
    ) -> EligibilityPolicy:
        """Build an eligibility policy.

        :param options: options that win over the configured ones.
        :raises UsageError: if there is none of that name, or its options are invalid.
        """
        name = self._installed("eligibility", name)
        make = self.eligibility_policies[name].make
        return _built("eligibility", name, make, self._options("eligibility", name, options))

    def aggregator_choices(self) -> dict[str, str]:
        """Return which aggregator serves which intrinsic URI, where it is not the reference one."""
        return {
            uri: name
            for name in self.config.get("aggregator")
            for uri in sorted(self.aggregators[name].uris)
        }

    def aggregator_options(self) -> dict[str, Mapping[str, Any]]:
        """Return the options of every aggregator that has any, by the aggregator's name."""
        sections = {name: self._options("aggregator", name) for name in self.aggregators}
        return {name: dict(options) for name, options in sections.items() if options}

    def chosen(self) -> list[tuple[str, str, str]]:
        """Return (kind, name, origin) of everything that the configuration chooses."""
        chosen = [
            (kind, self.config.get(kind), self.config.origin("", kind))
            for kind in ("storage", "engine", "protocol", "selection")
        ]
        for kind in ("eligibility", "aggregator", "pages"):
            origin = self.config.origin("", kind)
            chosen += [(kind, name, origin) for name in self.config.get(kind)]
        return chosen

    def problems(self) -> list[str]:
        """Return the problems of the choices, one sentence each."""
        problems = []
        served: dict[str, str] = {}
        for kind, name, origin in self.chosen():
            where = f"[fcp] {kind} (default)" if origin == "default" else origin
            if name not in self.offered.table(kind):
                problems.append(f"{where}: {self.offered.missing(kind, name)}")
            elif kind in ("selection", "eligibility"):
                try:
                    if kind == "selection":
                        self.selection_chain(name)
                    else:
                        self.make_eligibility_policy(name)
                except UsageError as error:
                    problems.append(str(error))
            elif kind == "aggregator":
                shared: dict[str, list[str]] = {}
                for uri in sorted(self.aggregators[name].uris):
                    other = served.setdefault(uri, name)
                    if other != name:
                        shared.setdefault(other, []).append(uri)
                problems += [
                    f"{where}: {other} and {name} both serve {', '.join(uris)}; keep one."
                    for other, uris in shared.items()
                ]
        return problems

    def _name_of(self, kind: str) -> str:
        name: str = self.config.get(kind)
        return name

    def _options(
        self, kind: str, name: str, options: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        return self.config.section(f"{kind}.{name}", options)

    def _installed(self, kind: str, name: str | None) -> str:
        name = self._name_of(kind) if name is None else name
        if name not in self.offered.table(kind):
            raise UsageError(self.offered.missing(kind, name))
        return name


def _built(kind: str, name: str, make: Callable[..., T], *arguments: Any) -> T:
    """Call a factory.

    :raises UsageError: naming it, if it raises anything but an error of its own choice, or makes
        something else.
    """
    try:
        made = make(*arguments)
        if not isinstance(made, _MADE[kind]):
            raise TypeError(f"it makes {made!r:.200}, which is no {_MADE[kind].__name__}")
        return made
    except (UsageError, StatusError):
        raise
    except plugin_errors() as error:
        raise UsageError(f"the {kind} {name!r} cannot be built: {explain(error)}.") from error
