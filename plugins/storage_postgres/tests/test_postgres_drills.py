"""Faults of the network and of the server: what was answered is there, and nothing twice."""

import asyncio
import itertools
import os
import random
import threading
import time

import pytest

from fcp_core.protocol.status import Code, StatusError
from fcp_core.storage.contract import StorageError
from fcp_core.testing.storage import Item, OtherItem
from fcp_postgres import silence
from fcp_postgres import storage as storage_module
from fcp_postgres.migrations import lock_of
from fcp_postgres.session import Session
from fcp_postgres.storage import PostgresStorage
from fcp_postgres.testing import PostgresServer
from fcp_postgres.testing_proxy import ANSWERED, FATES, LAST, PASS, SENT, UNSENT, CuttingProxy


def run(use, *arguments, **options):
    async def main():
        storage = PostgresStorage(*arguments, **options)
        await storage.start()
        try:
            return await use(storage)
        finally:
            await storage.stop()

    return asyncio.run(main())


def count(name):
    def body(tx):
        item = tx.get(Item, name) or Item(name)
        tx.put(Item(name, size=item.size + 1))
        tx.put(OtherItem(f"{name}-{item.size}"))

    return body


async def sizes(storage):
    items, others = await storage.transact(
        lambda tx: (list(tx.select(Item)), list(tx.select(OtherItem)))
    )
    assert len(others) == sum(item.size for item in items)  # Each count wrote both.
    return {item.name: item.size for item in items}


@pytest.mark.parametrize("fate", [UNSENT, SENT, ANSWERED])
def test_a_commit_whose_answer_is_lost_happens_once(fcp_postgres_server, fcp_postgres_schema, fate):
    schema = fcp_postgres_schema()
    with CuttingProxy(fcp_postgres_server) as proxy:

        async def use(storage):
            await storage.transact(count("a"))  # Makes the tables.
            proxy.commits.clear()
            proxy.decide(fate)
            await storage.transact(count("a"))
            return await sizes(storage)

        assert run(use, proxy.url, schema, patience=60) == {"a": 2}
    # One that was answered is not sent again, one that was not sent is; one that was sent is if the
    # server had not begun with it when it was asked. The last one only reads.
    first, *again, last = proxy.commits
    assert (first, last) == (fate, PASS)
    assert again in {UNSENT: [[PASS]], SENT: [[], [PASS]], ANSWERED: [[]]}[fate]


def test_a_commit_that_a_crash_lost_is_not_taken_for_another_one(
    fcp_postgres_server, fcp_postgres_schema, monkeypatch
):
    """After the crash another transaction has the number of the one that is lost, and commits."""
    ask = Session._was_committed

    def crash_and_ask(session, commit, error):
        fcp_postgres_server.crash()
        fcp_postgres_server.start()
        while int(fcp_postgres_server.sql("SELECT pg_current_xact_id()")) < int(commit.xact):
            pass
        return ask(session, commit, error)

    with CuttingProxy(fcp_postgres_server) as proxy:

        async def use(storage):
            await storage.transact(count("a"))
            proxy.decide(UNSENT)
            with monkeypatch.context() as patch:
                patch.setattr(Session, "_was_committed", crash_and_ask)
                await storage.transact(count("a"))
            return await sizes(storage)

        assert run(use, proxy.url, fcp_postgres_schema(), patience=60) == {"a": 2}


def test_many_cuts_at_random(fcp_postgres_server, fcp_postgres_schema):
    rng = random.Random(1)
    fates = [rng.choice(FATES) for _ in range(60)]
    schema = fcp_postgres_schema()
    with CuttingProxy(fcp_postgres_server, fates) as proxy:

        async def use(storage):
            async def writer(name):
                for _ in range(15):
                    await storage.transact(count(name))

            await asyncio.gather(*(writer(name) for name in "abcd"))
            return await sizes(storage)

        found = run(use, proxy.url, schema, patience=60)
    assert found == dict.fromkeys("abcd", 15)
    assert set(proxy.commits) == set(FATES)


def test_what_is_not_known_is_said(fcp_postgres_server, fcp_postgres_schema):
    """The commit happened, nobody can be asked, and the error says that it may have."""
    schema = fcp_postgres_schema()
    with CuttingProxy(fcp_postgres_server) as proxy:

        async def use(storage):
            await storage.transact(count("a"))
            proxy.decide(LAST)
            with pytest.raises(StorageError, match="whether the write was kept is not known"):
                await storage.transact(count("a"))
            proxy.is_open = True
            return await sizes(storage)

        assert run(use, proxy.url, schema, patience=0) == {"a": 2}


