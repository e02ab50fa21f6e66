"""The results of a run of the policy lab."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fcp_core.rounds.tasks import TaskState


@dataclass(frozen=True)
class RoundReport:
    """The result of one round. Times are in seconds after the start.

    :param closed: None if it was open at the end.
    :param pending: devices that were still at work at the end.
    :param reasons: why how many assignments ended without a contribution: ``round_over`` (the goal
        was reached without them), ``computation`` (the device failed), ``silent`` (it
        gave no sign until the assignment timeout or the end), ``assignment_timeout``.
    """

    task: str
    opened: float
    closed: float | None
    state: TaskState
    assigned: int
    contributed: int
    pending: int
    reasons: Mapping[str, int]

    @property
    def dropped(self) -> int:
        """How many assignments ended without a contribution."""
        return sum(self.reasons.values())

    @property
    def duration(self) -> float | None:
        """From its opening to its end, in seconds; None if it has not ended."""
        return None if self.closed is None else self.closed - self.opened


@dataclass(frozen=True, eq=False)
class Report:
    """The result of one run.

    :param contributions: how many contributions each device made.
    :param slow_contributions: how many the slowest quarter of the devices made.
    :param check_ins: the check-ins of every second.
    :param available: (seconds after the start, share of devices available), every ten minutes.
    :param turned_away: the devices that got no task, by reason: ``no_task`` (none had room),
        ``not_selected`` (the policy said no), ``expired`` (held for too long).
    :param waiting: devices that were held at the end.
    :param held: for how long devices were held, in seconds, all together.
    :param late: contributions that came after their round was over.
    :param problems: what was wrong with the policy's decisions, and how often.
    """

    policy: str
    seed: int
    seconds: float
    rounds: tuple[RoundReport, ...]
    contributions: npt.NDArray[np.uint32]
    slow_contributions: int
    check_ins: npt.NDArray[np.int32]
    available: tuple[tuple[float, float], ...]
    turned_away: Mapping[str, int]
    waiting: int
    held: float
    late: int
    problems: Mapping[str, int]

    @property
    def assigned(self) -> int:
        """How many times a device was given a task."""
        return sum(round_.assigned for round_ in self.rounds)

    @property
    def contributed(self) -> int:
        """How many contributions are in an aggregate."""
        return sum(round_.contributed for round_ in self.rounds)

    @property
    def pending(self) -> int:
        """How many assignments were in progress at the end."""
        return sum(round_.pending for round_ in self.rounds)

    @property
    def dropped(self) -> int:
        """How many assignments ended without a contribution."""
        return sum(round_.dropped for round_ in self.rounds)

    @property
    def reasons(self) -> Counter[str]:
        """Why assignments ended without a contribution."""
        return sum((Counter(round_.reasons) for round_ in self.rounds), Counter())

    @property
    def waste(self) -> float:
        """The share of ended assignments that led to no contribution."""
        ended = self.contributed + self.dropped
        return self.dropped / ended if ended else 0.0

    @property
    def completed(self) -> tuple[RoundReport, ...]:
        """The rounds that have a result."""
        return tuple(r for r in self.rounds if r.state is TaskState.COMPLETED)

    @property
    def failed(self) -> int:
        """How many rounds ended without a result."""
        return sum(round_.state is TaskState.FAILED for round_ in self.rounds)

    def round_time(self, quantile: float) -> float | None:
        """Return a quantile of the durations of the rounds that have a result, in seconds."""
        durations = [r.duration for r in self.completed if r.duration is not None]
        return float(np.quantile(durations, quantile)) if durations else None

    @property
    def gini(self) -> float:
        """The Gini coefficient of contributions per device: 0 if all made as many."""
        return gini(self.contributions)

    @property
    def reached(self) -> float:
        """The share of devices that contributed at all."""
        return float(np.mean(self.contributions > 0))

    @property
    def slow_share(self) -> float:
        """The slowest quarter's share of the contributions; 0.25 if speed did not matter."""
        return self.slow_contributions / self.contributed if self.contributed else 0.0

    @property
    def mean_load(self) -> float:
        """Check-ins a second."""
        return float(self.check_ins.sum()) / self.seconds

    @property
    def peak_load(self) -> int:
        """The most check-ins in a second."""
        return int(self.check_ins.max(initial=0))


def gini(counts: npt.NDArray[np.uint32]) -> float:
    """Return the Gini coefficient of counts: 0 if all are equal, near 1 if one has all."""
    total = int(counts.sum())
    if not total:
        return 0.0
    ordered = np.sort(counts).astype(np.float64)
    ranks = np.arange(1, len(ordered) + 1)
    return float(2 * (ranks @ ordered) / (len(ordered) * total) - (len(ordered) + 1) / len(ordered))


def lorenz(counts: npt.NDArray[np.uint32], points: int = 200) -> list[tuple[float, float]]:
    """Return the Lorenz curve: (share of the devices, share of the contributions they made)."""
    sums = np.concatenate([[0.0], np.cumsum(np.sort(counts), dtype=np.float64)])
    total = sums[-1] or 1.0
    places = np.unique(np.linspace(0, len(counts), points).astype(np.int64))
    return [(place / len(counts), float(sums[place]) / total) for place in places.tolist()]
