"""What is damaged is found and left, what nobody needs is found and removed."""

import asyncio
import contextlib
import dataclasses
import sqlite3

import pytest

from fcp_core.storage.integrity import examine, kinds, remove
from fcp_core.storage.records import (
    AccountRecord,
    BlobRecord,
    EntryRecord,
    MemberRecord,
    PolicyStateRecord,
    ShardRecord,
    TaskRecord,
)
from fcp_plugins.storage_sqlite import SqliteStorage

NOW = 2_000_000_000.0
DAY = 86_400.0
OPEN = TaskRecord("t1", "people", "train", "open", "a1", b"spec", created=NOW)
DONE = TaskRecord("t2", "people", "train", "completed", "a2", b"", created=NOW, finished=NOW)
NOISY = dataclasses.replace(DONE, task_id="t3", aggregation_id="a3", release=b"{}")
ENTRY = EntryRecord("t3", "people", "train", NOW, {"privacy/people/device": 2}, b"{}")
SHARDS = (
    ShardRecord("s1", "t1", ("c1", "c2"), merged=True),
    ShardRecord("s2", "t1", ("c3",)),
)
MEMBER = MemberRecord("m1", "http://a/", "http://a/", "host", 7, started=NOW, heartbeat=NOW)
HEALTHY = (
    OPEN,
    *(BlobRecord(f"t1/{name}", "t1", b"x") for name in ("plan", "checkpoint", "slice/1/a")),
    *(BlobRecord(f"t1/shard/{name}", "t1", b"x") for name in ("s2", "total-1")),
    *SHARDS,
    DONE,
    BlobRecord("t2/result", "t2", b"x"),
    NOISY,
    BlobRecord("t3/result", "t3", b"x"),
    ENTRY,
    AccountRecord("privacy/people/device", "people", 2, b"{}"),
    PolicyStateRecord("k", "people", b"{}", NOW),
    MEMBER,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


def use(path, work):
    async def main():
        storage = SqliteStorage(path)
        await storage.start()
        try:
            return await work(storage)
        finally:
            await storage.stop()

    return asyncio.run(main())


def write(path, *changes):
    """Put the healthy records, and then these; a kind and a key delete."""

    def body(tx):
        for change in (*HEALTHY, *changes):
            if isinstance(change, tuple):
                tx.delete(*change)
            else:
                tx.put(change)

    use(path, lambda storage: storage.transact(body))


def look(path, monkeypatch, now=NOW):
    monkeypatch.setattr("fcp_plugins.sqlite_upkeep.time.time", lambda: now)
    return asyncio.run(examine(SqliteStorage(path).upkeep(), lambda population, name: DAY))


def test_what_belongs_together_has_nothing_wrong(path, monkeypatch):
    write(path)
    assert look(path, monkeypatch) == []


def test_all_kinds_are_known():
    assert {"task", "blob", "shard", "member", "lease", "policy_state"} <= set(kinds())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([(BlobRecord, "t1/plan")], "task 't1' (of 'train', open) has no plan"),
        ([(BlobRecord, "t1/checkpoint")], "has no checkpoint"),
        ([(BlobRecord, "t1/shard/s2")], "lacks the bytes of shard s2"),
        ([(BlobRecord, "t1/shard/total-1")], "has 0 totals of the shards that were merged"),
        ([BlobRecord("t1/shard/total-2", "t1", b"")], "has 2 totals"),
        ([(ShardRecord, "s2")], "has bytes of shard s2, of which nothing is known"),
        (
            [ShardRecord("s3", "t1", ("c3",), merged=True)],
            "has 1 contributions in more than one shard, such as c3",
        ),
        ([(BlobRecord, "t2/result")], "task 't2' (of 'train') has no result"),
        ([(EntryRecord, "t3")], "task 't3' (of 'train') has a result that is not booked"),
        (
            [AccountRecord("privacy/people/device", "people", 1, b"{}")],
            "entry 't3' made 'privacy/people/device' version 2, and that is at 1",
        ),
    ],
)
def test_damage_is_found_and_not_removed(path, monkeypatch, changes, words):
    write(path, *changes)
    (finding,) = look(path, monkeypatch)
    assert words in str(finding)
    assert finding.remove is None


@pytest.mark.parametrize(
    ("changes", "now", "words", "gone"),
    [
        ([BlobRecord("t9/plan", "t9", b"")], NOW, "is of the task 't9', which is not there", 1),
        ([ShardRecord("s9", "t9", ())], NOW, "shard 's9' is of the task 't9', which is not", 1),
        ([BlobRecord("t2/plan", "t2", b"")], NOW, "is of the task 't2', which has ended", 1),
        ([ShardRecord("s9", "t2", ())], NOW, "is of the task 't2', which has ended", 1),
        (
            [dataclasses.replace(MEMBER, member_id="m2", heartbeat=NOW - 2 * 3600)],
            NOW,
            "member 'm2' (process 7 on host) gave no sign of life",
            1,
        ),
        (
            [dataclasses.replace(DONE, finished=NOW - 2 * DAY)],
            NOW,
            "task 't2' (of 'train') has been kept for longer than task_retention",
            1,
        ),
    ],
)
def test_what_nobody_needs_is_found_and_removed(path, monkeypatch, changes, now, words, gone):
    write(path, *changes)
    findings = look(path, monkeypatch, now)
    assert len(findings) == 1
    assert words in str(findings[0])
    assert use(path, lambda storage: remove(storage, findings)) == gone
    assert look(path, monkeypatch, now) == []
    assert use(path, lambda storage: remove(storage, findings)) in (0, gone)


def test_what_is_needed_by_now_stays(path, monkeypatch):
    """Between the look and the removal a server may have written."""
    late = dataclasses.replace(DONE, finished=NOW - 2 * DAY)
    silent = dataclasses.replace(MEMBER, member_id="m2", heartbeat=0.0)
    write(path, BlobRecord("t9/plan", "t9", b""), late, silent, ShardRecord("s9", "t2", ()))
    findings = look(path, monkeypatch)
    assert len(findings) == 4
    write(
        path,
        dataclasses.replace(OPEN, task_id="t9"),
        dataclasses.replace(OPEN, task_id="t2"),
        dataclasses.replace(silent, heartbeat=NOW),
    )
    assert use(path, lambda storage: remove(storage, findings)) == 0


def test_many_are_removed_in_parts(path, monkeypatch):
    write(path, *(BlobRecord(f"t9/{number}", "t9", b"") for number in range(250)))
    findings = look(path, monkeypatch)
    assert use(path, lambda storage: remove(storage, findings)) == 250
    assert look(path, monkeypatch) == []


def test_what_cannot_be_read_is_named(path, monkeypatch):
    write(path)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE records SET data = x'c1' WHERE kind = 'policy_state'")
        db.execute("UPDATE records SET key = 'other' WHERE kind = 'member'")
    found = sorted(map(str, look(path, monkeypatch)))
    assert found[0] == "member 'other' holds the record of 'm1'"
    assert found[1].startswith("policy_state 'k' cannot be read: ")
    assert len(found) == 2
