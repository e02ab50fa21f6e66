"""Events of a task, for observers: progress displays, metrics, audit logs.

No event carries anything that identifies a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fcp_core.protocol.status import Code


@dataclass(frozen=True)
class CheckedIn:
    """A device checked in; *offered* are the names of the tasks that it was offered.

    :param client_version: as the device says.
    """

    at: float
    population: str
    session_id: str
    offered: tuple[str, ...] = ()
    client_version: str = ""


@dataclass(frozen=True)
class Rejected:
    """A device was sent away; *reason* is a short word such as ``no_task``.

    :param client_version: as the device says, if it was sent away at its check-in.
    """

    at: float
    population: str
    session_id: str
    reason: str
    client_version: str = ""


@dataclass(frozen=True)
class Assigned:
    """A device was given a task."""

    at: float
    population: str
    session_id: str
    task_id: str
    task_name: str


@dataclass(frozen=True)
class Contributed:
    """A device's contribution is in the aggregate.

    :param size: in bytes, after decompression.
    :param seconds: how long it took since the device was assigned.
    :param upload_seconds: how long its bytes took to come.
    :param fold_seconds: how long it took from its submission to the aggregate.
    """

    at: float
    population: str
    session_id: str
    task_id: str
    task_name: str
    size: int
    seconds: float = 0.0
    upload_seconds: float = 0.0
    fold_seconds: float = 0.0


@dataclass(frozen=True)
class Committed:
    """A task's aggregate was stored, and with it what several devices contributed meanwhile.

    It comes before the :class:`Contributed` of each of them. A task with durability ``round`` has
    none.

    :param contributions: how many, one or more.
    :param size: of what was written, in bytes.
    :param seconds: how long the storage took.
    """

    at: float
    population: str
    task_id: str
    task_name: str
    contributions: int
    size: int
    seconds: float


@dataclass(frozen=True)
class Dropped:
    """An assigned device will not contribute; *phase* says how far it came.

    :param client_version: as the device says; empty if it is not known.
    :param reached: the stage of its assignment: assigned, started, uploading, uploaded, kept,
        queued or accumulating.
    """

    at: float
    population: str
    session_id: str
    task_id: str
    task_name: str
    phase: str
    code: Code
    message: str
    client_version: str = ""
    reached: str = ""


@dataclass(frozen=True)
class Surplus:
    """Nothing more is needed of an assigned device: it comes too late, through no fault of its own.

    :param message: why.
    :param reached: as of :class:`Dropped`.
    """

    at: float
    population: str
    session_id: str
    task_id: str
    task_name: str
    message: str
    reached: str = ""


@dataclass(frozen=True)
class TaskOpened:
    """A task is offered."""

    at: float
    population: str
    task_id: str
    task_name: str
    goal_count: int


@dataclass(frozen=True)
class TaskClosed:
    """A task ended; *code* is OK if it has a result.

    :param message: why it has none, or what came of each device that was assigned, in counts.
    """

    at: float
    population: str
    task_id: str
    task_name: str
    contributed: int
    code: Code
    message: str = ""


@dataclass(frozen=True)
class Released:
    """A result with noise was stored, and booked in the ledgers.

    :param figures: what the ledgers say of it, such as ``privacy_spent``.
    """

    at: float
    population: str
    task_id: str
    task_name: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class LedgerRead:
    """A server that begins to act for a population has read what was booked for it.

    :param figures: what the ledgers say of it, as in :class:`Released`.
    :param releases: how many were booked.
    :param last: when the last one was.
    """

    at: float
    population: str
    figures: Mapping[str, float]
    releases: int
    last: float


Event: TypeAlias = (
    CheckedIn
    | Rejected
    | Assigned
    | Contributed
    | Committed
    | Dropped
    | Surplus
    | TaskOpened
    | Released
    | LedgerRead
    | TaskClosed
)
