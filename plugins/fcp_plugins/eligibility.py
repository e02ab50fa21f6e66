"""The built-in eligibility policies: those that a device evaluates from its own history and data.

Whatever a policy's options are, a task may bring its own, by the policy's name:
``TaskSpec(options={"minimum_separation": {"current_index": 7}})``.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from fcp_core.errors import UsageError
from fcp_core.plugins.config import OptionRegistry
from fcp_core.plugins.values import convert
from fcp_core.protocol.protos.population_eligibility_spec_pb2 import (
    EligibilityPolicyEvalSpec as EvalSpec,
)
from fcp_core.rounds.pacing import duration
from fcp_core.rounds.policies import EligibilityPolicy, EligibilityPolicyFactory, OfferedTask


class _DevicePolicy(EligibilityPolicy):
    """A policy that says with one message what the device has to evaluate."""

    NAME: ClassVar[str]
    SUMMARY: ClassVar[str]
    #: Name, type, default, help and minimum of each option.
    OPTIONS: ClassVar[tuple[tuple[str, str, Any, str, float | None], ...]]

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self.check(options)

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that contradict each other."""

    @abstractmethod
    def fill(self, spec: EvalSpec, options: Mapping[str, Any], now: float) -> bool:
        """Fill in the policy; return whether there is one for this task."""

    def policies(self, population: str, task: OfferedTask, now: float) -> Sequence[EvalSpec]:
        """Return the one policy, with the task's own options."""
        types = {name: kind for name, kind, *_ in self.OPTIONS}
        options = dict(self._options)
        for name, raw in task.options.get(self.NAME, {}).items():
            if name in types:
                options[name] = convert(types[name], raw, Path())
        spec = EvalSpec(name=self.NAME, min_version=options.get("min_version", 1))
        return (spec,) if self.fill(spec, options, now) else ()


class SamplingWithoutReplacement(_DevicePolicy):
    """A device contributes once in ``min_period`` to a task, or to a group of tasks."""

    NAME = "sampling_without_replacement"
    SUMMARY = "a device contributes at most once in a period"
    OPTIONS = (
        ("min_period", "duration", "24h", "how long a device pauses after a contribution", 0),
        (
            "group_regex",
            "str",
            "",
            "count contributions to all tasks whose names match, not to this one only",
            None,
        ),
    )

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse a broken regular expression."""
        try:
            re.compile(options["group_regex"])
        except re.error as error:
            raise UsageError(
                f"[fcp:eligibility.{self.NAME}] group_regex: {options['group_regex']!r} is no "
                f"regular expression: {error}."
            ) from None

    def fill(self, spec: EvalSpec, options: Mapping[str, Any], now: float) -> bool:
        """Fill in the policy."""
        spec.swor_policy.min_period.CopyFrom(duration(options["min_period"]))
        spec.swor_policy.group_regex = options["group_regex"]
        return True


class MinimumSeparation(_DevicePolicy):
    """A device sits out ``minimum_separation`` rounds after one that it contributed to.

    What a round is, is the index that the task brings; without one, periods of time are counted.
    """

    NAME = "minimum_separation"
    SUMMARY = "a device sits out a number of rounds after a contribution"
    OPTIONS = (
        ("minimum_separation", "int", 1, "how many rounds a device sits out", 0),
        ("current_index", "int", None, "the index of the round; a task brings its own", 0),
        ("index_period", "duration", "1h", "without an index, how long a round counts", 0.001),
        (
            "min_trustworthiness_period",
            "duration",
            0,
            "how old a device's history must be to be trusted; 0: any",
            0,
        ),
        (
            "min_version",
            "int",
            # Versions before it do not read back at which index a device contributed.
            3,
            "the version of the policy that a device must implement; others are not eligible",
            1,
        ),
    )

    def fill(self, spec: EvalSpec, options: Mapping[str, Any], now: float) -> bool:
        """Fill in the policy."""
        index = options["current_index"]
        policy = spec.min_sep_policy
        policy.current_index = int(now // options["index_period"]) if index is None else index
        policy.minimum_separation = options["minimum_separation"]
        if options["min_trustworthiness_period"]:
            period = duration(options["min_trustworthiness_period"])
            policy.min_trustworthiness_period.CopyFrom(period)
        return True


class DataAvailability(_DevicePolicy):
    """A device has enough examples in a collection; without a collection nothing is asked."""

    NAME = "data_availability"
    SUMMARY = "a device has enough examples"
    OPTIONS = (
        ("collection_uri", "str", "", "the collection that is counted; not set: no policy", None),
        ("min_example_count", "int", 1, "how many examples are enough", 1),
        (
            "use_example_query_result_format",
            "bool",
            False,
            "count the rows of an example query's result, for devices that know how",
            None,
        ),
    )

    def fill(self, spec: EvalSpec, options: Mapping[str, Any], now: float) -> bool:
        """Fill in the policy."""
        if not options["collection_uri"]:
            return False
        policy = spec.data_availability_policy
        policy.selector.collection_uri = options["collection_uri"]
        policy.min_example_count = options["min_example_count"]
        if options["use_example_query_result_format"]:
            policy.use_example_query_result_format = True
            # Devices that implement version 1 only would count examples instead of rows.
            spec.min_version = 2
        return True


class TensorFlowCustom(_DevicePolicy):
    """The plan of the population's eligibility task decides; without such a plan nobody passes."""

    NAME = "tensorflow_custom"
    SUMMARY = "the plan of the population's eligibility task finds the device eligible"
    OPTIONS = (("arguments", "str", "", "what the plan gets in addition to the task's name", None),)

    def fill(self, spec: EvalSpec, options: Mapping[str, Any], now: float) -> bool:
        """Fill in the policy."""
        spec.tf_custom_policy.arguments = options["arguments"].encode()
        return True


_POLICIES: tuple[type[_DevicePolicy], ...] = (
    SamplingWithoutReplacement,
    MinimumSeparation,
    DataAvailability,
    TensorFlowCustom,
)


def add_options(options: OptionRegistry) -> None:
    """Declare the policies' options."""
    for policy in _POLICIES:
        for name, kind, default, text, minimum in policy.OPTIONS:
            options.add(f"eligibility.{policy.NAME}", name, kind, default, text, minimum=minimum)


def factories() -> list[EligibilityPolicyFactory]:
    """Return the factories that the plugin registers."""
    return [EligibilityPolicyFactory(policy.NAME, policy.SUMMARY, policy) for policy in _POLICIES]
