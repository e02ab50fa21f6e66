"""The messages of the admin API about tasks that the server submits again and again."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.specification import TaskSpec
from fcp_core.tasks.schedule import Schedule

#: Shorter periods are for programs, in seconds.
SHORTEST = 1.0


class ScheduledTask(
    TaskSpec, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """A task that the server offers once in each period: the fields of a ``TaskSpec``, and when.

    A period has ``every`` seconds, and one of them begins at ``starting``, in seconds since 1970.
    """

    every: Annotated[float, Meta(ge=SHORTEST, le=1e9)]
    starting: Annotated[float, Meta(ge=-1e11, le=1e11)] = 0.0

    @classmethod
    def of(cls, spec: TaskSpec, schedule: Schedule) -> ScheduledTask:
        """Return the message of a specification and its schedule."""
        return cls(**spec.fields(), every=schedule.every, starting=schedule.starting)

    def to_spec(self, population: str, name: str) -> TaskSpec:
        """Return the specification.

        :param population: of the call's address, as is *name*.
        :raises StatusError: INVALID_ARGUMENT if the task is another one, or has slices, which are
            not kept.
        """
        if (self.population, self.name) != (population, name):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the address is that of {name} of {population}, and the task is {self.name} of "
                f"{self.population}",
            )
        if self.slices:
            raise StatusError(
                Code.INVALID_ARGUMENT, "a task with slices is a program's: let that repeat it"
            )
        return TaskSpec(**{field: getattr(self, field) for field in TaskSpec.__struct_fields__})


class ScheduleSummary(msgspec.Struct, kw_only=True):
    """A task that is offered once in each period; times are seconds since 1970.

    ``last`` is when the last period began whose task was offered, and ``task_id`` that task, unless
    it was refused: ``problem`` says why then. ``next`` is when the next one is due. ``repetitions``
    says how often it can be offered from now on before a ledger refuses it; 1000 stands for more,
    and nothing is said if no ledger counts it, or if it goes on with a series.
    """

    population: str
    name: str
    every: float
    starting: float
    created: float
    next: float
    last: float | None = None
    task_id: str = ""
    problem: str = ""
    repetitions: int | None = None


class ScheduleList(msgspec.Struct):
    """The tasks that are offered again and again, sorted by population and name."""

    schedules: list[ScheduleSummary]
