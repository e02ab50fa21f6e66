"""How busy a population is, for pace steering."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcp_core.server.services.population import Population


@dataclass(frozen=True, eq=False)
class Load(Mapping[str, Any]):
    """What the hook ``fcp_retry_window`` is told; found out when it is asked for.

    :param now: the time, in seconds.
    :param rejected: whether it is for a device that gets no task: policies say when they want those
        back whom they send away, and nothing of the others.
    """

    population: Population
    now: float
    rejected: bool = False

    def __getitem__(self, name: str) -> Any:
        """Return a figure."""
        return _FIGURES[name](self)

    def __iter__(self) -> Iterator[str]:
        """Iterate over their names."""
        return iter(_FIGURES)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(_FIGURES)

    def __repr__(self) -> str:
        """Show all."""
        return repr(dict(self))


def _missing(load: Load) -> int:
    return sum(task.machine.missing for task in load.population.open_tasks())


_FIGURES: Mapping[str, Callable[[Load], Any]] = {
    "open_tasks": lambda load: len(load.population.open_tasks()),
    "missing": _missing,
    "needs": lambda load: load.population.pace.needs(_missing(load), load.now),
    "waiting": lambda load: load.population.waiting,
    "check_in_rate": lambda load: load.population.pace.rate(load.now),
    "population_size": lambda load: load.population.pace.population_size(load.now),
    "pace": lambda load: load.population.pace,
    "not_before": lambda load: load.population.not_before(load.now) if load.rejected else 0.0,
}
