"""Tasks in storage: how a specification becomes records, and comes back after a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from fcp_core.aggregation.engine import CheckpointFormat
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import AssignmentMode, ResourceForm, TaskSpec, TaskState, TaskStatus
from fcp_core.server.services.downloads import PLAN_FILES
from fcp_core.storage.contract import Storage, Transaction
from fcp_core.storage.records import (
    BlobRecord,
    PolicyStateRecord,
    TaskRecord,
)


class _StoredSpec(msgspec.Struct, frozen=True):
    """A specification without its large parts and without what the record has itself."""

    aggregation: bytes
    goal_count: int
    minimum_count: int | None
    assignment_mode: int
    deadline: float | None
    over_selection: float | None
    result_format: CheckpointFormat
    protocol: str | None
    selection: str | None
    aggregators: dict[str, str]
    options: dict[str, dict[str, Any]]
    max_at_work: int | None = None
    eligibility: list[str] = []
    resources: ResourceForm | None = None


@dataclass(frozen=True)
class Loaded:
    """What a storage holds of an earlier run.

    :param tasks: all tasks; those that have not ended come with their specification.
    """

    tasks: list[tuple[TaskRecord, TaskSpec | None]]
    policy_states: list[PolicyStateRecord]


class TaskStore:
    """Reads and writes tasks."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def add(self, record: TaskRecord, spec: TaskSpec) -> None:
        """Write a new task with its plan, checkpoint and slices."""
        blobs = [
            BlobRecord(f"{record.task_id}/plan", record.task_id, spec.plan),
            BlobRecord(f"{record.task_id}/checkpoint", record.task_id, spec.checkpoint),
        ]
        for served_at_id, slices in spec.slices.items():
            blobs += [
                BlobRecord(f"{record.task_id}/slice/{key}/{served_at_id}", record.task_id, data)
                for key, data in slices.items()
            ]

        def body(tx: Transaction) -> None:
            tx.put(record)
            for blob in blobs:
                tx.put(blob)

        await self._storage.transact(body)

    async def end(self, record: TaskRecord, result: bytes | None) -> None:
        """Write how a task ended; of its blobs only the result stays."""

        def body(tx: Transaction) -> None:
            for blob in list(tx.select(BlobRecord, task_id=record.task_id)):
                tx.delete(BlobRecord, blob.name)
            if result is not None:
                tx.put(BlobRecord(_result(record.task_id), record.task_id, result))
            tx.put(record)

        await self._storage.transact(body)

    async def result(self, task_id: str) -> bytes | None:
        """Return a task's result, or None."""
        blob = await self._storage.transact(lambda tx: tx.get(BlobRecord, _result(task_id)))
        return None if blob is None else blob.data

    async def file(self, task_id: str, file: str) -> bytes | None:
        """Return what devices download of a task that has not ended, or None.

        :param file: ``plan``, ``checkpoint``, or a slice as ``<served_at_id>_<key>``.
        """
        if file in PLAN_FILES:
            name = f"{task_id}/{file}"
        else:
            served_at_id, _, key = file.rpartition("_")
            name = f"{task_id}/slice/{key}/{served_at_id}"
        blob = await self._storage.transact(lambda tx: tx.get(BlobRecord, name))
        return None if blob is None else blob.data

    async def forget(self, task_id: str) -> None:
        """Delete a task and its result."""

        def body(tx: Transaction) -> None:
            tx.delete(BlobRecord, _result(task_id))
            tx.delete(TaskRecord, task_id)

        await self._storage.transact(body)

    async def load(self) -> Loaded:
        """Read everything that an earlier run left."""
        return await self._storage.transact(_load)


def encode_spec(spec: TaskSpec) -> bytes:
    """Return the small parts of a specification as bytes.

    :raises StatusError: INVALID_ARGUMENT if its options cannot be stored.
    """
    stored = _StoredSpec(
        aggregation=spec.aggregation,
        goal_count=spec.goal_count,
        minimum_count=spec.minimum_count,
        assignment_mode=spec.assignment_mode.value,
        deadline=spec.deadline,
        over_selection=spec.over_selection,
        result_format=spec.result_format,
        protocol=spec.protocol,
        selection=spec.selection,
        aggregators=dict(spec.aggregators),
        options={name: dict(options) for name, options in spec.options.items()},
        max_at_work=spec.max_at_work,
        eligibility=list(spec.eligibility),
        resources=spec.resources,
    )
    try:
        return msgspec.msgpack.encode(stored)
    except (TypeError, OverflowError) as error:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"task specification: options must be numbers, strings, lists and dicts ({error})",
        ) from None


def slim(spec: TaskSpec) -> TaskSpec:
    """Return a specification without its large parts."""
    return dataclasses.replace(spec, plan=b"", checkpoint=b"", slices={})


def status_of(record: TaskRecord) -> TaskStatus:
    """Return the status of a task that is known from its record only."""
    goal = msgspec.msgpack.decode(record.spec, type=_StoredSpec).goal_count
    return TaskStatus(
        task_id=record.task_id,
        population=record.population,
        name=record.name,
        state=TaskState(record.state),
        goal_count=goal,
        assigned=record.assigned,
        contributed=record.contributed,
        dropped=record.dropped,
        created=record.created,
        finished=record.finished,
        error=(Code(record.code), record.message) if record.code else None,
    )


def _result(task_id: str) -> str:
    return f"{task_id}/result"


def _load(tx: Transaction) -> Loaded:
    tasks: list[tuple[TaskRecord, TaskSpec | None]] = []
    for record in tx.select(TaskRecord):
        ended = TaskState(record.state).is_final
        tasks.append((record, None if ended else _decode_spec(record, _blobs(tx, record.task_id))))
    return Loaded(
        sorted(tasks, key=lambda task: task[0].created),
        list(tx.select(PolicyStateRecord)),
    )


def _blobs(tx: Transaction, task_id: str) -> dict[str, bytes]:
    return {
        blob.name[len(task_id) + 1 :]: blob.data for blob in tx.select(BlobRecord, task_id=task_id)
    }


def _decode_spec(record: TaskRecord, blobs: Mapping[str, bytes]) -> TaskSpec:
    stored = msgspec.msgpack.decode(record.spec, type=_StoredSpec)
    slices: dict[str, dict[int, bytes]] = {}
    for name, data in blobs.items():
        if name.startswith("slice/"):
            _, key, served_at_id = name.split("/", 2)
            slices.setdefault(served_at_id, {})[int(key)] = data
    return TaskSpec(
        population=record.population,
        name=record.name,
        plan=blobs["plan"],
        checkpoint=blobs["checkpoint"],
        slices=slices,
        aggregation=stored.aggregation,
        goal_count=stored.goal_count,
        minimum_count=stored.minimum_count,
        assignment_mode=AssignmentMode(stored.assignment_mode),
        deadline=stored.deadline,
        over_selection=stored.over_selection,
        result_format=stored.result_format,
        protocol=stored.protocol,
        selection=stored.selection,
        aggregators=stored.aggregators,
        options=stored.options,
        max_at_work=stored.max_at_work,
        eligibility=stored.eligibility,
        resources=stored.resources,
    )
