"""The messages of the admin API: what is sent as JSON. Bytes travel as base64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.experience import Lately
from fcp_core.rounds.specification import EligibilityTask, PolicyChoice, TaskSpec
from fcp_core.rounds.tasks import TaskState, TaskStatus
from fcp_core.tasks.tables import Table

State: TypeAlias = Literal["open", "closing", "completed", "failed", "cancelled"]

Key: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        description="chosen by the client: a second submission with it returns the first's task",
    ),
]
#: How long a wait may last, in seconds, and how long it lasts if nothing is said.
MAX_WAIT = 60.0
DEFAULT_WAIT = 30.0


class Submission(TaskSpec, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task that is to be offered: the fields of a ``TaskSpec``, and a key."""

    key: Key | None = None

    @classmethod
    def of(cls, spec: TaskSpec, key: str | None = None) -> Submission:
        """Return the submission of a specification."""
        return cls(**spec.fields(), key=key)

    def to_spec(self) -> TaskSpec:
        """Return the specification."""
        return TaskSpec(**{name: getattr(self, name) for name in TaskSpec.__struct_fields__})


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
    """A task as a watcher sees it; times are seconds since 1970.

    ``reasons`` counts why devices did not contribute, the most frequent first. ``notes`` is what
    the aggregation protocol says of the task's course, a line each. ``durability`` is
    ``contribution`` if devices are answered OK once what they sent is stored, and ``round`` if not.
    ``problem`` says what keeps the task from going on at the moment, such as a full disk, and
    ``waits_for`` what it waits for. ``begun`` counts devices at work that have shown themselves.
    ``query`` is the question that the task answers, as its submission has it.
    ``release`` has the ``costs`` and the ``noise`` of a result that has noise: of each output its
    name, the mechanism and the standard deviation.
    """

    task_id: str
    population: str
    name: str
    state: State
    goal_count: int
    assigned: int
    contributed: int
    pending: int
    dropped: int
    surplus: int
    created: float
    finished: float | None
    error: Error | None
    reasons: dict[str, int] = {}
    silent: dict[str, int] = {}
    notes: list[str] = []
    durability: str = ""
    problem: str = ""
    waits_for: str = ""
    deadline: float | None = None
    begun: int = 0
    query: str = ""
    release: dict[str, Any] | None = None

    @classmethod
    def of(cls, status: TaskStatus) -> Task:
        """Return the message of a status."""
        given = {name: getattr(status, name) for name in cls.__struct_fields__}
        given["state"] = status.state.value
        given["error"] = None if status.error is None else Error.of(StatusError(*status.error))
        for name in ("reasons", "silent"):
            given[name] = dict(given[name])
        given["notes"] = list(status.notes)
        given["release"] = None if status.release is None else dict(status.release)
        return cls(**given)

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
    """Tasks, oldest first; ``total`` counts those that were left out, too."""

    tasks: list[Task]
    total: int = 0


class ListQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Which tasks are listed: of a population, in a state, that have ended or not; the newest."""

    population: str | None = None
    state: State | None = None
    ended: bool | None = None
    newest: Annotated[int, Meta(ge=1)] | None = None


class WaitQuery(msgspec.Struct, forbid_unknown_fields=True):
    """How long to wait for a task's end."""

    timeout: Annotated[float, Meta(ge=0, le=MAX_WAIT, description="in seconds")] = DEFAULT_WAIT


class Cancellation(msgspec.Struct, forbid_unknown_fields=True):
    """Why a task is cancelled."""

    reason: Annotated[str, Meta(min_length=1, max_length=1000)] = "it was cancelled"


