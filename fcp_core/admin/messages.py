"""The messages of the admin API: what is sent as JSON. Bytes travel as base64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.eligibility import PLAN_POLICY, EligibilityTask, PolicyChoice
from fcp_core.rounds.tasks import AssignmentMode, TaskSpec, TaskState, TaskStatus
from fcp_core.tasks.tables import Table

State: TypeAlias = Literal["open", "closing", "completed", "failed", "cancelled"]

Name: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=500,
        description="words divided by slashes",
        pattern=r"^\w+(/\w+)*$",
    ),
]
Key: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        description="chosen by the client: a second submission with it returns the first's task",
    ),
]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=1e9, description="in seconds")]

#: How long a wait may last, in seconds, and how long it lasts if nothing is said.
MAX_WAIT = 60.0
DEFAULT_WAIT = 30.0


class Submission(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A task that is to be offered; the fields are those of a ``TaskSpec``."""

    population: Name
    name: Name
    #: A serialized ``ClientOnlyPlan``.
    plan: bytes
    #: A serialized aggregation ``Configuration``.
    aggregation: bytes
    goal_count: Count
    key: Key | None = None
    checkpoint: bytes = b""
    minimum_count: Count | None = None
    assignment_mode: Literal["single", "multiple"] = "single"
    deadline: Seconds | None = None
    over_selection: Annotated[float, Meta(ge=1, le=1e6)] | None = None
    max_at_work: Annotated[int, Meta(ge=1)] | None = None
    resources: Literal["inline", "uri"] | None = None
    slices: dict[str, dict[int, bytes]] = {}
    result_format: Literal["tf_v1", "federated_compute"] = "tf_v1"
    protocol: str | None = None
    selection: str | None = None
    eligibility: list[str] = []
    aggregators: dict[str, str] = {}
    options: dict[str, dict[str, Any]] = {}

    @classmethod
    def of(cls, spec: TaskSpec, key: str | None = None) -> Submission:
        """Return the submission of a specification."""
        return cls(
            population=spec.population,
            name=spec.name,
            plan=spec.plan,
            aggregation=spec.aggregation,
            goal_count=spec.goal_count,
            key=key,
            checkpoint=spec.checkpoint,
            minimum_count=spec.minimum_count,
            assignment_mode="single"
            if spec.assignment_mode is AssignmentMode.SINGLE
            else "multiple",
            deadline=spec.deadline,
            over_selection=spec.over_selection,
            max_at_work=spec.max_at_work,
            resources=spec.resources,
            slices={name: dict(slices) for name, slices in spec.slices.items()},
            result_format=spec.result_format,
            protocol=spec.protocol,
            selection=spec.selection,
            eligibility=list(spec.eligibility),
            aggregators=dict(spec.aggregators),
            options={name: dict(options) for name, options in spec.options.items()},
        )

    def to_spec(self) -> TaskSpec:
        """Return the specification."""
        return TaskSpec(
            population=self.population,
            name=self.name,
            plan=self.plan,
            aggregation=self.aggregation,
            goal_count=self.goal_count,
            checkpoint=self.checkpoint,
            minimum_count=self.minimum_count,
            assignment_mode=AssignmentMode[self.assignment_mode.upper()],
            deadline=self.deadline,
            over_selection=self.over_selection,
            max_at_work=self.max_at_work,
            resources=self.resources,
            slices=self.slices,
            result_format=self.result_format,
            protocol=self.protocol,
            selection=self.selection,
            eligibility=self.eligibility,
            aggregators=self.aggregators,
            options=self.options,
        )


class Error(msgspec.Struct):
    """An error: a canonical code, its name, and a sentence for the sender of the request."""

    code: Annotated[int, Meta(ge=1, le=16)]
    status: str
    message: str

    @classmethod
    def of(cls, error: StatusError) -> Error:
        """Return the message of an error."""
        return cls(int(error.code), error.code.name, error.message)

    def to_error(self) -> StatusError:
        """Return the error."""
        return StatusError(Code(self.code), self.message)


class Task(msgspec.Struct, kw_only=True):
    """A task as a watcher sees it; times are seconds since 1970."""

    task_id: str
    population: str
    name: str
    state: State
    goal_count: int
    assigned: int
    contributed: int
    pending: int
    dropped: int
    created: float
    finished: float | None
    error: Error | None

    @classmethod
    def of(cls, status: TaskStatus) -> Task:
        """Return the message of a status."""
        return cls(
            task_id=status.task_id,
            population=status.population,
            name=status.name,
            state=status.state.value,
            goal_count=status.goal_count,
            assigned=status.assigned,
            contributed=status.contributed,
            pending=status.pending,
            dropped=status.dropped,
            created=status.created,
            finished=status.finished,
            error=None if status.error is None else Error.of(StatusError(*status.error)),
        )

    @property
    def is_final(self) -> bool:
        """Whether nothing can change any more."""
        return TaskState(self.state).is_final

    def check(self) -> None:
        """Raise if the task ended without a result.

        :raises StatusError: why.
        """
        if self.error is not None:
            raise self.error.to_error()


