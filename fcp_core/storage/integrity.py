"""Whether stored records can be read and belong together, and what of them nobody needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fcp_core.rounds.tasks import TaskState
from fcp_core.storage import records as stored
from fcp_core.storage.codec import CodecError, decode
from fcp_core.storage.contract import Record, Storage, Transaction
from fcp_core.storage.records import (
    AccountRecord,
    BlobRecord,
    EntryRecord,
    MemberRecord,
    ShardRecord,
    TaskRecord,
)
from fcp_core.storage.shards import stream_of
from fcp_core.storage.upkeep import Upkeep

#: How long a member that gave no sign of life is listed, in seconds.
_SILENT = 3600.0
#: How many findings are removed in one transaction.
_SLICE = 100

#: How long a task of a population and a name is kept after its end, in seconds.
Retention = Callable[[str, str], float]


def kinds() -> dict[str, type[Record]]:
    """Return the kinds of records that this release keeps."""
    return {
        value.KIND: value
        for value in vars(stored).values()
        if isinstance(value, type) and issubclass(value, Record) and value is not Record
    }


@dataclass(frozen=True)
class Finding:
    """Something about a record.

    :param what: a sentence's end, after the record's kind and key.
    :param remove: removes it, unless it is needed by now; returns whether it did. None: it is
        damage, and cannot be mended by removing something.
    """

    kind: str
    key: str
    what: str
    remove: Callable[[Transaction], bool] | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.key!r} {self.what}"


@dataclass
class _Task:
    record: TaskRecord
    blobs: set[str] = field(default_factory=set)
    shards: dict[str, bool] = field(default_factory=dict)
    merged: set[str] = field(default_factory=set)
    contributions: Counter[str] = field(default_factory=Counter)


@dataclass
class _Found:
    """What is needed of the records to compare them: not their bytes."""

    tasks: dict[str, _Task] = field(default_factory=dict)
    blobs: list[tuple[str, str]] = field(default_factory=list)
    shards: list[ShardRecord] = field(default_factory=list)
    members: list[MemberRecord] = field(default_factory=list)
    entries: dict[str, dict[str, int]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        if isinstance(record, TaskRecord):
            self.tasks[record.task_id] = _Task(record)
        elif isinstance(record, BlobRecord):
            self.blobs.append((record.name, record.task_id))
        elif isinstance(record, ShardRecord):
            self.shards.append(record)
        elif isinstance(record, MemberRecord):
            self.members.append(record)
        elif isinstance(record, EntryRecord):
            self.entries[record.task_id] = record.accounts
        elif isinstance(record, AccountRecord):
            self.versions[record.account] = record.version


async def examine(upkeep: Upkeep, retention: Retention) -> list[Finding]:
    """Read every record and return what is wrong, or not needed any more."""
    findings = []
    known, found = kinds(), _Found()
    async for kind, key, data in upkeep.scan():
        if kind not in known:
            continue
        try:
            record = decode(known[kind], data)
        except CodecError as error:
            findings.append(Finding(kind, key, f"cannot be read: {error}"))
            continue
        if record.key != key:
            findings.append(Finding(kind, key, f"holds the record of {record.key!r}"))
        found.add(record)
    findings += _compare(found, (await upkeep.info()).now, retention)
    return findings


def _compare(found: _Found, now: float, retention: Retention) -> Iterator[Finding]:
    tasks = found.tasks
    for name, task_id in found.blobs:
        if task_id in tasks:
            tasks[task_id].blobs.add(name.partition("/")[2])
        else:
            yield _orphan(BlobRecord, name, task_id)
    for shard in found.shards:
        if shard.task_id in tasks:
            tasks[shard.task_id].shards[shard.shard_id] = shard.merged
            tasks[shard.task_id].merged.update([shard.stream] if shard.merged else [])
            tasks[shard.task_id].contributions.update(shard.contributions)
        else:
            yield _orphan(ShardRecord, shard.shard_id, shard.task_id)
    for member in found.members:
        if now - member.heartbeat > _SILENT:
            yield _silent(member)
    yield from _of_ledgers(found)
    for task in tasks.values():
        if TaskState(task.record.state).is_final:
            yield from _of_ended(task, now, retention)
        else:
            yield from _of_open(task)


async def remove(storage: Storage, findings: list[Finding]) -> int:
    """Remove what is not needed, some at a time; return how many records went."""
    removals = [finding.remove for finding in findings if finding.remove is not None]
    removed = 0
    for start in range(0, len(removals), _SLICE):
        part = removals[start : start + _SLICE]
        removed += await storage.transact(lambda tx, part=part: sum(one(tx) for one in part))  # type: ignore[misc]
    return removed


def _of_ledgers(found: _Found) -> Iterator[Finding]:
    """Yield what shows that a ledger is older than what was released."""
    for task_id, task in found.tasks.items():
        if task.record.release and task_id not in found.entries:
            what = f"(of {task.record.name!r}) has a result that is not booked in the ledger"
            yield Finding(TaskRecord.KIND, task_id, what)
    for task_id, accounts in found.entries.items():
        for name, version in accounts.items():
            known = found.versions.get(name, 0)
            if known < version:
                what = f"made {name!r} version {version}, and that is at {known}"
                yield Finding(EntryRecord.KIND, task_id, what)


def _of_open(task: _Task) -> Iterator[Finding]:
    """Yield what an open task lacks, or has too much of."""
    key = task.record.task_id

    def damage(what: str) -> Finding:
        return Finding(TaskRecord.KIND, key, f"(of {task.record.name!r}, open) {what}")

    for name in ("plan", "checkpoint"):
        if name not in task.blobs:
            yield damage(f"has no {name}")
    parts = {name[6:] for name in task.blobs if name.startswith("shard/")}
    totals = {name for name in parts if name.startswith("total-")}
    streams = {stream_of(name) for name in totals}
    for shard_id, merged in task.shards.items():
        if not merged and shard_id not in parts:
            yield damage(f"lacks the bytes of shard {shard_id}")
    # What was in the total of a closed stream is in the owner's, which belongs to none.
    if len(totals) > len(streams) or (task.merged - streams and "" not in streams):
        yield damage(f"has {len(totals)} totals of the shards that were merged")
    for shard_id in sorted(parts - totals - set(task.shards)):
        yield damage(f"has bytes of shard {shard_id}, of which nothing is known")
    twice = [name for name, count in task.contributions.items() if count > 1]
    if twice:
        yield damage(f"has {len(twice)} contributions in more than one shard, such as {twice[0]}")


def _of_ended(task: _Task, now: float, retention: Retention) -> Iterator[Finding]:
    record = task.record
    if record.state == TaskState.COMPLETED.value and "result" not in task.blobs:
        yield Finding(TaskRecord.KIND, record.task_id, f"(of {record.name!r}) has no result")
    for name in sorted(task.blobs - {"result"}):
        yield _leftover(BlobRecord, f"{record.task_id}/{name}", record.task_id)
    for shard_id in task.shards:
        yield _leftover(ShardRecord, shard_id, record.task_id)
    ended = record.created if record.finished is None else record.finished
    if ended + retention(record.population, record.name) < now:
        yield Finding(
            TaskRecord.KIND,
            record.task_id,
            f"(of {record.name!r}) has been kept for longer than task_retention",
            lambda tx: _forget(tx, record),
        )


def _orphan(kind: type[Record], key: str, task_id: str) -> Finding:
    def remove(tx: Transaction) -> bool:
        if tx.get(TaskRecord, task_id) is not None:
            return False
        tx.delete(kind, key)
        return True

    return Finding(kind.KIND, key, f"is of the task {task_id!r}, which is not there", remove)


def _leftover(kind: type[Record], key: str, task_id: str) -> Finding:
    def remove(tx: Transaction) -> bool:
        task = tx.get(TaskRecord, task_id)
        if task is None or not TaskState(task.state).is_final:
            return False
        tx.delete(kind, key)
        return True

    return Finding(kind.KIND, key, f"is of the task {task_id!r}, which has ended", remove)


def _silent(member: MemberRecord) -> Finding:
    def remove(tx: Transaction) -> bool:
        if tx.get(MemberRecord, member.member_id) != member:
            return False
        tx.delete(MemberRecord, member.member_id)
        return True

    what = f"(process {member.pid} on {member.host}) gave no sign of life for an hour"
    return Finding(MemberRecord.KIND, member.member_id, what, remove)


def _forget(tx: Transaction, record: TaskRecord) -> bool:
    if tx.get(TaskRecord, record.task_id) != record:
        return False
    for kind in (BlobRecord, ShardRecord):
        for key in tx.keys(kind, task_id=record.task_id):
            tx.delete(kind, key)
    tx.delete(TaskRecord, record.task_id)
    return True
