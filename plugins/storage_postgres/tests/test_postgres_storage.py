"""The storage is held to the kit, against a server of the tests' own."""

import asyncio
import contextlib
import hashlib
import os
import threading
from functools import partial

import pytest
from hypothesis import settings as hypothesis_settings

from fcp_core.storage import leases, shards
from fcp_core.storage.records import BlobRecord, LeaseRecord, ShardRecord, TaskRecord
from fcp_core.testing.storage import StorageConformance
from fcp_postgres import faults, parts
from fcp_postgres import jobs as connection_jobs
from fcp_postgres.jobs import Job, Jobs
from fcp_postgres.session import Session
from fcp_postgres.storage import PostgresStorage
from fcp_postgres.testing_proxy import ANSWERED, PASS, SENT, UNSENT, CuttingProxy


def schema_of(path):
    return "kit_" + hashlib.sha256(str(path).encode()).hexdigest()[:16]


def storage_of(path):
    """Make the storage of a path, here and in the kit's other processes."""
    return PostgresStorage(os.environ["FCP_TEST_POSTGRES"], schema=schema_of(path), patience=60)


class TestPostgres(StorageConformance):
    durable = shared = shared_by_hosts = can_fail = can_lose_answers = has_upkeep = True
    child_factory = "test_postgres_storage:storage_of"
    settings = hypothesis_settings(max_examples=6, stateful_step_count=25, deadline=None)

    @pytest.fixture(autouse=True)
    def server(self, fcp_postgres_server, monkeypatch):
        monkeypatch.setenv("FCP_TEST_POSTGRES", fcp_postgres_server.url)
        monkeypatch.syspath_prepend(os.path.dirname(__file__))
        self.postgres = fcp_postgres_server

    def make_storage(self, path):
        return storage_of(path)

    @contextlib.contextmanager
    def lose_answers(self, path):
        fates = [UNSENT, ANSWERED, PASS, SENT] * 10
        with pytest.MonkeyPatch.context() as patch, CuttingProxy(self.postgres, fates) as proxy:
            patch.setenv("FCP_TEST_POSTGRES", proxy.url)
            yield

    def disable(self, path):
        return self.postgres.down()

    def test_fails_in_the_contracts_words(self, tmp_path, monkeypatch):
        def impatient(path):
            return PostgresStorage(self.postgres.url, schema=schema_of(path), patience=0)

        monkeypatch.setattr(self, "make_storage", impatient)
        super().test_fails_in_the_contracts_words(tmp_path)

    def test_all_that_a_commit_depends_on_is_read_in_one_statement(self, tmp_path, monkeypatch):
        asked = []

        def count(session, query, *arguments):
            asked.append(query.split()[0])
            return kept(session, query, *arguments)

        async def use(storage):
            task = TaskRecord("t", "p", "task", "open", "a", b"", 0.0)
            lease = LeaseRecord("p", "me", 1, 0.0, 0.0)
            await storage.transact(lambda tx: (tx.put(task), tx.put(lease)))
            fence, totals = partial(leases.check, epoch=1), ()
            for number in range(3):
                shard = ShardRecord(f"s{number}", "t", (str(number),))
                total = shards.Merge((), totals, shards.total_name("t", (str(number),), ""), [b"x"])
                asked.clear()  # The tables are there after the first one.
                work = partial(shards.add, fence=fence, total=total, population="p")
                assert await storage.transact(lambda tx, s=shard, w=work: w(tx, s, [b"x"]))
                totals = (total.name,)
            assert asked == ["SELECT", "WITH"]

        kept = Session._query
        monkeypatch.setattr(Session, "_query", count)
        self.run(tmp_path / "store", use)

    def test_members_that_store_aggregates_of_other_tasks_have_no_conflict(
        self, tmp_path, monkeypatch
    ):
        conflicts = []
        both = threading.Barrier(2)

        def note(error):
            if kept(error):
                conflicts.append(error)
                both.abort()  # The other one has nobody left to meet.
            return kept(error)

        def write(session, writes):
            if together:
                with contextlib.suppress(threading.BrokenBarrierError):
                    both.wait(60)
            return write_now(session, writes)

        async def store(storage, task_id, totals, numbers):
            for number in numbers:
                shard = ShardRecord(f"{task_id}{number}", task_id, (str(number),))
                name = shards.total_name(task_id, (shard.shard_id,), "")
                work = partial(
                    shards.add,
                    shard=shard,
                    pieces=[b"x"],
                    fence=partial(leases.check, epoch=1),
                    total=shards.Merge((), totals, name, [b"x"]),
                    population=task_id,
                    look=not totals,  # The first write of each looks what there is.
                )
                assert await storage.transact(lambda tx, w=work: w(tx))
                totals = (name,)
            return totals

        async def use(storage):
            other = storage_of(tmp_path / "store")
            await other.start()
            try:
                begun = []
                for each, task_id in ((storage, "t"), (other, "u")):
                    task = TaskRecord(task_id, task_id, "task", "open", "a", b"", 0.0)
                    lease = LeaseRecord(task_id, "me", 1, 0.0, 0.0)
                    await each.transact(lambda tx, t=task, w=lease: (tx.put(t), tx.put(w)))
                    begun.append((each, task_id, await store(each, task_id, (), [0])))
                # So that all is read before anything is written, if it is read first.
                await asyncio.to_thread(
                    self.postgres.sql, slow.format(schema_of(tmp_path / "store"))
                )
                together.append(True)
                await asyncio.gather(*(store(*each, range(1, 6)) for each in begun))
                together.clear()
            finally:
                await other.stop()

        slow = (
            "CREATE FUNCTION {0}.slow() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END';"
            "CREATE TRIGGER slow BEFORE INSERT ON {0}.r_blob FOR EACH ROW"
            " EXECUTE FUNCTION {0}.slow()"
        )
        together = []
        write_now = Session._write
        monkeypatch.setattr(Session, "_write", write)
        kept = faults.is_conflict
        monkeypatch.setattr(faults, "is_conflict", note)
        self.run(tmp_path / "store", use)
        assert conflicts == []

    def test_the_room_of_what_was_replaced_is_used_again(self, tmp_path, monkeypatch):
        vacuums = (
            "SELECT vacuum_count FROM pg_stat_all_tables WHERE relname = 'parts'"
            f" AND schemaname = '{schema_of(tmp_path / 'store')}'"
        )

        async def use(storage):
            for number in range(3):
                pieces = [bytes([number]), memoryview(bytes(200_000))]
                blob = BlobRecord("b", "t", b"")
                await storage.transact(lambda tx, p=pieces, b=blob: tx.put_pieces(b, p))
            # What was given in pieces is read as one, by whoever wrote it too.
            data = await storage.transact(lambda tx: tx.get(BlobRecord, "b").data)
            assert data == bytes([2]) + bytes(200_000)
            for _ in range(600):
                if await asyncio.to_thread(self.postgres.sql, vacuums) != "0":
                    return
                await asyncio.sleep(0.1)
            pytest.fail("nothing was vacuumed")

        monkeypatch.setattr(parts, "_UNTIDY", 100_000)
        self.run(tmp_path / "store", use)

    def test_what_waits_is_taken_by_the_connection_that_was_used_last(self):
        jobs, takers = Jobs(), []

        def take():
            while batch := jobs.take():
                takers.append(threading.current_thread())
                for job in batch:
                    job.settle()
                jobs.done()

        threads = [threading.Thread(target=take, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            while len(jobs._idle) < len(threads):
                pass
            job = Job(lambda tx: None)
            jobs.put(job)
            job.future.result(60)
        jobs.close()
        for thread in threads:
            thread.join()
        assert len(takers) == 10
        assert len(set(takers)) == 1


def test_what_one_connection_leaves_waiting_another_one_takes(monkeypatch):
    """More than one takes at a time, while that one is kept by something large."""
    monkeypatch.setattr(connection_jobs, "_MAX_BATCH", 1)
    jobs, both = Jobs(), threading.Barrier(2)

    def take():
        while batch := jobs.take():
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(30)
            for job in batch:
                job.settle()
            jobs.done()

    threads = [threading.Thread(target=take, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(jobs._idle) < len(threads):
        pass
    with jobs._lock:  # Both come before anybody is awake.
        waiting = [Job(lambda tx: None) for _ in range(2)]
        jobs._waiting.extend(waiting)
        jobs._wake()
    for job in waiting:
        job.future.result(60)
    jobs.close()
    for thread in threads:
        thread.join()
    assert not both.broken
