"""The scenario of a run: the devices, the tasks and the server's settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from fcp_core.errors import UsageError
from fcp_core.lab.devices import DeviceModel
from fcp_core.rounds.policies import RetryWindow

_ACCEPTED = RetryWindow(4 * 3600.0, 8 * 3600.0)
_REJECTED = RetryWindow(3600.0, 3 * 3600.0)


@dataclass(frozen=True)
class TaskModel:
    """A computation that runs round after round. Times are in seconds.

    :param goal_count: the contributions that end a round.
    :param minimum_count: how many are enough at the deadline; None: the goal.
    :param over_selection: devices at work, as a multiple of the contributions missing; None: as
        many as drop-outs seen make necessary.
    :param deadline: how long a round may take.
    :param pause: from the end of a round to the next one.
    :param start: when the first round opens.
    :param eligible: the share of devices that may take it.
    """

    name: str = "train"
    goal_count: int = 100
    minimum_count: int | None = None
    over_selection: float | None = None
    deadline: float = 3600.0
    pause: float = 60.0
    start: float = 0.0
    eligible: float = 1.0

    def __post_init__(self) -> None:
        over = 1.0 if self.over_selection is None else self.over_selection
        if self.goal_count < 1 or over < 1 or not 0 <= self.eligible <= 1:
            raise UsageError(
                f"task {self.name!r} needs a goal and an over-selection of at least 1 and an "
                f"eligible share from 0 to 1."
            )
        if self.minimum_count is not None and not 1 <= self.minimum_count <= self.goal_count:
            raise UsageError(f"task {self.name!r}: minimum_count must be from 1 to the goal.")
        if self.deadline <= 0 or self.pause < 0 or self.start < 0:
            raise UsageError(f"task {self.name!r}: its times must not be negative.")


@dataclass(frozen=True)
class Scenario:
    """Everything about a run but the policy and the seed. Times are in seconds.

    :param hours: how long it takes, in virtual hours.
    :param start: when it starts, in seconds since the epoch: a midnight in UTC.
    :param retry_accepted: when devices come back that were given a task.
    :param retry_rejected: when devices come back that were not.
    :param session_timeout: how long a device waits for a task.
    :param assignment_timeout: how long a device may take for one.
    :param first_sign_timeout: how long it may be silent before another one gets its place too,
        until it is known how long they take.
    :param step: what happens within so much time happens at once: policies are asked once a step.
    """

    devices: DeviceModel = field(default_factory=DeviceModel)
    tasks: tuple[TaskModel, ...] = (TaskModel(),)
    hours: float = 24.0
    start: float = 1_795_305_600.0
    retry_accepted: RetryWindow = _ACCEPTED
    retry_rejected: RetryWindow = _REJECTED
    session_timeout: float = 900.0
    assignment_timeout: float = 600.0
    first_sign_timeout: float = 120.0
    step: float = 0.25

    def __post_init__(self) -> None:
        for window in (self.retry_accepted, self.retry_rejected):
            if not 0 <= window.delay_min <= window.delay_max:
                raise UsageError(f"a retry window needs 0 <= min <= max, not {window}.")
        if not self.tasks or len({task.name for task in self.tasks}) != len(self.tasks):
            raise UsageError("a scenario needs at least one task, and each a name of its own.")
        if self.hours <= 0 or not 0.001 <= self.step <= 60:
            raise UsageError("hours must be above 0, and step from 1 ms to a minute.")
        if min(self.session_timeout, self.assignment_timeout, self.first_sign_timeout) <= 0:
            raise UsageError(
                "session_timeout, assignment_timeout and first_sign_timeout must be above 0."
            )

    @property
    def seconds(self) -> float:
        """How long it takes, in seconds."""
        return self.hours * 3600.0
