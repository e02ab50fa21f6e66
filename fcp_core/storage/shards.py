"""Shards in storage: the partial aggregates of open tasks, and the transactions that keep them.

A shard holds what was accumulated since the last one was written, with the ids of the contributions
in it. Shards are never changed. Many are merged into a total: it takes the place of their bytes,
and their ids stay, so that a write which was given up for lost and happens later is noticed and has
no effect.

The owner of a task writes one *stream* of shards, with a total of its own; each member that
accumulates for it writes another. The owner *closes* a stream when it wants what is in it, or does
not hear of its writer any more: what is in it then is all that ever will be. The total that takes
the place of a closed stream's is the owner's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from fcp_core.aggregation.engine import Partial
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import TaskState
from fcp_core.storage.contract import Read, Transaction
from fcp_core.storage.records import BlobRecord, LeaseRecord, ShardRecord, TaskRecord

#: How the names of totals begin; no shard's does.
_TOTAL = "total-"

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


class StreamClosedError(StatusError):
    """The owner of the task has closed the stream: nothing was written."""

    def __init__(self, stream: str) -> None:
        super().__init__(Code.ABORTED, f"the stream {stream} of shards is closed")
        self.stream = stream

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from another process."""
        return (StreamClosedError, (self.stream,))


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


def total_name(task_id: str, shards: Iterable[str], stream: str) -> str:
    """Return the name of the total of a stream that holds these shards, and earlier totals."""
    name = f"{_TOTAL}{shard_id(task_id, tuple(shards))}"
    return f"{name}.{stream}" if stream else name


def stream_of(total: str) -> str:
    """Return the stream of the total of a name."""
    return total.partition(".")[2]


@dataclass(frozen=True)
class Merge:
    """Puts a total in the place of the bytes of a new shard, of others and of earlier totals.

    :param shards: the ids of the others: their bytes are in it and were in no total before.
    :param replaced: the names of the earlier totals: that of its stream, and those of closed ones.
    :param name: of the total.
    :param pieces: everything that all of them hold.
    """

    shards: Sequence[str]
    replaced: Sequence[str]
    name: str
    pieces: Sequence[bytes | memoryview]


def add(
    tx: Transaction,
    shard: ShardRecord,
    pieces: Sequence[bytes | memoryview],
    fence: Fence,
    total: Merge | None = None,
    population: str | None = None,
    *,
    look: bool = True,
) -> bool:
    """Write a shard, unless it is there already. May run twice.

    :param pieces: its bytes.
    :param total: takes their place if all that it holds is there.
    :param population: the task's, if that is known and has a lease.
    :param look: first look whether it is there, and which totals are. Whoever does not, as all is
        most likely as it was left, has no conflict with those who write of other tasks.
    :returns: whether it did.
    :raises ChangedError: without *look*, if all is not as it was left: look, then.
    :raises TaskOverError: as :func:`open_task`.
    :raises StreamClosedError: if its stream takes nothing more.
    """
    task_id = shard.task_id
    # A stream has one total: that it is there to be replaced says that there is no other one.
    own = "" if total is None else stream_of(total.name)
    sure = not look and (total is None or own in map(stream_of, total.replaced))
    reads: list[Read] = [(TaskRecord, task_id)]
    if population is not None:
        reads.append((LeaseRecord, population))
    if look:
        reads.append((ShardRecord, shard.shard_id))
    if total is not None:
        reads += [(ShardRecord, key) for key in total.shards]
        if not sure:
            reads.append((BlobRecord, {"task_id": task_id}))
    tx.expect(*reads)
    if shard.stream in open_task(tx, task_id, fence).closed:
        raise StreamClosedError(shard.stream)
    known = tx.get(ShardRecord, shard.shard_id) if look else None
    if known is not None:
        return known.merged
    merged = total is not None and _merge(tx, task_id, total, sure)
    if not merged:
        tx.put_pieces(BlobRecord(_blob(task_id, shard.shard_id), task_id, b""), pieces)
    (tx.put if look else tx.insert)(replace(shard, merged=merged))
    return merged


def _merge(tx: Transaction, task_id: str, work: Merge, sure: bool) -> bool:
    shards = [tx.get(ShardRecord, key) for key in work.shards]
    if any(shard is None or shard.merged for shard in shards):
        return False
    if not sure:
        there, own = _totals(tx, task_id), stream_of(work.name)
        if not {name for name in there if stream_of(name) == own} <= {*work.replaced} <= there:
            # A write that was given up for lost has happened since the writer read what there is.
            return False
    for shard in shards:
        assert shard is not None
        tx.put(replace(shard, merged=True))
        tx.delete(BlobRecord, _blob(task_id, shard.shard_id))
    for name in work.replaced:
        tx.remove(BlobRecord, _blob(task_id, name))
    tx.put_pieces(BlobRecord(_blob(task_id, work.name), task_id, b""), work.pieces)
    return True


