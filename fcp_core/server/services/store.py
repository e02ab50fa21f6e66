"""Tasks in storage: how a specification becomes records, and comes back after a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from fcp_core.protocol.status import Code
from fcp_core.rounds.ledger import Account
from fcp_core.rounds.specification import TaskSpec
from fcp_core.rounds.tasks import TaskState, TaskStatus
from fcp_core.rounds.token_parts import TokenSource, mark_of
from fcp_core.server.services.published import PLAN_FILES
from fcp_core.server.services.writes import Writes
from fcp_core.storage import accounts, leases, shards
from fcp_core.storage.accounts import Booking
from fcp_core.storage.contract import ChangedError, Storage, Transaction
from fcp_core.storage.records import (
    AccountRecord,
    BlobRecord,
    EntryRecord,
    PolicyStateRecord,
    ShardRecord,
    TaskRecord,
)
from fcp_core.storage.shards import Fence, FenceMaker, Merge, StoredShards, unfenced


@dataclass(frozen=True)
class LoadedTask:
    """A task of an earlier run.

    :param spec: without what is large but for the plan; None: it has ended.
    """

    record: TaskRecord
    spec: TaskSpec | None = None


@dataclass(frozen=True)
class Loaded:
    """What a storage holds of an earlier run."""

    tasks: list[LoadedTask]
    policy_states: list[PolicyStateRecord]
    accounts: list[AccountRecord] = field(default_factory=list)
    entries: list[EntryRecord] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """How a task ended: what was written first counts.

    :param accounts: those of the release that was booked with it.
    """

    record: TaskRecord
    result: bytes | None
    accounts: Mapping[str, Account] = field(default_factory=dict)


class TaskStore:
    """Reads and writes tasks.

    :param fence: makes what checks, in each transaction that changes an open task, that it is ours
        to change.
    :param population: returns the population of a task, given its id, if that has a lease.
    :ivar writes: those of open tasks, which are tried again until they are done.
    """

    def __init__(
        self,
        storage: Storage,
        writes: Writes | None = None,
        fence: FenceMaker = unfenced,
        population: Callable[[str], str | None] = lambda task_id: None,
    ) -> None:
        self._storage = storage
        self._fence, self._population = fence, population
        self.writes = Writes() if writes is None else writes

    @property
    def durable(self) -> bool:
        """Whether what is written outlives the process."""
        return self._storage.durable

    @property
    def folder(self) -> Path | None:
        """Where the storage keeps its file, if it has one."""
        return None if self._storage.path is None else self._storage.path.parent

    async def add(self, record: TaskRecord, spec: TaskSpec) -> None:
        """Write a new task with its plan, checkpoint and slices, unless it is there already."""
        blobs = [
            BlobRecord(f"{record.task_id}/plan", record.task_id, spec.plan),
            BlobRecord(f"{record.task_id}/checkpoint", record.task_id, spec.checkpoint),
        ]
        for served_at_id, slices in spec.slices.items():
            blobs += [
                BlobRecord(f"{record.task_id}/slice/{key}/{served_at_id}", record.task_id, data)
                for key, data in slices.items()
            ]

        fence = self._fence()

        def body(tx: Transaction) -> None:
            fence(tx, record.population)
            if tx.get(TaskRecord, record.task_id) is not None:
                return  # an earlier attempt, whose answer was lost; it may have gone on since
            tx.put(record)
            for blob in blobs:
                tx.put_pieces(dataclasses.replace(blob, data=b""), [blob.data])

        await self._storage.transact(body)

    async def accounts(self, names: Iterable[str]) -> dict[str, Account]:
        """Read accounts; those that are not there are empty.

        :raises StorageError: if they cannot be read now.
        """
        wanted = list(names)
        if not wanted:
            return {}
        return await self._storage.transact(lambda tx: accounts.read(tx, wanted))

    async def end(
        self, record: TaskRecord, result: bytes | None, booking: Booking | None = None
    ) -> Ended:
        """Write how a task ended, in the end; of its blobs only the result stays.

        :param booking: what is booked with the result, or nothing is written.
        :raises StatusError: if this cannot be written at any time; ReleaseRefusedError if the
            result may not be released.
        """
        if booking is not None:
            record = dataclasses.replace(record, release=booking.release)

        fence = self._fence()

        def body(tx: Transaction) -> Ended:
            stored = tx.get(TaskRecord, record.task_id)
            if stored is not None and TaskState(stored.state).is_final:
                # Of two results that were drawn the one that is stored is the only one.
                kept = tx.get(BlobRecord, _result(record.task_id))
                return Ended(stored, None if kept is None else kept.data)
            shards.open_task(tx, record.task_id, fence)
            booked = {} if booking is None else accounts.book(tx, record, booking)
            for blob in _blob_names(tx, record.task_id):
                tx.delete(BlobRecord, blob)
            shards.delete(tx, record.task_id)
            if result is not None:
                tx.put_pieces(BlobRecord(_result(record.task_id), record.task_id, b""), [result])
            tx.put(record)
            return Ended(record, result, booked)

        return await self.writes.until_done(
            f"the end of task {record.name}", partial(self._storage.transact, body)
        )

    async def add_shard(
        self,
        shard: ShardRecord,
        pieces: Sequence[bytes | memoryview],
        name: str,
        total: Merge | None = None,
    ) -> bool:
        """Write a shard of an open task, unless it is there already; returns when it is.

        :param pieces: its bytes.
        :param name: the task's.
        :param total: takes the place of the bytes if all that it holds is there.
        :returns: whether it did.
        :raises StatusError: if it never will be: the task is not open, or not ours.
        """
        fence, population = self._fence(), self._population(shard.task_id)

        async def attempt() -> bool:
            add = partial(shards.add, shard=shard, pieces=pieces, fence=fence, total=total)
            try:
                return await self._storage.transact(
                    lambda tx: add(tx, population=population, look=False)
                )
            except ChangedError:
                return await self._storage.transact(lambda tx: add(tx, population=population))

        return await self.writes.until_done(f"contributions to task {name}", attempt)

    async def shards(self, task_id: str, streams: Collection[str] = ()) -> StoredShards:
        """Read what is stored of an open task's aggregate.

        :param streams: those that take nothing more from now on.
        :raises StatusError: DATA_LOSS if something of it is missing.
        """
        fence = self._fence()

        def body(tx: Transaction) -> StoredShards:
            if streams:
                shards.close(tx, task_id, streams, fence)
            return shards.read(tx, task_id)

        return await self._storage.transact(body)

    async def close_stream(self, task_id: str, name: str, stream: str) -> StoredShards:
        """Have a stream of an open task's shards take nothing more; return what is in it.

        :param name: the task's.
        :raises StatusError: if it never will be: the task is not open, or not ours; DATA_LOSS if
            something of it is missing.
        """
        fence = self._fence()

        async def attempt() -> StoredShards:
            return await self._storage.transact(
                lambda tx: shards.close(tx, task_id, (stream,), fence)
            )

        return await self.writes.until_done(f"what members have of task {name}", attempt)

    async def note(self, task_id: str, dropped: int, surplus: int) -> None:
        """Write how many devices an open task has dropped, and how many came too late, if it can.

        :raises StatusError: if it cannot: the task is not open, or not ours, or for the storage.
        """
        fence = self._fence()

        def body(tx: Transaction) -> None:
            task = shards.open_task(tx, task_id, fence)
            tx.put(dataclasses.replace(task, dropped=dropped, surplus=surplus))

        await self._storage.transact(body)

    def under(self, epoch: int) -> TaskStore:
        """Return one that writes for the owner of a population, as long as it has that epoch."""
        fence = partial(partial, leases.check, epoch=epoch)
        return TaskStore(self._storage, self.writes, fence, self._population)

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

    async def whole(self, record: TaskRecord) -> TaskSpec:
        """Read the whole specification of a task; StatusError if it is not open, or not ours."""
        return await self._storage.transact(partial(_whole, record=record, fence=self._fence()))

    async def load(self, population: str | None = None) -> Loaded:
        """Read what an earlier run left, of one population or of all, but for what is large."""
        return await self._storage.transact(partial(_load, population=population))


def status_of(record: TaskRecord) -> TaskStatus:
    """Return the status of a task that is known from its record only."""
    spec = _decode_spec(record)
    course = msgspec.json.decode(record.course, type=_Course) if record.course else _Course()
    return TaskStatus(
        task_id=record.task_id,
        population=record.population,
        name=record.name,
        state=TaskState(record.state),
        goal_count=spec.goal_count,
        assigned=record.assigned,
        contributed=record.contributed,
        dropped=record.dropped,
        surplus=record.surplus,
        created=record.created,
        finished=record.finished,
        error=(Code(record.code), record.message) if record.code else None,
        durability=record.durability,
        reasons=course.reasons,
        notes=course.notes,
        query=spec.query,
        release=msgspec.json.decode(record.release) if record.release else None,
    )


def new_record(spec: TaskSpec, source: TokenSource, created: float, key: str | None) -> TaskRecord:
    """Return the record of a task that begins; *key* is what its submitter finds it again by."""
    mark = mark_of(spec.population)
    return TaskRecord(
        task_id=source.uuid(mark),
        population=spec.population,
        name=spec.name,
        state=TaskState.OPEN.value,
        aggregation_id=source.uuid(mark),
        spec=spec.to_bytes(),
        created=created,
        submission_key=key,
    )


def ended_record(record: TaskRecord, status: TaskStatus) -> TaskRecord:
    """Return the record of a task that ended, given the one that it had."""
    code, message = status.error or (Code.OK, "")
    return dataclasses.replace(
        record,
        state=status.state.value,
        durability=status.durability,
        assigned=status.assigned,
        contributed=status.contributed,
        dropped=status.dropped,
        surplus=status.surplus,
        finished=status.finished,
        code=int(code),
        message=message,
        course=msgspec.json.encode(_Course(dict(status.reasons), tuple(status.notes))),
    )


class _Course(msgspec.Struct, omit_defaults=True):
    """What is told of a task's course after its end."""

    reasons: dict[str, int] = {}
    notes: tuple[str, ...] = ()


