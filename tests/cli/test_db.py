"""``fcp db``: on real files, those of earlier releases too, beside servers and without."""

import contextlib
import re
import resource
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.commands.main import cli
from fcp_core.testing import query_task
from fcp_core.testing.pytest_plugin import fcp_client, fcp_population, fcp_server
from fcp_plugins.storage_sqlite import SCHEMA_VERSION

__all__ = ["fcp_client", "fcp_population", "fcp_server"]

DATA = Path(__file__).parents[1] / "data"
SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("v", DataType.INT64, (1,)),),
    (TensorSpec("sum", DataType.INT64, (1,)),),
)


@pytest.fixture
def db(tmp_path, monkeypatch):
    """Run ``fcp db`` on a file and return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0, settings=()):
        pairs = [item for setting in settings for item in ("--set", setting)]
        result = CliRunner().invoke(cli, [*pairs, "db", *arguments], prog_name="fcp")
        assert result.exit_code == status, result.output
        return result.output

    return run


def database(path, version):
    """Make the file that a release with an older schema left: a task that ended and an open one."""
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.executescript((DATA / f"database-{version}.sql").read_text())
    return path


def server_on(fcp_server, path, **overrides):
    return fcp_server(
        overrides={
            "storage": "sqlite",
            "storage.sqlite.path": str(path),
            "task_retention": "100000d",
            "task_deadline": "100000d",
            **overrides,
        }
    )


def tasks_of(server):
    """Return the ids of a server's tasks by name."""
    found = server._run(server.server.services.tasks.list())
    return {task.name: task.task_id for task in found}


@pytest.mark.parametrize("version", [1, 2])
def test_a_database_of_an_earlier_release_is_taken_over(
    db, fcp_server, fcp_population, tmp_path, version
):
    path = database(tmp_path / "fcp.sqlite", version)
    assert f"this release makes it {SCHEMA_VERSION}: fcp db migrate" in db("info")
    assert f"has schema version {SCHEMA_VERSION} now; it had {version}" in db("migrate")
    assert db("migrate") == f"It is up to date: schema version {SCHEMA_VERSION}.\n"
    assert db("check", settings=["task_retention=100000d"]) == "Nothing is damaged.\n"
    server = server_on(fcp_server, path)
    names = tasks_of(server)
    assert server.result(names["done"])["sum"].tolist() == [3]
    fcp_population(server, [{"v": [1]}, {"v": [2]}, {"v": [4]}])
    assert server.result(names["open"])["sum"].tolist() == [7]


def test_a_database_that_was_never_migrated_by_hand_is_taken_over_too(fcp_server, tmp_path):
    server = server_on(fcp_server, database(tmp_path / "fcp.sqlite", 1))
    assert set(tasks_of(server)) == {"done", "open"}


def test_info_says_who_uses_it_and_what_is_there(db, fcp_server, tmp_path):
    path = database(tmp_path / "fcp.sqlite", 2)
    server = server_on(fcp_server, path)
    output = db("info")
    assert f"SQLite file {path}\n" in output
    assert re.search(r"in use by process \d+ on \S+, since 2", output)
    assert re.search(r"task +2 +\d+", output)
    server.stop()
    assert "in use" not in db("info")


def test_what_changes_it_is_refused_while_a_server_runs(db, fcp_server, tmp_path):
    server_on(fcp_server, database(tmp_path / "fcp.sqlite", 2))
    for command in ("migrate", "gc"):
        assert "in use by another server: process" in db(command, status=2)
    assert db("check", settings=["task_retention=100000d"]) == "Nothing is damaged.\n"


def test_a_copy_is_made_online_and_can_be_served(db, fcp_server, fcp_population, tmp_path):
    server = server_on(fcp_server, database(tmp_path / "fcp.sqlite", 2))
    task = server.submit(query_task(SUM, name="late"))
    output = db("backup", "copy.sqlite")
    assert re.fullmatch(r"copy\.sqlite: [\d.]+ KiB\n", output)
    assert (tmp_path / "copy.sqlite").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("copy.sqlite?*"))
    server.stop()
    copy = server_on(fcp_server, tmp_path / "copy.sqlite")
    assert set(tasks_of(copy)) == {"done", "open", "late"}
    assert tasks_of(copy)["late"] == task


