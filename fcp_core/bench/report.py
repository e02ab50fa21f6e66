"""What a run measured, and how it is told."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

#: The steps of a session in their order, and what they are made of: ``assignment`` is from the
#: first request for a task to the answer, polls included; ``session`` is all of it.
STEPS = (
    "check-in",
    "specification",
    "eligibility",
    "start",
    "poll",
    "assignment",
    "download",
    "report",
    "begin upload",
    "upload",
    "submit",
    "session",
)


@dataclass(frozen=True)
class StepTimes:
    """How long one step took, over all devices; in milliseconds."""

    count: int
    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> StepTimes:
        """Return them for the times of each, of which there is at least one."""
        ordered = sorted(seconds)
        return cls(
            len(ordered),
            1000 * percentile(ordered, 0.5),
            1000 * percentile(ordered, 0.99),
            1000 * ordered[-1],
        )


@dataclass(frozen=True)
class ServerCost:
    """What the run cost a server in processes of its own.

    :param cpu_seconds: its processor time.
    :param cpu_ms_per_device: that for each device, in milliseconds.
    :param idle_mb: its resident memory before the first device came, in MB.
    :param peak_mb: the most that it had, in MB.
    :param loop_lag_p99_ms: how late its event loop was at most, but for one time in a hundred; None
        if it was never measured.
    """

    cpu_seconds: float
    cpu_ms_per_device: float
    idle_mb: float
    peak_mb: float
    loop_lag_p99_ms: float | None = None


@dataclass(frozen=True)
class TaskEnd:
    """What became of the task.

    :param state: as the admin API calls it.
    :param exact: whether the result is the sum of what was contributed; None if that cannot be
        told, because the answer to some submission was lost.
    """

    state: str
    contributed: int
    goal: int
    exact: bool | None = None


@dataclass(frozen=True)
class Report:
    """What came of a run.

    :param outcomes: how many sessions ended how.
    :param sessions_per_second: sessions that contributed, in each second of the run.
    :param steps: by name, in the order of a session.
    :param retries: requests that were sent again because the server had no room.
    :param connections: how many were made.
    :param timeline: for each second, how many sessions had contributed by its end.
    :param by_body: how many contributed each of the bodies.
    :param server: None if the server is not the run's own.
    :param task: None if it was somebody else's.
    """

    clients: int
    seconds: float
    outcomes: Mapping[str, int]
    sessions_per_second: float
    steps: Mapping[str, StepTimes]
    retries: int
    connections: int
    bytes_sent: int
    bytes_received: int
    driver_cpu_seconds: float
    timeline: Sequence[int] = ()
    by_body: Sequence[int] = ()
    server: ServerCost | None = None
    task: TaskEnd | None = None

    @property
    def contributed(self) -> int:
        """How many devices contributed."""
        return self.outcomes.get("contributed", 0)

    def with_server(self, server: ServerCost | None, task: TaskEnd | None) -> Report:
        """Return it with what is known of the server and the task."""
        return replace(self, server=server, task=task)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


class Recorder:
    """Takes note of what the devices see.

    :param bodies: how many different contributions there are.
    """

    def __init__(self, bodies: int) -> None:
        self.retries = 0
        self.bytes_sent = 0
        self._steps: dict[str, array[float]] = {}
        self._outcomes: Counter[str] = Counter()
        self._contributed = array("d")
        self._by_body = [0] * bodies
        self._began = 0.0

    def begin(self, now: float) -> None:
        """Begin the timeline."""
        self._began = now

    def request(self, step: str, seconds: float, size: int) -> None:
        """Note a request and how many bytes it had."""
        self.bytes_sent += size
        self.step(step, seconds)

    def step(self, step: str, seconds: float) -> None:
        """Note how long a step took."""
        times = self._steps.get(step)
        if times is None:
            times = self._steps[step] = array("d")
        times.append(seconds)

    def outcome(self, outcome: str, kind: int, now: float) -> None:
        """Note how a session ended, which of the bodies it had, and when."""
        self._outcomes[outcome] += 1
        if outcome == "contributed":
            self._by_body[kind] += 1
            self._contributed.append(now - self._began)

    def report(self, *, seconds: float, **measured: Any) -> Report:
        """Return it all.

        :param seconds: how long the run took.
        :param measured: the report's other fields.
        """
        timeline = [0] * (int(seconds) + 1)
        for at in self._contributed:
            timeline[min(int(at), len(timeline) - 1)] += 1
        for second in range(1, len(timeline)):
            timeline[second] += timeline[second - 1]
        return Report(
            seconds=seconds,
            outcomes=dict(self._outcomes.most_common()),
            sessions_per_second=self._outcomes["contributed"] / seconds if seconds else 0.0,
            steps={name: StepTimes.of(self._steps[name]) for name in STEPS if name in self._steps},
            retries=self.retries,
            bytes_sent=self.bytes_sent,
            timeline=timeline,
            by_body=self._by_body,
            **measured,
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value that *share* of the values do not pass.

    :param ordered: ascending, at least one.
    """
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
