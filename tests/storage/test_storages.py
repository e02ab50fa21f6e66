"""Both built-in storages are held to the kit, and SQLite to what is its own."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.storage.contract import StorageError
from fcp_core.testing.storage import StorageConformance
from fcp_plugins.storage_memory import MemoryStorage
from fcp_plugins.storage_sqlite import APPLICATION_ID, SqliteStorage
from tests.storage.sqlite_files import put, start_and_stop


class TestMemory(StorageConformance):
    def make_storage(self, path):
        return MemoryStorage()


@contextlib.contextmanager
def locked(path):
    """Keep an SQLite file's lock, as another process would."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


class TestSqlite(StorageConformance):
    durable = shared = can_fail = has_upkeep = True
    child_factory = "fcp_plugins.storage_sqlite:SqliteStorage"

    def make_storage(self, path):
        return SqliteStorage(path)

    def disable(self, path):
        return locked(path)

    def test_fails_in_the_contracts_words(self, tmp_path, monkeypatch):
        monkeypatch.setattr(self, "make_storage", lambda path: SqliteStorage(path, 0.1))
        super().test_fails_in_the_contracts_words(tmp_path)


def test_memory_keeps_what_was_put_and_not_what_became_of_it():
    from dataclasses import dataclass
    from typing import ClassVar

    from fcp_core.storage.contract import Record

    @dataclass(frozen=True)
    class Loose(Record):
        KIND: ClassVar[str] = "loose"
        KEY: ClassVar[str] = "name"
        name: str
        values: dict[str, list[int]]

    async def main():
        storage = MemoryStorage()
        values = {"a": [1]}
        await storage.transact(lambda tx: tx.put(Loose("x", values)))
        values["a"].append(2)
        return await storage.transact(lambda tx: tx.get(Loose, "x"))

    assert asyncio.run(main()) == Loose("x", {"a": [1]})


def test_the_configuration_chooses_the_storage_and_its_file(tmp_path):
    (tmp_path / "setup.cfg").write_text(
        "[fcp]\nstorage = sqlite\n[fcp:storage.sqlite]\npath = here.db\n"
    )
    storage = Plugins.load(working_folder=tmp_path, environ={}).make_storage()

    async def main():
        await storage.start()
        await storage.stop()

    asyncio.run(main())
    assert (tmp_path / "here.db").is_file()
    assert storage.durable


def test_a_new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode(tmp_path):
    def modes():
        return {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}

    async def use():
        storage = SqliteStorage(tmp_path / "fcp.sqlite")
        await storage.start()
        try:
            return modes()
        finally:
            await storage.stop()

    mask = os.umask(0)
    try:
        assert set(asyncio.run(use()).values()) == {0o600}
        (tmp_path / "fcp.sqlite").chmod(0o640)
        assert asyncio.run(use())["fcp.sqlite"] == 0o640
    finally:
        os.umask(mask)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none.store\.db cannot be opened.*folder must exist"):
        start_and_stop(tmp_path / "none" / "store.db")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be opened"):
        start_and_stop(tmp_path)


def test_a_new_file_has_large_pages_and_an_old_one_goes_on_with_its_own(tmp_path):
    old = sqlite3.connect(tmp_path / "old.db")
    old.execute("PRAGMA page_size = 4096")
    old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    old.close()
    for name, size in (("new.db", 1 << 16), ("old.db", 4096)):
        put(tmp_path / name, "a")
        db = sqlite3.connect(tmp_path / name)
        assert db.execute("PRAGMA page_size").fetchone() == (size,)
        db.close()


def test_a_commit_waits_for_the_disk(tmp_path):
    # A kill does not show it: the system has what was written. Only a lost machine would.
    pragmas = ("synchronous", "journal_mode")

    async def main():
        storage = SqliteStorage(tmp_path / "store.db")
        await storage.start()
        try:
            return await storage.transact(
                lambda tx: [tx._db.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
            )
        finally:
            await storage.stop()

    assert asyncio.run(main()) == [2, "wal"]


def test_use_outside_of_start_and_stop_is_an_error_of_the_program(tmp_path):
    async def main():
        storage = SqliteStorage(tmp_path / "store.db")
        with pytest.raises(RuntimeError, match="not started"):
            await storage.transact(lambda tx: None)
        await storage.stop()
        await storage.start()
        await storage.stop()
        with pytest.raises(RuntimeError, match="not started"):
            await storage.transact(lambda tx: None)

    asyncio.run(main())


def test_the_file_can_be_renamed_between_runs(tmp_path):
    put(tmp_path / "one.db", "a")
    Path(tmp_path / "one.db").rename(tmp_path / "two.db")
    put(tmp_path / "two.db", "b")
    assert not (tmp_path / "two.db-wal").exists()


def test_who_waits_for_a_file_that_another_process_keeps_waits_together(tmp_path):
    """Not one after another, each as long as all."""
    storage, runs = SqliteStorage(tmp_path / "store.db", 0.1), []
    begun, go_on = threading.Event(), threading.Event()
    run = storage._run_batch

    def counted(connection, batch):
        runs.append(len(batch))
        run(connection, batch)

    async def main():
        await storage.start()
        first = asyncio.ensure_future(storage.transact(lambda tx: begun.set() or go_on.wait()))
        await asyncio.to_thread(begun.wait)
        storage._run_batch = counted
        waiting = [asyncio.ensure_future(storage.transact(lambda tx: None)) for _ in range(9)]
        await asyncio.sleep(0)
        go_on.set()
        await first
        with locked(tmp_path / "store.db"):
            more = [storage.transact(lambda tx: None) for _ in range(9)]
            errors = await asyncio.gather(*waiting, *more, return_exceptions=True)
        await storage.stop()
        return errors

    errors = asyncio.run(main())
    assert any(isinstance(error, StorageError) for error in errors)
    assert sum(runs) == 18  # nobody was tried twice
