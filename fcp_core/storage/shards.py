"""Shards in storage: the partial aggregates of open tasks, and the transactions that keep them.

A shard holds what was accumulated since the last one was written, with the ids of the contributions
in it. Shards are never changed. Many are merged into a total: it takes the place of their bytes,
and their ids stay, so that a write which was given up for lost and happens later is noticed and has
no effect.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from fcp_core.aggregation.engine import Partial
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import TaskState
from fcp_core.storage.contract import Transaction
from fcp_core.storage.records import BlobRecord, ShardRecord, TaskRecord

#: Checks, in the transaction that writes, that a population is still the writer's; raises if not.
Fence: TypeAlias = Callable[[Transaction, str], None]
#: Makes a fence of what is the writer's now: a write that is late by a change of owner must fail,
#: even if the population came back to its writer since.
FenceMaker: TypeAlias = Callable[[], Fence]


class TaskOverError(StatusError):
    """The task has ended, or another member owns it: nothing was written."""

    def __init__(self, task_id: str) -> None:
        super().__init__(Code.ABORTED, f"task {task_id} is not open any more")
        self.task_id = task_id

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from another process."""
        return (TaskOverError, (self.task_id,))


def unfenced() -> Fence:
    """Return what checks nothing: the storage has one server."""
    return _check_nothing


def _check_nothing(tx: Transaction, population: str) -> None:
    pass


def open_task(tx: Transaction, task_id: str, fence: Fence) -> TaskRecord:
    """Return the record of a task; whatever is written of its progress comes after this.

    :raises TaskOverError: if it is not open; what *fence* raises.
    """
    record = tx.get(TaskRecord, task_id)
    if record is None or TaskState(record.state).is_final:
        raise TaskOverError(task_id)
    fence(tx, record.population)
    return record


def shard_id(task_id: str, contributions: Sequence[str]) -> str:
    """Return the name of the shard that holds these contributions."""
    text = "\0".join((task_id, *sorted(contributions)))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Merge:
    """Puts a total in the place of the bytes of a new shard, of others and of an earlier total.

    :param shards: the ids of the others: their bytes are in it and were in no total before.
    :param replaced: the name of the earlier total; ``""``: there is none.
    :param name: of the total.
    :param pieces: everything that all of them hold.
    """

    shards: Sequence[str]
    replaced: str
    name: str
    pieces: Sequence[bytes | memoryview]


def add(
    tx: Transaction,
    shard: ShardRecord,
    pieces: Sequence[bytes | memoryview],
    fence: Fence,
    total: Merge | None = None,
) -> bool:
    """Write a shard, unless it is there already. May run twice.

    :param pieces: its bytes.
    :param total: takes their place if all that it holds is there.
    :returns: whether it did.
    :raises TaskOverError: as :func:`open_task`.
    """
    task_id = shard.task_id
    open_task(tx, task_id, fence)
    known = tx.get(ShardRecord, shard.shard_id)
    if known is not None:
        return known.merged
    merged = total is not None and _merge(tx, task_id, total)
    if not merged:
        tx.put_pieces(BlobRecord(_blob(task_id, shard.shard_id), task_id, b""), pieces)
    tx.put(replace(shard, merged=merged))
    return merged


def _merge(tx: Transaction, task_id: str, work: Merge) -> bool:
    shards = [tx.get(ShardRecord, key) for key in work.shards]
    if any(shard is None or shard.merged for shard in shards):
        return False
    names = tx.keys(BlobRecord, task_id=task_id)
    totals = [name for name in names if name.startswith(_blob(task_id, "total-"))]
    if totals != ([_blob(task_id, work.replaced)] if work.replaced else []):
        # A write that was given up for lost has happened since the writer read what there is.
        return False
    for shard in shards:
        assert shard is not None
        tx.put(replace(shard, merged=True))
        tx.delete(BlobRecord, _blob(task_id, shard.shard_id))
    if work.replaced:
        tx.delete(BlobRecord, _blob(task_id, work.replaced))
    tx.put_pieces(BlobRecord(_blob(task_id, work.name), task_id, b""), work.pieces)
    return True


@dataclass(frozen=True)
class StoredShards:
    """What is stored of a task's aggregate.

    :param contributions: all that are in it.
    :param partials: its parts; their contributions together are all of them.
    :param unmerged: the ids of the shards that are in no total.
    :param total: the name of the total; ``""``: there is none.
    """

    contributions: tuple[str, ...] = ()
    partials: tuple[Partial, ...] = ()
    unmerged: tuple[str, ...] = ()
    total: str = ""
    dropped: int = 0
    surplus: int = 0


def read(tx: Transaction, task_id: str, blobs: Mapping[str, bytes]) -> StoredShards:
    """Return what is stored of a task's aggregate.

    :param blobs: the task's, by what follows ``<task_id>/``.
    :raises StatusError: DATA_LOSS if something of it is missing.
    """
    records = list(tx.select(ShardRecord, task_id=task_id))
    data = {name[6:]: blob for name, blob in blobs.items() if name.startswith("shard/")}
    totals = sorted(name for name in data if name.startswith("total-"))
    merged = tuple(i for shard in records if shard.merged for i in shard.contributions)
    unmerged = [shard for shard in records if not shard.merged]
    missing = [shard.shard_id for shard in unmerged if shard.shard_id not in data]
    if missing or len(totals) > 1 or bool(merged) != bool(totals):
        raise StatusError(
            Code.DATA_LOSS,
            f"the stored aggregate of task {task_id} is incomplete: {len(missing)} of "
            f"{len(records)} shards are missing, and there are {len(totals)} totals",
        )
    partials = [Partial(data[total], merged) for total in totals]
    partials += [Partial(data[shard.shard_id], shard.contributions) for shard in unmerged]
    return StoredShards(
        contributions=tuple(i for partial in partials for i in partial.contributions),
        partials=tuple(partials),
        unmerged=tuple(shard.shard_id for shard in unmerged),
        total=totals[0] if totals else "",
        dropped=max((shard.dropped for shard in records), default=0),
        surplus=max((shard.surplus for shard in records), default=0),
    )


def delete(tx: Transaction, task_id: str) -> None:
    """Delete the shards of a task; its blobs are the caller's to delete."""
    for shard in list(tx.select(ShardRecord, task_id=task_id)):
        tx.delete(ShardRecord, shard.shard_id)


def _blob(task_id: str, name: str) -> str:
    return f"{task_id}/shard/{name}"