class TaskList(msgspec.Struct):
    """Tasks, oldest first."""

    tasks: list[Task]


class ListQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Which tasks are listed."""

    population: str | None = None
    state: State | None = None


class WaitQuery(msgspec.Struct, forbid_unknown_fields=True):
    """How long to wait for a task's end."""

    timeout: Annotated[float, Meta(ge=0, le=MAX_WAIT, description="in seconds")] = DEFAULT_WAIT


class Cancellation(msgspec.Struct, forbid_unknown_fields=True):
    """Why a task is cancelled."""

    reason: Annotated[str, Meta(min_length=1, max_length=1000)] = "it was cancelled"


class Population(msgspec.Struct, kw_only=True):
    """A population and how busy it is.

    ``missing`` counts the contributions that its open tasks still need, ``waiting`` the devices
    that wait for a task, ``at_work`` those that have one and are not done with it,
    ``check_in_rate`` the check-ins a second.
    """

    name: str
    open_tasks: int
    missing: int
    waiting: int
    at_work: int
    check_in_rate: float

    @classmethod
    def of(cls, name: str, load: Mapping[str, Any], at_work: int) -> Population:
        """Return the message of a population's load."""
        rate = float(load["check_in_rate"])
        return cls(
            name=name,
            open_tasks=load["open_tasks"],
            missing=load["missing"],
            waiting=load["waiting"],
            at_work=at_work,
            check_in_rate=rate if math.isfinite(rate) else 0.0,
        )


class PopulationList(msgspec.Struct):
    """All populations, sorted by name."""

    populations: list[Population]


class EligibilityPolicy(
    msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """An eligibility policy by name, its options, and the tasks that it is for; null: all."""

    policy: Annotated[str, Meta(min_length=1, max_length=200)]
    options: dict[str, Any] = {}
    task_names: list[Name] | None = None


class EligibilitySettings(
    msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """The eligibility task of a population; the fields are those of an ``EligibilityTask``."""

    #: A serialized ``ClientOnlyPlan`` with an eligibility router; empty: none.
    plan: bytes = b""
    checkpoint: bytes = b""
    name: Annotated[str, Meta(min_length=1, max_length=200)] = PLAN_POLICY
    arguments: bytes = b""
    task_names: list[Name] | None = None
    policies: list[EligibilityPolicy] = []
    covers: list[str] = []

    @classmethod
    def of(cls, task: EligibilityTask) -> EligibilitySettings:
        """Return the message of a task."""
        return cls(
            plan=task.plan,
            checkpoint=task.checkpoint,
            name=task.name,
            arguments=task.arguments,
            task_names=_list(task.task_names),
            policies=[
                EligibilityPolicy(
                    policy=choice.policy,
                    options=dict(choice.options),
                    task_names=_list(choice.task_names),
                )
                for choice in task.policies
            ],
            covers=list(task.covers),
        )

    def to_task(self) -> EligibilityTask:
        """Return the task.

        :raises StatusError: INVALID_ARGUMENT if it is invalid.
        """
        return EligibilityTask(
            plan=self.plan,
            checkpoint=self.checkpoint,
            name=self.name,
            arguments=self.arguments,
            task_names=self.task_names,
            policies=[
                PolicyChoice(choice.policy, choice.options, choice.task_names)
                for choice in self.policies
            ],
            covers=self.covers,
        )


class EligibilitySummary(msgspec.Struct, kw_only=True):
    """Which population has an eligibility task, and what it asks; sizes are in bytes."""

    population: str
    created: float
    plan_size: int
    checkpoint_size: int
    task_names: list[str] | None
    policies: list[EligibilityPolicy]

    @classmethod
    def of(cls, population: str, task: EligibilityTask, created: float) -> EligibilitySummary:
        """Return the message of a task."""
        settings = EligibilitySettings.of(task)
        return cls(
            population=population,
            created=created,
            plan_size=len(task.plan),
            checkpoint_size=len(task.checkpoint),
            task_names=settings.task_names,
            policies=settings.policies,
        )


class EligibilityList(msgspec.Struct):
    """The populations that have an eligibility task, sorted by name."""

    eligibility_tasks: list[EligibilitySummary]


class ServerStatus(msgspec.Struct, kw_only=True):
    """The server: its version, where devices reach it, and how many tasks are in which state."""

    version: str
    url: str
    started: float
    storage: str
    tasks: dict[str, int]


class Column(msgspec.Struct):
    """A column of a result; a number that JSON has not, such as NaN, is null."""

    name: str
    dtype: str
    values: list[Any]


class ResultTable(msgspec.Struct):
    """A result as a table; all columns are of one length."""

    columns: list[Column]

    @classmethod
    def of(cls, table: Table) -> ResultTable:
        """Return the message of a table."""
        return cls([Column(c.name, c.dtype, c.values) for c in table.columns])


def _list(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)
