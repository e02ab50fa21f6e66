"""The records that the server keeps. Raw contributions are never among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fcp_core.storage.contract import Record


@dataclass(frozen=True)
class TaskRecord(Record):
    """A task: its specification, where it stands, and how it ended.

    :param spec: the serialized specification, without its large parts.
    :param state: a ``TaskState`` value.
    :param code: the canonical code it ended with; 0 unless it failed.
    :param submission_key: what the caller chose to find it again by.
    """

    KIND: ClassVar[str] = "task"
    KEY: ClassVar[str] = "task_id"
    INDEXES: ClassVar[tuple[str, ...]] = ()

    task_id: str
    population: str
    name: str
    state: str
    aggregation_id: str
    spec: bytes
    created: float
    assigned: int = 0
    contributed: int = 0
    dropped: int = 0
    surplus: int = 0
    finished: float | None = None
    code: int = 0
    message: str = ""
    submission_key: str | None = None


@dataclass(frozen=True)
class BlobRecord(Record):
    """Bytes of a task, named ``<task_id>/plan``, ``/checkpoint``, ``/slice/...``, ``/result``."""

    KIND: ClassVar[str] = "blob"
    KEY: ClassVar[str] = "name"
    INDEXES: ClassVar[tuple[str, ...]] = ("task_id",)

    name: str
    task_id: str
    data: bytes


@dataclass(frozen=True)
class EligibilityTaskRecord(Record):
    """The eligibility task of a population.

    :param spec: the serialized task, without its plan and the plan's checkpoint.
    :param group: the part of the plan's address that cannot be guessed.
    """

    KIND: ClassVar[str] = "eligibility_task"
    KEY: ClassVar[str] = "population"

    population: str
    spec: bytes
    plan: bytes
    checkpoint: bytes
    group: str
    created: float


@dataclass(frozen=True)
class PolicyStateRecord(Record):
    """What a selection policy keeps for the tasks of a population that share it.

    :param state_key: a hash of the population, the policy's name and its options.
    :param state: JSON.
    """

    KIND: ClassVar[str] = "policy_state"
    KEY: ClassVar[str] = "state_key"

    state_key: str
    population: str
    state: bytes
    saved: float