def _totals(tx: Transaction, task_id: str) -> set[str]:
    begins = _blob(task_id, "")
    names = (name[len(begins) :] for name in tx.keys(BlobRecord, task_id=task_id))
    return {name for name in names if name.startswith(_TOTAL)}


@dataclass(frozen=True)
class StoredShards:
    """What is stored of a task's aggregate.

    :param contributions: all that are in it.
    :param partials: its parts, first those of the totals; their contributions together are all.
    :param unmerged: the ids of the shards that are in no total.
    :param totals: the names of the totals.
    """

    contributions: tuple[str, ...] = ()
    partials: tuple[Partial, ...] = ()
    unmerged: tuple[str, ...] = ()
    totals: tuple[str, ...] = ()
    dropped: int = 0
    surplus: int = 0


def read(tx: Transaction, task_id: str, blobs: Mapping[str, bytes]) -> StoredShards:
    """Return what is stored of a task's aggregate.

    :param blobs: the task's, by what follows ``<task_id>/``.
    :raises StatusError: DATA_LOSS if something of it is missing.
    """
    records = list(tx.select(ShardRecord, task_id=task_id))
    data = {name[6:]: blob for name, blob in blobs.items() if name.startswith("shard/")}
    found, task = _made_of(task_id, records, data), tx.get(TaskRecord, task_id)
    if task is None:
        return found
    # Whoever left the task last noted what came after the last shard.
    dropped, surplus = max(found.dropped, task.dropped), max(found.surplus, task.surplus)
    return replace(found, dropped=dropped, surplus=surplus)


def close(tx: Transaction, task_id: str, streams: Collection[str], fence: Fence) -> StoredShards:
    """Close streams; return what is in them. May run twice.

    :raises TaskOverError: as :func:`open_task`.
    :raises StatusError: DATA_LOSS if something of it is missing.
    """
    task = open_task(tx, task_id, fence)
    tx.put(replace(task, closed=tuple(dict.fromkeys((*task.closed, *streams)))))
    found = tx.select(ShardRecord, task_id=task_id)
    records = [shard for shard in found if shard.stream in streams]
    names = [shard.shard_id for shard in records if not shard.merged]
    names += sorted(name for name in _totals(tx, task_id) if stream_of(name) in streams)
    blobs = {name: tx.get(BlobRecord, _blob(task_id, name)) for name in names}
    data = {name: blob.data for name, blob in blobs.items() if blob is not None}
    return _made_of(task_id, records, data)


def _made_of(
    task_id: str, records: Sequence[ShardRecord], data: Mapping[str, bytes]
) -> StoredShards:
    """Return what records and bytes are together.

    :param data: bytes of shards and totals, by name.
    """
    totals = sorted(name for name in data if name.startswith(_TOTAL))
    of_stream = {stream_of(name): name for name in totals}
    held: dict[str | None, list[str]] = {name: [] for name in totals}
    unmerged = [shard for shard in records if not shard.merged]
    for shard in records:
        if shard.merged:
            # What was in the total of a closed stream is in the owner's by now.
            total = of_stream.get(shard.stream, of_stream.get(""))
            held.setdefault(total, []).extend(shard.contributions)
    missing = [shard.shard_id for shard in unmerged if shard.shard_id not in data]
    if missing or len(of_stream) < len(totals) or not all(held.values()) or None in held:
        raise StatusError(
            Code.DATA_LOSS,
            f"the stored aggregate of task {task_id} is incomplete: {len(missing)} of "
            f"{len(records)} shards are missing, and there are {len(totals)} totals",
        )
    partials = [Partial(data[total], tuple(held[total])) for total in totals]
    partials += [Partial(data[shard.shard_id], shard.contributions) for shard in unmerged]
    return StoredShards(
        contributions=tuple(i for partial in partials for i in partial.contributions),
        partials=tuple(partials),
        unmerged=tuple(shard.shard_id for shard in unmerged),
        totals=tuple(totals),
        dropped=max((shard.dropped for shard in records), default=0),
        surplus=max((shard.surplus for shard in records), default=0),
    )


def delete(tx: Transaction, task_id: str) -> None:
    """Delete the shards of a task; its blobs are the caller's to delete."""
    for shard in list(tx.select(ShardRecord, task_id=task_id)):
        tx.delete(ShardRecord, shard.shard_id)


def _blob(task_id: str, name: str) -> str:
    return f"{task_id}/shard/{name}"
