"""What a benchmark gives back: goals, each with what was measured against its limit.

Every ``bench_*.py`` that measures a goal has a function ``goals(quick)`` that returns a list of
:class:`Goal`; ``benchmarks/report.py`` runs them all and prints one table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    :param group: what it belongs to, such as ``"fold"``.
    :param what: what was measured, and against what.
    :param measured: the figure, in *unit*.
    :param limit: what it may not pass, in *unit*.
    :param unit: ``"x"`` for a ratio, or ``"MB"``, ``"ms"``, ``"s"``, ``"%"``.
    :param at_most: whether *limit* is the largest good figure; otherwise the smallest.
    """

    group: str
    what: str
    measured: float
    limit: float
    unit: str = "x"
    at_most: bool = True

    @property
    def met(self) -> bool:
        """Whether the figure is within its limit."""
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    def row(self) -> tuple[str, str, str, str, str]:
        """Return group, what, measured, limit, and whether it is met, as text."""
        sign = "at most" if self.at_most else "at least"
        return (
            self.group,
            self.what,
            f"{self.measured:.3g} {self.unit}",
            f"{sign} {self.limit:g} {self.unit}",
            "met" if self.met else "not met",
        )


def main(goals: Callable[[bool], Sequence[Goal]], text: str | None) -> None:
    """Measure and print, as the command line says.

    :param goals: measures; less if it is to be quick.
    :param text: what the benchmark says of itself.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="measure less")
    for goal in goals(parser.parse_args().quick):
        print("  ".join(goal.row()))