def test_a_copy_is_not_mixed_with_the_log_of_what_it_replaces(db, fcp_server, tmp_path):
    path = database(tmp_path / "fcp.sqlite", 2)
    server = server_on(fcp_server, path)
    db("backup", "copy")
    log = Path(f"{path}-wal").read_bytes()
    server.stop()
    (tmp_path / "copy").replace(path)
    Path(f"{path}-wal").write_bytes(log)  # as after a kill
    told = db("migrate", status=2)
    assert "fcp.sqlite is a copy, and" in told
    assert "SQLite would mix them. Delete" in told
    Path(f"{path}-wal").unlink()
    assert set(tasks_of(server_on(fcp_server, path))) == {"done", "open"}


def test_a_copy_replaces_nothing(db, tmp_path):
    database(tmp_path / "fcp.sqlite", 2)
    (tmp_path / "copy").write_text("mine")
    assert "the copy copy cannot be made: it exists already" in db("backup", "copy", status=2)
    assert (tmp_path / "copy").read_text() == "mine"
    assert "No such file" in db("backup", "none/copy", status=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as on a full disk
    try:
        told = db("backup", "copied", status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the copy copied cannot be made: " in told
    assert {path.name for path in tmp_path.glob("c*")} == {"copy"}


def test_what_a_backup_that_was_killed_left_is_named(db, tmp_path):
    database(tmp_path / "fcp.sqlite", 2)
    (tmp_path / "copy.part").touch()
    told = db("backup", "copy", status=2)
    assert "copy cannot be made: a backup writes copy.part, or was killed; if there is" in told
    (tmp_path / "copy.part").unlink()
    assert "copy: " in db("backup", "copy")


def test_damage_and_waste_are_told_apart(db, tmp_path):
    path = database(tmp_path / "fcp.sqlite", 2)
    keep = ["task_retention=100000d"]
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        made.execute("DELETE FROM records WHERE key LIKE '%/plan'")
        made.execute(
            "INSERT INTO records SELECT kind, 'x/plan', data FROM records WHERE key LIKE '%/check%'"
        )
    output = db("check", status=1, settings=keep)
    assert re.search(r"3 damaged:\n +the index of 'blob' has an entry for '.*/plan', of", output)
    assert "(of 'open', open) has no plan" in output
    assert "blob 'x/plan' holds the record of" in output
    assert "Nothing is damaged" not in output


def test_what_is_past_its_time_is_removed(db, tmp_path):
    database(tmp_path / "fcp.sqlite", 2)
    past = ["task_retention=0s"]
    told = db("gc", "--dry-run", settings=past)
    assert "1 not needed:" in told
    assert "has been kept for longer than task_retention" in told
    assert "Removed" not in told
    assert '"fcp db gc" removes it' in db("check", settings=past)
    assert "Removed 1." in db("gc", settings=past)
    assert db("gc", settings=past) == "There is nothing to remove.\n"
    assert re.search(r"task +1 ", db("info"))


def test_a_damaged_file_is_named(db, tmp_path):
    path = database(tmp_path / "fcp.sqlite", 2)
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 3] = b"\xff" * 4096
    path.write_bytes(data)
    assert "damaged:\n  SQLite: " in db("check", status=1)


def test_what_is_not_there_or_not_ours_is_left_alone(db, tmp_path):
    assert "there is no storage file" in db("info", status=2)
    assert not (tmp_path / "fcp.sqlite").exists()
    with contextlib.closing(sqlite3.connect(tmp_path / "fcp.sqlite")) as other, other:
        other.execute("CREATE TABLE mine (x)")
    for command in ("info", "check", "migrate"):
        assert "another program" in db(command, status=2)
    assert "It is made" in db("migrate", settings=["storage.sqlite.path=new.db"])


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_file_that_nobody_has_written_to_is_no_other_programs(db, tmp_path, journal):
    """A server that is killed in its first moment leaves one, and the next takes it."""
    path = tmp_path / "fcp.sqlite"
    path.touch()
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute(f"PRAGMA journal_mode = {journal}")
    for command in (["info"], ["check"], ["gc"], ["backup", "copy"]):
        assert "is empty; a server, or 'fcp db migrate', makes" in db(*command, status=2)
    assert db("migrate") == f"It is made, with schema version {SCHEMA_VERSION}.\n"
    assert f"schema version {SCHEMA_VERSION}" in db("info")


def test_a_storage_without_upkeep_says_so(db):
    assert "the storage 'memory' keeps nothing between runs" in db(
        "info", status=2, settings=["storage=memory"]
    )