@pytest.mark.slow
def test_the_server_crashes_under_load(fcp_postgres_server, fcp_postgres_schema):
    """It is killed and recovers, three times, and no transaction fails or happens twice."""
    done = itertools.count()

    async def use(storage):
        enough = asyncio.Event()

        async def writer(name):
            for number in itertools.count(1):
                await storage.transact(count(name))
                next(done)
                if enough.is_set():
                    return number

        writers = [asyncio.create_task(writer(name)) for name in "abcdef"]
        for _ in range(3):
            before = next(done)
            while next(done) < before + 40 and not any(task.done() for task in writers):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(fcp_postgres_server.crash)
            await asyncio.to_thread(fcp_postgres_server.start)
        enough.set()
        counts = await asyncio.gather(*writers)
        return await sizes(storage), dict(zip("abcdef", counts, strict=True))

    found, answered = run(use, fcp_postgres_server.url, fcp_postgres_schema(), patience=120)
    assert found == answered
    assert "automatic recovery in progress" in fcp_postgres_server.log


def test_a_storm_of_conflicts(fcp_postgres_server, fcp_postgres_schema):
    """Three hosts want the same record, and one of them is slow; all get their turn."""
    schema = fcp_postgres_schema()

    def slow(tx):
        time.sleep(0.03)
        count("a")(tx)
        time.sleep(0.03)

    async def use(first):
        others = [PostgresStorage(fcp_postgres_server.url, schema) for _ in range(2)]
        for storage in others:
            await storage.start()
        going = True

        async def hammer(storage):
            for number in itertools.count(1):
                await storage.transact(count("a"))
                if not going:
                    return number

        hammers = [asyncio.create_task(hammer(storage)) for storage in others for _ in range(2)]
        for _ in range(4):
            await first.transact(slow)
        going = False
        number = 4 + sum(await asyncio.gather(*hammers))
        for storage in others:
            await storage.stop()
        return await sizes(first), number

    log = len(fcp_postgres_server.log)
    found, number = run(use, fcp_postgres_server.url, schema, patience=120)
    assert found == {"a": number}
    assert "could not serialize access" in fcp_postgres_server.log[log:]


@pytest.fixture(scope="module")
def small_server():
    with PostgresServer(small_disk=16 << 20) as server:
        server.sql(f"CREATE TABLESPACE small LOCATION '{server.small}'")
        server.sql(
            "CREATE TABLE filler TABLESPACE small AS"
            " SELECT repeat('x', 1000) FROM generate_series(1, 4000)"
        )
        yield server


def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(small_server):
    async def use(storage):
        kept = Item("kept", data=os.urandom(4 << 20))
        await storage.transact(lambda tx: tx.put(kept))
        calls = [
            storage.transact(lambda tx: tx.put(Item("large", data=os.urandom(16 << 20)))),
            *(storage.transact(lambda tx, n=n: tx.put(Item(str(n)))) for n in range(20)),
        ]
        error, *answers = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(error, StorageError)
        assert "its disk is full" in error.message
        assert answers == [None] * 20, [str(answer) for answer in answers if answer][:1]
        names = await storage.transact(lambda tx: {item.name for item in tx.select(Item)})
        assert names == {"kept", *map(str, range(20))}
        small_server.sql("DROP TABLE filler")
        await storage.transact(lambda tx: tx.put(Item("next", data=os.urandom(2 << 20))))
        assert await storage.transact(lambda tx: tx.get(Item, "kept")) == kept

    run(use, f"{small_server.url}&default_tablespace=small")


def test_those_who_wait_for_a_lost_database_wait_together(fcp_postgres_server, fcp_postgres_schema):
    """A batch that is run one by one, when the database goes, fails as a whole."""
    with CuttingProxy(fcp_postgres_server) as proxy:

        async def use(storage):
            await storage.transact(count("a"))

            attempts = itertools.count()

            def wrong(tx):
                if next(attempts):  # It is alone now, and from here on nobody is there.
                    proxy.is_open = False
                    proxy._loop.call_soon_threadsafe(proxy.cut)
                tx._query("SELECT 1 / 0")

            began = time.monotonic()
            calls = [
                storage.transact(wrong),
                *(storage.transact(count("a")) for _ in range(99)),
            ]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            took = time.monotonic() - began
            assert all(isinstance(answer, StorageError) for answer in answers)
            proxy.is_open = True
            assert await sizes(storage) == {"a": 1}
            return took

        # A second each would be a hundred.
        assert run(use, proxy.url, fcp_postgres_schema(), patience=1, connections=1) < 60


