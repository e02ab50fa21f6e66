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
    :param durability: ``contribution`` or ``round``; ``""`` in records of earlier releases.
    :param release: what was booked for its result, as JSON; empty if no noise was drawn.
    :param resumed: the options that its round of a series began with, by aggregator, as JSON.
    :param course: of a task that ended, its ``reasons`` and ``notes``, as JSON; empty if none.
    :param closed: the streams of shards that take nothing more.
    """

    KIND: ClassVar[str] = "task"
    KEY: ClassVar[str] = "task_id"
    INDEXES: ClassVar[tuple[str, ...]] = ("population",)

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
    durability: str = ""
    release: bytes = b""
    resumed: bytes = b""
    course: bytes = b""
    closed: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlobRecord(Record):
    """Bytes of a task.

    Named ``<task_id>/plan``, ``/checkpoint``, ``/slice/...``, ``/shard/...``, ``/result``.
    """

    KIND: ClassVar[str] = "blob"
    KEY: ClassVar[str] = "name"
    INDEXES: ClassVar[tuple[str, ...]] = ("task_id",)

    name: str
    task_id: str
    data: bytes


@dataclass(frozen=True)
class ShardRecord(Record):
    """Contributions of an open task that are in its stored aggregate.

    Their partial aggregate is the blob ``<task_id>/shard/<shard_id>``, until it is merged with
    others into one. The counters are those of the task when it was written.

    :param shard_id: follows from the contributions, so that a shard written twice is there once.
    :param contributions: the ids of their assignments.
    :param merged: whether its bytes are in a total, ``<task_id>/shard/total-...``.
    :param stream: what it belongs to: ``""`` for those of the owner, and one more for each member
        that accumulates for it. The total of a stream has it at the end of its name.
    """

    KIND: ClassVar[str] = "shard"
    KEY: ClassVar[str] = "shard_id"
    INDEXES: ClassVar[tuple[str, ...]] = ("task_id",)

    shard_id: str
    task_id: str
    contributions: tuple[str, ...]
    merged: bool = False
    dropped: int = 0
    surplus: int = 0
    stream: str = ""


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
class ScheduleRecord(Record):
    """A task that the owner of its population offers once in each period.

    :param schedule_id: the population and the task's name.
    :param spec: the serialized specification, without its plan and the plan's checkpoint.
    :param every: the length of a period, in seconds.
    :param starting: when one of them begins, in seconds since 1970.
    :param last: when the last period began whose task was offered, or refused; None: none yet.
    :param task_id: of that task; empty if it was refused.
    :param problem: why it was refused.
    """

    KIND: ClassVar[str] = "schedule"
    KEY: ClassVar[str] = "schedule_id"
    INDEXES: ClassVar[tuple[str, ...]] = ("population",)

    schedule_id: str
    population: str
    name: str
    spec: bytes
    plan: bytes
    checkpoint: bytes
    every: float
    starting: float
    created: float
    last: float | None = None
    task_id: str = ""
    problem: str = ""


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


@dataclass(frozen=True)
class AccountRecord(Record):
    """What changes with releases only, in the transaction that ends a task.

    It is a ledger's, or ``series/...`` and then what an aggregator keeps from round to round. The
    latter may hold what takes noise off again.

    :param version: one more with each change.
    """

    KIND: ClassVar[str] = "account"
    KEY: ClassVar[str] = "account"
    INDEXES: ClassVar[tuple[str, ...]] = ("population",)

    account: str
    population: str
    version: int
    data: bytes


@dataclass(frozen=True)
class EntryRecord(Record):
    """A release that was booked. It outlives its task and is never changed.

    :param task_id: of the task whose result it is.
    :param time: by the storage's clock.
    :param accounts: the versions of the ledgers' accounts after it.
    :param release: its costs and its noise, as JSON.
    """

    KIND: ClassVar[str] = "ledger_entry"
    KEY: ClassVar[str] = "task_id"
    INDEXES: ClassVar[tuple[str, ...]] = ("population",)

    task_id: str
    population: str
    name: str
    time: float
    accounts: dict[str, int]
    release: bytes


@dataclass(frozen=True)
class MemberRecord(Record):
    """A server process that shares the storage with others.

    :param member_id: chosen anew at each start.
    :param url: where devices reach it, with a slash at the end.
    :param member_url: where the other members reach it, with a slash at the end.
    :param started: by the storage's clock, like *heartbeat*.
    :param heartbeat: when it last showed that it lives.
    :param draining: whether it stops, and takes nothing any more.
    :param keys: a fingerprint of the keys that sign tokens: all members have the same.
    :param lease_seconds: how long its leases last; 0 in records of earlier releases.
    :param unable: the populations that it could not read; others take them.
    """

    KIND: ClassVar[str] = "member"
    KEY: ClassVar[str] = "member_id"

    member_id: str
    url: str
    member_url: str
    host: str
    pid: int
    started: float
    heartbeat: float
    draining: bool = False
    keys: str = ""
    lease_seconds: float = 0.0
    unable: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeaseRecord(Record):
    """Which member owns a population, and until when.

    :param holder: the member's id; empty if it was given back.
    :param epoch: one more each time that it changes hands; what is written under an older one has
        no effect.
    :param expires: by the storage's clock.
    :param since: when the holder took it.
    """

    KIND: ClassVar[str] = "lease"
    KEY: ClassVar[str] = "population"

    population: str
    holder: str
    epoch: int
    expires: float
    since: float
