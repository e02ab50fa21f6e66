"""Resolves what a task names to factories, where the operator lets it choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins.choices import Choices, Offered
from fcp_core.plugins.config import Config, did_you_mean
from fcp_core.plugins.settings import TaskSettings
from fcp_core.rounds.policies import EligibilityPolicy
from fcp_core.rounds.specification import TaskSpec


class TaskChoices(Choices):
    """The choices for one task; its own win over the configured ones.

    :param config: the configuration as it is for the task.
    """

    def __init__(self, config: Config, offered: Offered, spec: TaskSpec) -> None:
        super().__init__(config, offered)
        self._spec = spec
        #: What the task and the configuration say in numbers.
        self.settings = TaskSettings.of(config, spec)

    def aggregator_choices(self) -> dict[str, str]:
        """Return which aggregator serves which intrinsic URI, where it is not the reference one."""
        protocol = self.protocols.get(self.protocol)
        fitting = {} if protocol is None else dict(protocol.aggregators)
        return {**fitting, **super().aggregator_choices(), **self._spec.aggregators}

    def own_eligibility_policies(self) -> list[EligibilityPolicy] | None:
        """Build the task's eligibility policies; None if they are those of its population.

        They are its own if the configuration has a section for tasks of its name, or if it names
        policies itself. Those come on top of the configured ones, with the task's options: they
        cannot weaken what the operator asks of a device.

        :raises UsageError: if the options of one do not do.
        """
        if not self._spec.eligibility and self._spec.name not in self.config.scopes("task"):
            return None
        configured = Choices(self.config, self.offered).make_eligibility_policies()
        return configured + [self.make_eligibility_policy(name) for name in self._spec.eligibility]

    def problems(self) -> list[str]:
        """Return the problems of the task's choices, one sentence each."""
        spec = self._spec
        problems = self.refusals()
        sections: dict[str, str] = {self.protocol: f"protocol.{self.protocol}"}
        protocol = self.protocols.get(self.protocol)
        if protocol is None:
            problems.append(self.offered.missing("protocol", self.protocol))
        elif protocol.check is not None:
            problems += protocol.check(spec, self._options("protocol", self.protocol))
        try:
            chain = [name for name, _ in self.selection_chain()]
        except UsageError as error:
            problems.append(str(error))
            # Its options are wrong, or it is not there; either way they are its own.
            chain = [self.selection]
        sections |= {name: f"selection.{name}" for name in chain}
        for uri, name in spec.aggregators.items():
            if name not in self.aggregators:
                problems.append(self.offered.missing("aggregator", name))
            elif uri not in self.aggregators[name].uris:
                serves = ", ".join(sorted(self.aggregators[name].uris))
                problems.append(f"the aggregator {name!r} serves {serves}, not {uri}.")
            elif self.aggregators[name].protocol not in (None, self.protocol):
                problems.append(
                    f"the aggregator {name!r} takes what {self.aggregators[name].protocol} has "
                    f"summed; under the protocol {self.protocol!r} it would get the contributions "
                    "themselves."
                )
        sections |= {name: f"aggregator.{name}" for name in self.aggregators}
        problems += [
            self.offered.missing("eligibility", name)
            for name in spec.eligibility
            if name not in self.eligibility_policies
        ]
        # An eligibility task may bring a policy at any time.
        sections |= {name: f"eligibility.{name}" for name in self.eligibility_policies}
        for name, options in spec.options.items():
            if name not in sections:
                hint = did_you_mean(name, sections, repr)
                problems.append(f"the task has options for {name!r}, which it does not use.{hint}")
                continue
            try:
                self.config.section(sections[name], options)
                if name in self.eligibility_policies:
                    self.make_eligibility_policy(name)
            except UsageError as error:
                problems.append(str(error))
        return list(dict.fromkeys(problems))

    def refusals(self, *, restored: bool = False) -> list[str]:
        """Return what the task names or sets although the operator decides, a sentence each.

        :param restored: whether it was submitted in an earlier run: it then is refused only what
            the configuration refuses in so many words.
        """
        if not restored and self.config.get("require_aggregators") is None:
            how = "require_aggregators = no would let tasks choose"
            return [f"{each}; {how}." for each in self.departures()] + self._refusals()
        return self._refusals()

    def departures(self) -> list[str]:
        """Return where the task undoes what the configuration says of aggregators."""
        configured = Choices(self.config, self.offered).aggregator_choices()
        origin = self.config.origin("", "aggregator")
        found = [
            f"the aggregator of {uri} is {configured[uri]!r} here and not {name!r} ({origin})"
            for uri, name in sorted(self._spec.aggregators.items())
            if configured.get(uri, name) != name
        ]
        for name in sorted(set(configured.values()) & set(self._spec.options)):
            section = f"aggregator.{name}"
            theirs = self.config.section(section)
            for option, value in self.config.section(section, self._spec.options[name]).items():
                where = self.config.origin(section, option)
                if where != "default" and value != theirs[option]:
                    found.append(f"{option} of {name!r} is {theirs[option]!r} here ({where})")
        return found

    def _refusals(self) -> list[str]:
        spec, configured = self._spec, Choices(self.config, self.offered)
        wanted: list[tuple[str, str, str | None, str]] = [
            ("protocol", "require_protocol", spec.protocol, configured.protocol),
            ("selection", "require_selection", spec.selection, configured.selection),
            ("durability", "require_durability", spec.durability, self.config.get("durability")),
        ]
        aggregators = configured.aggregator_choices()
        wanted += [
            (f"aggregator of {uri}", "require_aggregators", name, aggregators.get(uri, uri))
            for uri, name in sorted(spec.aggregators.items())
        ]
        problems = [
            f"the {what} is {theirs!r} here and not {ours!r}: {self._required(option)}."
            for what, option, ours, theirs in wanted
            if ours is not None and ours != theirs and self.config.get(option)
        ]
        tables: dict[str, Mapping[str, Any]] = {
            "require_protocol": self.protocols,
            "require_selection": self.selection_policies,
            "require_aggregators": self.aggregators,
        }
        problems += [
            f"the options of {name!r} are the operator's: {self._required(option)}."
            for option, table in tables.items()
            if self.config.get(option)
            for name, options in sorted(spec.options.items())
            if name in table and options
        ]
        return problems

    def _required(self, option: str) -> str:
        return f"{option} is set ({self.config.origin('', option)})"

    def _name_of(self, kind: str) -> str:
        own = {"protocol": self._spec.protocol, "selection": self._spec.selection}.get(kind)
        return super()._name_of(kind) if own is None else own

    def _options(
        self, kind: str, name: str, options: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        return super()._options(kind, name, {**self._spec.options.get(name, {}), **(options or {})})