class Population(msgspec.Struct, kw_only=True):
    """A population and how busy it is.

    ``missing`` counts the contributions that its open tasks still need, ``waiting`` the devices
    that wait for a task, ``at_work`` those that have one and are not done with it, ``silent`` those
    of which there is no sign for too long, by the version of their client, and ``check_in_rate``
    the check-ins a second. ``size`` estimates how many devices there are. ``last_check_in`` is when
    one came, and the windows are when that one was asked back, with a task and without, from and to
    so many seconds later; null and empty: none came since the server began.
    """

    name: str
    open_tasks: int
    missing: int
    waiting: int
    at_work: int
    check_in_rate: float
    silent: dict[str, int] = {}
    size: float = 0.0
    last_check_in: float | None = None
    window_if_accepted: list[float] = []
    window_if_rejected: list[float] = []

    @classmethod
    def of(
        cls,
        name: str,
        load: Mapping[str, Any],
        at_work: int,
        silent: Mapping[str, int],
        lately: Lately,
    ) -> Population:
        """Return the message of a population's load."""
        rate = float(load["check_in_rate"])
        windows = [[each.delay_min, each.delay_max] for each in lately.windows or ()]
        accepted, rejected = windows or ([], [])
        return cls(
            name=name,
            open_tasks=load["open_tasks"],
            missing=load["missing"],
            waiting=load["waiting"],
            at_work=at_work,
            silent=dict(silent),
            check_in_rate=rate if math.isfinite(rate) else 0.0,
            size=float(load["population_size"]),
            last_check_in=lately.came,
            window_if_accepted=accepted,
            window_if_rejected=rejected,
        )


class PopulationList(msgspec.Struct):
    """All populations, sorted by name."""

    populations: list[Population]


class EligibilitySettings(
    EligibilityTask, frozen=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The eligibility task of a population: the fields of an ``EligibilityTask``."""

    @classmethod
    def of(cls, task: EligibilityTask) -> EligibilitySettings:
        """Return the message of a task."""
        return cls(**task.fields())

    def to_task(self) -> EligibilityTask:
        """Return the task."""
        return EligibilityTask(**self.fields())


class EligibilitySummary(msgspec.Struct, kw_only=True):
    """Which population has an eligibility task, and what it asks; sizes are in bytes."""

    population: str
    created: float
    plan_size: int
    checkpoint_size: int
    task_names: Sequence[str] | None
    policies: Sequence[PolicyChoice]

    @classmethod
    def of(cls, population: str, task: EligibilityTask, created: float) -> EligibilitySummary:
        """Return the message of a task."""
        return cls(
            population=population,
            created=created,
            plan_size=len(task.plan),
            checkpoint_size=len(task.checkpoint),
            task_names=task.task_names,
            policies=task.policies,
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


class Member(msgspec.Struct, kw_only=True):
    """A process of the server that shares its storage with others.

    ``behind`` is how long ago it last showed that it lives, in seconds; ``owns`` counts its
    populations; a member that is ``draining`` gives them to others. One that does not live gave no
    sign for the time of a lease: it was killed, paused or cut off.
    """

    member_id: str
    host: str
    pid: int
    url: str
    member_url: str
    started: float
    behind: float
    draining: bool
    lives: bool = True
    owns: int


class Lease(msgspec.Struct, kw_only=True):
    """Who owns a population, and since when.

    ``member_id`` is empty if nobody does. ``epoch`` grows with each change of hands, and is 0 in a
    server that shares its storage with none. ``left`` is for how many seconds it is owned without
    a further sign of life.
    """

    population: str
    member_id: str
    host: str
    pid: int
    epoch: int
    since: float
    left: float


class MemberList(msgspec.Struct):
    """The members of the server, the longest first, and who owns which population."""

    members: list[Member]
    leases: list[Lease]


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


def check_finite(value: Any, where: str = "") -> None:
    """Refuse numbers that JSON does not have: they would arrive as if nothing had been said.

    :param where: what the value is a part of, for the message.
    :raises StatusError: INVALID_ARGUMENT, naming the first.
    """
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, float) and not math.isfinite(value):
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"{where}: {value} is not a finite number, and a server is sent no others",
        )
    if isinstance(value, Mapping):
        items = ((str(name), inner) for name, inner in value.items())
    elif isinstance(value, (list, tuple)):
        items = ((str(place), inner) for place, inner in enumerate(value))
    else:
        return
    for name, inner in items:
        check_finite(inner, f"{where}.{name}" if where else name)
