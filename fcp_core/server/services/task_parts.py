"""What a task's shell is made of, and whom it notifies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fcp_core.aggregation.engine import Engine, Fold
from fcp_core.protocol.routes import Route
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import UploadMemory
from fcp_core.rounds.events import Event
from fcp_core.rounds.experience import Lately
from fcp_core.rounds.machine import Clock
from fcp_core.rounds.standing import explain
from fcp_core.rounds.task import FINAL, TaskMachine
from fcp_core.rounds.tasks import TaskSpec, TaskState, TaskStatus
from fcp_core.server.services.protocol_host import ProtocolGuard, ShellEffect
from fcp_core.server.services.releases import TaskRelease
from fcp_core.server.services.ticker import Ticker
from fcp_core.server.services.writes import Writes

#: Uploads from this size on, in bytes, take turns: two of them would be in memory at once.
LARGE = 64 << 20


@dataclass(frozen=True)
class TaskParts:
    """The machines of a task; a restart makes them again.

    :param routes: those of the protocol's calls, by service and method.
    :param release: how the result is drawn and booked, if it has noise.
    :param begun: what the protocol wanted when it began, and the machine after an earlier run.
    :param upload_size: of a contribution in bytes, as far as the specification says.
    """

    machine: TaskMachine
    protocol: ProtocolGuard
    fold: Fold
    routes: Mapping[tuple[str, str], Route]
    release: TaskRelease
    begun: Sequence[ShellEffect] = ()
    upload_size: int = 0


class Places(Protocol):
    """What a task tells its population; it says which task it is by passing itself.

    :ivar capped: whether one that has contributed leaves a place for another.
    :ivar lately: when its devices came.
    """

    capped: bool
    lately: Lately

    def left(self, task: Any, *, contributed: bool, now: float) -> None:
        """Let other devices have the places of those that left."""
        ...

    def has_room(self, task: Any) -> bool:
        """Whether a task may be given one more device."""
        ...

    @property
    def waiting(self) -> int:
        """How many devices wait for a task."""
        ...


class Keeper(Protocol):
    """What a task tells whoever keeps it."""

    async def ended(self, task: Any, result: bytes | None) -> tuple[TaskStatus, bytes | None]:
        """Store how a task ended; return the status and the result that count."""
        ...

    def lost(self, task: Any, why: str) -> None:
        """Restart a task that has lost contributions."""
        ...


@dataclass(frozen=True)
class Surroundings:
    """What all tasks of a server work with.

    :param notify: called with each event.
    :param observed: returns whether anybody would hear of it if all is well with a device.
    """

    clock: Clock
    ticker: Ticker
    engine: Engine
    memory: UploadMemory
    writes: Writes
    notify: Callable[[Event], None]
    observed: Callable[[], bool]


def explained(
    machine: TaskMachine, notes: Sequence[str], places: Places, surroundings: Surroundings
) -> TaskStatus:
    """Return how a task stands whose end is not stored, and what keeps it from going on.

    :param notes: what its protocol says.
    """
    now = surroundings.clock.now()
    waits_for = explain(machine, places.lately, places.waiting, now)
    status = machine.status(surroundings.writes.trouble(), waits_for, notes)
    if status.state in FINAL:
        return replace(status, state=TaskState.CLOSING, finished=None, error=None)
    return status


def check_modes(spec: TaskSpec, others: Iterable[TaskSpec]) -> None:
    """Refuse a second mode for a name that is open: devices ask for a name in one way.

    :param others: the tasks that are open.
    :raises StatusError: INVALID_ARGUMENT.
    """
    for other in others:
        if (other.population, other.name) == (spec.population, spec.name) and (
            other.assignment_mode is not spec.assignment_mode
        ):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"task {spec.name} is open with assignment mode {other.assignment_mode.name}; "
                f"another of that name cannot be {spec.assignment_mode.name}",
            )