def _result(task_id: str) -> str:
    return f"{task_id}/result"


def _load(tx: Transaction, population: str | None) -> Loaded:
    tasks: list[LoadedTask] = []
    which = {} if population is None else {"population": population}
    for record in tx.select(TaskRecord, **which):
        if TaskState(record.state).is_final:
            tasks.append(LoadedTask(record))
            continue
        plan = tx.get(BlobRecord, f"{record.task_id}/plan")
        spec = _decode_spec(record, plan=b"" if plan is None else plan.data)
        tasks.append(LoadedTask(record, spec))
    return Loaded(
        sorted(tasks, key=lambda task: task.record.created),
        [state for state in tx.select(PolicyStateRecord) if population in (None, state.population)],
        accounts.of_ledgers(tx, population),
        list(tx.select(EntryRecord, **which)),
    )


def _blob_names(tx: Transaction, task_id: str) -> list[str]:
    return tx.keys(BlobRecord, task_id=task_id)


def _whole(tx: Transaction, record: TaskRecord, fence: Fence) -> TaskSpec:
    shards.open_task(tx, record.task_id, fence)
    names = (name[len(record.task_id) + 1 :] for name in _blob_names(tx, record.task_id))
    blobs = {
        name: blob.data
        for name in names
        if not name.startswith("shard/")
        and (blob := tx.get(BlobRecord, f"{record.task_id}/{name}")) is not None
    }
    return _decode_spec(record, blobs)


def _decode_spec(
    record: TaskRecord, blobs: Mapping[str, bytes] | None = None, plan: bytes = b""
) -> TaskSpec:
    """Return a task's specification.

    :param blobs: its large parts; None leaves them out, but for the *plan*.
    """
    slices: dict[str, dict[int, bytes]] = {}
    for name, data in (blobs or {}).items():
        if name.startswith("slice/"):
            _, key, served_at_id = name.split("/", 2)
            slices.setdefault(served_at_id, {})[int(key)] = data
    return TaskSpec.from_bytes(
        record.spec,
        population=record.population,
        name=record.name,
        plan=plan if blobs is None else blobs["plan"],
        checkpoint=b"" if blobs is None else blobs["checkpoint"],
        slices=slices,
    )
