"""How a task's cohorts went, for whoever watches it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fcp_secagg.cohort import Cohort

#: How many cohorts are listed with their sizes; the rest is only counted.
_LISTED = 20


class Course:
    """Counts cohorts and drop-outs."""

    def __init__(self) -> None:
        self._parameters: list[str] = []
        self._sizes: list[int] = []
        self._failed: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()

    def opened(self, cohort: Cohort) -> None:
        """Note what a cohort runs with."""
        said = str(cohort.parameters)
        if said not in self._parameters:
            self._parameters.append(said)

    def ended(self, cohort: Cohort, why: str | None) -> None:
        """Note how a cohort ended.

        :param why: it has no sum; None: it has.
        """
        self._dropped.update(cohort.dropped)
        if why is None:
            self._sizes.append(len(cohort.server.included))
        else:
            self._failed[why] += 1

    def lines(self, cohorts: Iterable[Cohort]) -> Sequence[str]:
        """Return it as lines.

        :param cohorts: those that go on.
        """
        cohorts = list(cohorts)
        dropped = self._dropped + sum((c.dropped for c in cohorts), Counter())
        lines = [f"secure aggregation: {said}" for said in self._parameters[-3:]]
        if self._sizes:
            listed = ", ".join(map(str, self._sizes[-_LISTED:]))
            sums = f"{len(self._sizes)} sum{'s' if len(self._sizes) > 1 else ''}"
            lines.append(f"secure aggregation: {sums}, of {listed} devices")
        lines += [
            f"secure aggregation: {count} cohort{'s' if count > 1 else ''} without a sum: {why}"
            for why, count in self._failed.most_common(5)
        ]
        if dropped:
            told = ", ".join(f"{count} in {name}" for name, count in dropped.most_common())
            lines.append(f"secure aggregation: dropped out: {told}")
        lines += [
            f"secure aggregation: cohort {cohort.number}: {cohort.server.state.name}, "
            f"{cohort.server.answered} of {len(cohort.devices)} devices have answered"
            for cohort in cohorts[:_LISTED]
        ]
        return lines
