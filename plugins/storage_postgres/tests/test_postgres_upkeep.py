"""``fcp db`` with PostgreSQL."""

import asyncio

import pytest
from click.testing import CliRunner

from fcp_core.commands.main import cli
from fcp_core.storage.records import BlobRecord, TaskRecord
from fcp_postgres.migrations import MIGRATIONS
from fcp_postgres.storage import PostgresStorage

LAST = MIGRATIONS[-1].version
TASK = TaskRecord("t1", "people", "train", "open", "a1", b"spec", created=2e9)
HEALTHY = (TASK, *(BlobRecord(f"t1/{name}", "t1", b"x") for name in ("plan", "checkpoint")))


@pytest.fixture
def database(fcp_postgres_server, fcp_postgres_schema, tmp_path, monkeypatch):
    """The name of a schema; ``fcp db``; SQL; and what puts records."""
    schema = fcp_postgres_schema()
    (tmp_path / "setup.cfg").write_text(
        "[fcp]\nstorage = postgres\nplugins = fcp_postgres.plugin\n"
        f"[fcp:storage.postgres]\nschema = {schema}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCP_STORAGE_POSTGRES__URL", fcp_postgres_server.url)

    def db(*arguments, status=0):
        result = CliRunner().invoke(cli, ["db", *arguments], prog_name="fcp")
        assert result.exit_code == status, result.output
        return result.output

    def put(*records):
        async def main():
            storage = PostgresStorage(fcp_postgres_server.url, schema)
            await storage.start()
            await storage.transact(lambda tx: [tx.put(record) for record in records])
            await storage.stop()

        asyncio.run(main())

    return schema, db, lambda sql: fcp_postgres_server.sql(sql.format(schema)), put


def test_its_life(database):
    schema, db, _, put = database
    assert f"schema version 0 (this release makes it {LAST}: fcp db migrate)" in db("info")
    assert "has no tables, and this release needs" in db("check", status=2)
    assert db("migrate") == f"It is made, with schema version {LAST}.\n"
    assert db("migrate") == f"It is up to date: schema version {LAST}.\n"
    assert "lease" in db("info")  # All tables are there, for a user who may make none.
    put(*HEALTHY)
    assert db("check") == "Nothing is damaged.\n"
    put(BlobRecord("t9/plan", "t9", b""))
    assert "1 not needed" in db("check")
    assert "Removed 1." in db("gc")
    assert f"schema '{schema}'\nschema version {LAST}, " in db("info")


def test_a_copy_is_made_by_its_own_program(database):
    schema, db, _, _ = database
    words = db("backup", "my copy", status=2)
    assert f"pg_dump --format=custom --schema={schema} --file='my copy' postgres" in words


def test_an_index_that_disagrees_is_damage(database):
    _, db, sql, put = database
    put(*HEALTHY)
    sql("UPDATE {}.r_blob SET i_task_id = 'x' WHERE key = 't1/plan'")
    assert "blob 't1/plan' is indexed by another task_id" in db("check", status=1)


def test_a_record_that_cannot_be_read_is_damage(database):
    _, db, sql, put = database
    put(*HEALTHY)
    sql(r"UPDATE {}.r_blob SET data = '\xc1' WHERE key = 't1/plan'")
    output = db("check", status=1)
    assert "blob 't1/plan' cannot be read" in output
    assert "has no plan" in output


def test_parts_that_do_not_belong_together_are_damage(database):
    _, db, sql, put = database
    put(*HEALTHY, BlobRecord("t1/slice/1/a", "t1", bytes(100_000)))
    assert db("check") == "Nothing is damaged.\n"
    sql("UPDATE {}.parts SET id = -id")
    output = db("check", status=1)
    assert "1 records of kind 'blob' have lost their bytes" in output
    assert "the parts of 1 records belong to no record" in output
    assert "blob 't1/slice/1/a' cannot be read" in output
