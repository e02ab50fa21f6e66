"""What an operator promises of a population: ``[fcp:privacy]``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from fcp_core.errors import UsageError
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_privacy.events import Relation, Spent

#: The section of its options.
SECTION = "privacy"

#: What the operator may call the relation, and what it comes to for sums.
RELATIONS: dict[str, Relation] = {
    "zero_out": "zero_out",
    "add_or_remove": "zero_out",
    "replace_one": "replace_one",
}
UNITS = ("device", "device-day")


def add_options(options: OptionRegistry) -> None:
    """Declare the options."""

    def add(name: str, type: str, default: object, help: str, **more: object) -> None:
        options.add(SECTION, name, type, default, help, scopes=("population",), **more)  # type: ignore[arg-type]

    text = "the budget: what all releases together may cost at delta"
    add("epsilon", "float", None, text, minimum=0)
    add("delta", "float", 1e-6, "the delta of epsilon; below one over the population's size")
    add("rho", "float", None, "the budget as zCDP, instead of epsilon", minimum=0)
    text = "refuse tasks whose results have no noise; not set: if there is a budget"
    add("required", "bool", None, text)
    text = "take the word of programs that say they add the noise (costs), where noise is required"
    add("trust_programs", "bool", False, text, operator_only=True)
    add("max_epsilon", "float", None, "what one task may cost at delta", minimum=0)
    text = "whose data the promise is about: all of a device's, or those of one day"
    add("unit", "choice", "device", text, choices=UNITS)
    text = "what a neighbouring set of data is"
    add("relation", "choice", "zero_out", text, choices=tuple(RELATIONS))
    text = "in the operator's words: what makes sure that a device takes part as often as assumed"
    add("participation", "str", "", text)
    text = "how many devices there are at least; delta must be below one over it"
    add("population_size", "int", None, text, minimum=1)
    text = "a file that a restored backup does not bring back: how far each ledger was at least"
    add("watermark", "path", None, text)


@dataclass(frozen=True)
class Policy:
    """The options of one population."""

    epsilon: float | None
    delta: float
    rho: float | None
    required: bool
    trust_programs: bool
    max_epsilon: float | None
    unit: str
    relation: str
    participation: str
    population_size: int | None
    watermark: Path | None

    @classmethod
    def of(cls, config: Config, population: str) -> Policy:
        """Read the options of a population.

        :raises UsageError: if they contradict each other.
        """
        view = config.scoped(population) if population else config
        options = dict(view.section(SECTION))
        if not 0 < options["delta"] < 1:
            raise UsageError(
                f"{view.origin(SECTION, 'delta')}: delta must be above 0 and below 1, "
                f"not {options['delta']}."
            )
        size = options["population_size"]
        if size is not None and options["delta"] * size >= 1:
            raise UsageError(
                f"{view.origin(SECTION, 'delta')}: delta is {options['delta']:g}, and with {size} "
                "devices that lets a mechanism give some of them away whole; take much less than "
                f"{1 / size:g}."
            )
        if options["epsilon"] is not None and options["rho"] is not None:
            raise UsageError(
                f"{view.origin(SECTION, 'rho')}: there is a budget in epsilon already "
                f"({view.origin(SECTION, 'epsilon')}); take one of them away."
            )
        if options["required"] is None:
            options["required"] = options["epsilon"] is not None or options["rho"] is not None
        return cls(**options)

    @property
    def bounded(self) -> bool:
        """Whether there is a budget."""
        return self.epsilon is not None or self.rho is not None

    @property
    def sums_for(self) -> Relation:
        """The relation as events know it."""
        return RELATIONS[self.relation]

    def account(self, population: str, created: float) -> str:
        """Return the name of the account of a task that was submitted at a time."""
        name = f"{SECTION}/{population}/{self.unit}"
        if self.unit == "device-day":
            name += f"/{datetime.fromtimestamp(created, timezone.utc):%Y-%m-%d}"
        return name

    def measure(self, total: Spent) -> float:
        """Return what was spent, in the budget's unit: rho, or epsilon at delta."""
        return total.as_rho() if self.rho is not None else total.at(self.delta)

    def allows(self, total: Spent) -> bool:
        """Whether a total is within the budget."""
        most = self.rho if self.rho is not None else self.epsilon
        return most is None or self.measure(total) <= most

    def say(self, total: Spent) -> str:
        """Return a total as a sentence has it."""
        if self.rho is not None:
            return f"rho {total.as_rho():.4g}"
        return f"epsilon {total.at(self.delta):.4g} at delta {self.delta:g}"

    def say_budget(self) -> str:
        """Return the budget as a sentence has it."""
        if self.rho is not None:
            return f"rho {self.rho:g}"
        return "none" if self.epsilon is None else f"epsilon {self.epsilon:g} at {self.delta:g}"
