"""What an operator says of secure aggregation, and what cohorts follow from it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcp_secagg.parameters import (
    Adversary,
    Parameters,
    Requirements,
    UnmetRequirementsError,
    choose,
)
from fcp_secagg.sums import TRIMMED

if TYPE_CHECKING:
    from fcp_core.plugins.config import OptionRegistry

SECTION = "protocol.secagg"


def add_options(options: OptionRegistry) -> None:
    """Declare the options of ``[fcp:protocol.secagg]``."""

    def add(name: str, type: str, default: object, help: str, **more: Any) -> None:
        options.add(SECTION, name, type, default, help, **more)

    add("cohort", "int", 100, "how many devices a cohort has at most", minimum=2)
    mine: dict[str, Any] = {"operator_only": True}
    text = "how many devices a sum that the server sees has at least"
    add("minimum", "int", 5, text, minimum=2, **mine)
    text = "against whom devices are protected: a server that looks, or lies about who is gone"
    choices = [adversary.value for adversary in Adversary]
    add("adversary", "choice", choices[-1], text, choices=choices, **mine)
    text = "the fraction of the devices that may work with the server"
    add("adversarial_rate", "float", 0.05, text, minimum=0, **mine)
    text = "the fraction of a cohort that may drop out"
    add("dropout_rate", "float", 0.2, text, minimum=0, **mine)
    text = "how long a cohort waits for its devices; then it begins if enough are there"
    add("join_timeout", "duration", "2m", text, minimum=0.001)
    text = "how long each further round may take; then it goes on if enough have answered"
    add("phase_timeout", "duration", "1m", text, minimum=0.001)
    text = "how often a waiting device asks again"
    add("polling_interval", "duration", "1s", text, minimum=0.001)
    text = "the part of the cohorts' sums that is left out at each end; below 0.5"
    options.add(f"aggregator.{TRIMMED}", "fraction", "float", 0.1, text, minimum=0)


@functools.lru_cache(maxsize=1024)
def _chosen(size: int, wanted: Requirements) -> Parameters:
    return choose(size, wanted)


@dataclass(frozen=True)
class Settings:
    """The options; times in seconds.

    :param cohort: how many devices a cohort has at most.
    """

    cohort: int
    wanted: Requirements
    join_timeout: float
    phase_timeout: float
    polling_interval: float

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Read the options; those that are missing have their defaults."""
        wanted = Requirements(
            Adversary(options.get("adversary", Adversary.SEMI_MALICIOUS_SERVER.value)),
            options.get("adversarial_rate", 0.05),
            options.get("dropout_rate", 0.2),
            options.get("minimum", 5),
        )
        return cls(
            options.get("cohort", 100),
            wanted,
            options.get("join_timeout", 120.0),
            options.get("phase_timeout", 60.0),
            options.get("polling_interval", 1.0),
        )

    @property
    def spare_timeout(self) -> float:
        """How long a cohort waits for devices beyond those that it needs, in seconds."""
        return self.join_timeout / 10

    def parameters(self, size: int) -> Parameters:
        """Return the parameters of a cohort of a size.

        :raises UnmetRequirementsError: if there are none.
        """
        return _chosen(size, self.wanted)

    @property
    def least(self) -> int:
        """How many devices the smallest cohort has of which as many may drop out as are to.

        :raises UnmetRequirementsError: if no cohort may be as large as that.
        """
        for size in range(self.wanted.minimum, self.cohort + 1):
            stay = math.floor(size * (1 - self.wanted.dropout_rate) + 1e-9)
            if stay < self.wanted.minimum:
                continue
            try:
                self.parameters(size)
            except UnmetRequirementsError:
                continue
            return size
        # What is wrong with the largest one is wrong with all.
        self.parameters(self.cohort)
        raise UnmetRequirementsError(
            f"of a cohort of {self.cohort} devices a fraction of {self.wanted.dropout_rate:g} may "
            f"drop out, which leaves fewer than {self.wanted.minimum}"
        )

    def size(self, wanted: int, cap: int | None) -> int:
        """Return how many devices the next cohort is to have.

        :param wanted: how many contributions it and those after it are to bring.
        :param cap: how many devices may be at work; None: any number.
        """
        most = self.cohort if cap is None else min(self.cohort, cap)
        cohorts = max(1, math.ceil(wanted / most))
        return min(most, max(self.least, math.ceil(wanted / cohorts)))

    def problems(self, goal: int, cap: int | None) -> list[str]:
        """Say why a task cannot be done with these options, a sentence each."""
        minimum = self.wanted.minimum
        try:
            least = self.least
        except UnmetRequirementsError as error:
            return [f"secure aggregation: {error}."]
        if goal < minimum:
            return [
                f"secure aggregation: a sum has at least {minimum} devices (minimum), the task's "
                f"goal_count is {goal}."
            ]
        if cap is not None and cap < least:
            return [
                f"secure aggregation: a cohort has at least {least} devices, the task's "
                f"max_at_work is {cap}."
            ]
        return []