def test_a_connection_that_says_nothing_is_given_up_and_a_slow_statement_is_not(
    fcp_postgres_server, fcp_postgres_schema, monkeypatch
):
    """Also in the middle of a transaction, and with a commit on its way."""
    monkeypatch.setattr(silence, "AFTER", 0.2)
    with CuttingProxy(fcp_postgres_server) as proxy:

        async def use(storage):
            tries = []

            def slow(tx):
                count("a")(tx)
                tx._query("SELECT pg_sleep(1)")

            def interrupted(tx):
                count("a")(tx)
                if not tries:
                    proxy.silence()
                tries.append(tx)

            await storage.transact(count("a"))  # Makes the tables.
            await storage.transact(slow)  # It would be tried again until the patience is over.
            proxy.silence()
            await storage.transact(count("a"))
            await storage.transact(interrupted)
            assert len(tries) > 1
            return await sizes(storage)

        # It would take an hour.
        found = run(use, proxy.url, fcp_postgres_schema(), timeout=3600, patience=20)
        assert found == {"a": 4}


@pytest.mark.slow
def test_a_record_of_200_megabytes(fcp_postgres_server, fcp_postgres_schema):
    data = os.urandom(1 << 20) * 200

    async def use(storage):
        await storage.transact(lambda tx: tx.put(Item("large", data=data)))
        small = [storage.transact(count(str(number))) for number in range(5)]
        large, *_ = await asyncio.gather(storage.transact(lambda tx: tx.get(Item, "large")), *small)
        assert large.data == data
        await storage.transact(lambda tx: tx.delete(Item, "large"))

    run(use, fcp_postgres_server.url, fcp_postgres_schema())


def test_a_record_that_is_too_large_is_an_error_of_its_own(
    fcp_postgres_server, fcp_postgres_schema, monkeypatch
):
    async def use(storage):
        monkeypatch.setattr("fcp_postgres.tables.LARGEST_RECORD", 10_000)
        calls = [
            storage.transact(lambda tx, n=n: tx.put(Item(str(n), data=bytes(n))))
            for n in (9_000, 10_000, 1)
        ]
        first, error, second = await asyncio.gather(*calls, return_exceptions=True)
        assert (first, second) == (None, None)
        assert isinstance(error, StatusError)
        assert error.code is Code.RESOURCE_EXHAUSTED
        assert {"1", "9000"} == set(await sizes(storage))

    run(use, fcp_postgres_server.url, fcp_postgres_schema())


def test_who_sleeps_before_its_commit_does_not_keep_the_others(
    fcp_postgres_server, fcp_postgres_schema, monkeypatch
):
    """A member that is paused then has locks, and the others want the same rows."""
    place = (fcp_postgres_server.url, fcp_postgres_schema())
    woken, asleep, commit = threading.Event(), threading.Event(), Session._commit

    def sleep(session, open_commit):
        monkeypatch.setattr(Session, "_commit", commit)
        asleep.set()
        woken.wait()
        commit(session, open_commit)

    async def use(storage):
        await storage.transact(count("a"))
        monkeypatch.setattr(Session, "_commit", sleep)
        sleeper = asyncio.ensure_future(storage.transact(count("a")))
        await asyncio.to_thread(asleep.wait)
        try:
            other = PostgresStorage(*place, timeout=10, patience=1)
            await other.start()
            await other.transact(count("a"))
            await other.stop()
        finally:
            woken.set()
        await sleeper  # it finds that nothing of it was kept, and does it again
        return await sizes(storage)

    assert run(use, *place, timeout=1) == {"a": 3}


def test_a_database_that_keeps_us_waiting_is_given_up(
    fcp_postgres_server, fcp_postgres_schema, monkeypatch
):
    """Whoever makes a table sleeps with the lock; and a server that stops does not wait for it."""
    monkeypatch.setattr(storage_module, "STOPPING", 0.1)
    schema, prepare = fcp_postgres_schema(), storage_module.prepare_kind
    begun, held, threads, tries = threading.Event(), threading.Event(), [], []

    async def tried(*what):
        tries.append(what)
        return await prepare(*what)

    async def until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    async def use(storage):
        threads.extend(storage._threads)
        monkeypatch.setattr(storage_module, "prepare_kind", tried)
        locked = await storage._settings.connect()
        await locked.execute("SELECT pg_advisory_lock($1)", lock_of(schema))
        waiting = asyncio.ensure_future(storage.transact(count("a")))
        try:
            await until(lambda: len(tries) > 1)
        finally:
            await locked.close()
        await waiting
        busy = asyncio.ensure_future(storage.transact(lambda tx: begun.set() or held.wait()))
        await until(begun.is_set)
        await storage.stop()
        held.set()
        await busy

    run(use, fcp_postgres_server.url, schema, timeout=1, patience=60, connections=1)
    for thread in threads:
        thread.join()
