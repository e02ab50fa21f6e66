"""``fcp query`` and a task file with a query, against a server and devices over HTTP."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from click.testing import CliRunner

from fcp_core.admin import AdminClient
from fcp_core.client import Client, SQLStore
from fcp_core.commands.main import cli

pytest.importorskip("sqlglot")

POPULATION = "phones/all"
SQL = (
    "SELECT app, COUNT(*) AS n, AVG(seconds) AS mean FROM launches GROUP BY app"
    " HAVING DEVICES() >= 2 ORDER BY n DESC"
)
ROWS = [
    [("maps", 1.0), ("maps", 2.0), ("secret", 5.0)],
    [("maps", 3.0), ("mail", 4.0)],
    [("mail", None), ("maps", 6.0)],
]
CSV = "app,n,mean\nmaps,4,3.0\nmail,2,4.0\n"


@pytest.fixture
def databases(tmp_path):
    paths = []
    for number, rows in enumerate(ROWS):
        paths.append(tmp_path / f"phone{number}.db")
        with closing(sqlite3.connect(paths[-1])) as database:
            database.execute("CREATE TABLE launches (app, seconds)")
            database.executemany("INSERT INTO launches VALUES (?, ?)", rows)
            database.commit()
    return paths


@pytest.fixture
def server(make_server, monkeypatch, tmp_path):
    thread = make_server()
    for name in [name for name in os.environ if name.startswith("FCP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCP_ADMIN__TOKEN", make_server.token)
    monkeypatch.setenv("FCP_ADMIN__URL", thread.server.url)
    return thread.server.url


def fcp(*arguments):
    return CliRunner().invoke(cli, arguments)


def task_id_of(url, token):
    with AdminClient(url, token) as client:
        return client.list()[-1].task_id


def run(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "fcp_core", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_question_to_device_processes(server, make_server, databases, tmp_path):
    asked = run("query", SQL, "--population", POPULATION, "--goal", "3", "--format", "csv")
    waiting = list(databases)
    # Each device is a process for each of its sessions, until it has contributed.
    while waiting and asked.poll() is None:
        options = ["--server", server, "--population", POPULATION]
        devices = {
            path: run("client", *options, "--sql", f"app:/tables={path}") for path in waiting
        }
        told = {path: device.communicate()[0] for path, device in devices.items()}
        waiting = [path for path in waiting if "contributed" not in told[path]]
    answer, errors = asked.communicate()
    assert (asked.returncode, answer) == (0, CSV), errors
    # Who finds the task later sees it as its answer, too.
    task_id = task_id_of(server, make_server.token)
    assert fcp("tasks", "result", task_id).output == CSV
    assert fcp("tasks", "result", task_id, "--plot", "answer.svg").exit_code == 0
    assert "maps" in (tmp_path / "answer.svg").read_text()


def test_a_task_file_asks_in_sql(server, make_server, databases, tmp_path):
    (tmp_path / "task.toml").write_text(
        f"""
[task]
population = "{POPULATION}"
name = "launches"
goal_count = 3
[query]
sql = '''{SQL}'''
"""
    )
    submitted = fcp("tasks", "submit", "task.toml")
    assert submitted.exit_code == 0, submitted.output
    for path in databases:
        with Client(server, POPULATION, stores={"app:/tables": SQLStore(path)}) as client:
            client.run_once()
    task_id = submitted.output.strip()
    assert fcp("tasks", "watch", task_id).exit_code == 0
    for name in ("t.csv", "t.parquet", "t.json"):
        assert fcp("tasks", "result", task_id, "-o", name).exit_code == 0
    assert (tmp_path / "t.csv").read_text() == CSV
    with AdminClient(server, make_server.token) as client:
        assert client.csv(task_id) == CSV


def test_what_would_be_done_is_explained():
    told = fcp("query", SQL, "--population", POPULATION, "--goal", "3", "--explain")
    assert told.exit_code == 0, told.output
    for words in ("FROM launches", "fedsql_group_by", "min_contributors_to_group: 2", "FROM r"):
        assert words in told.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SELECT app FROM t"], "app is neither in GROUP BY"),
        (["SELECT COUNT(*) FROM t", "--format", "plot"], "needs --output"),
        (["SELECT COUNT(*) FROM t", "--capacity", "9"], "go with --masked"),
        (["SELECT COUNT(*) FROM t", "--max-rows", "9"], "with --epsilon, or with --masked"),
        (["SELECT COUNT(*) FROM t", "--max-groups", "9", "--masked"], "go with --epsilon"),
        (["SELECT COUNT(*) FROM t", "--key-bytes", "2", "--masked"], "--key-bytes: 2 will not"),
        (["SELECT COUNT(*) FROM t", "--epsilon", "1", "--masked"], "Ask with one of them"),
        (["SELECT COUNT(*) FROM t", "--goal", "0"], "goal_count must be at least 1"),
        (["SELECT COUNT(*) FROM t", "--population", "a b"], "population must match"),
    ],
)
def test_mistakes_are_said_before_anything_is_asked(arguments, words):
    result = fcp("query", "--population", POPULATION, "--goal", "3", *arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_a_task_is_repeated_once_in_each_period(server, make_server, databases, tmp_path):
    text = f"""
[task]
population = "{POPULATION}"
name = "launches"
goal_count = 1
[query]
sql = "SELECT COUNT(*) AS n FROM launches"
[schedule]
every = "EVERY"
"""
    (tmp_path / "daily.toml").write_text(text.replace("EVERY", "1000d"))
    first = fcp("tasks", "submit", "daily.toml")
    assert first.exit_code == 0, first.output
    assert fcp("tasks", "submit", "daily.toml").output == first.output
    assert fcp("tasks", "cancel", first.output.strip()).exit_code == 0
    (tmp_path / "often.toml").write_text(text.replace("EVERY", "1s"))
    stopped = threading.Event()

    def contribute():
        while not stopped.is_set():
            store = SQLStore(databases[0])
            with Client(server, POPULATION, stores={"app:/tables": store}) as client:
                client.run_once()
            stopped.wait(0.1)

    device = threading.Thread(target=contribute)
    device.start()
    try:
        told = fcp("tasks", "repeat", "often.toml", "--times", "2", "--folder", "results")
    finally:
        stopped.set()
        device.join()
    assert told.exit_code == 0, told.output
    files = sorted((tmp_path / "results").iterdir())
    assert [file.read_text() for file in files] == ["n\n3\n"] * 2
    with AdminClient(server, make_server.token) as client:
        assert [task.state for task in client.list()] == ["cancelled", "completed", "completed"]


def test_a_task_without_a_schedule_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.toml").write_text(
        "[task]\npopulation='p'\nname='n'\ngoal_count=1\n[query]\nsql='SELECT COUNT(*) FROM t'\n"
    )
    told = fcp("tasks", "repeat", "t.toml")
    assert (told.exit_code, "has no [schedule]" in told.output) == (2, True)


def test_a_server_without_masks_says_so(server):
    sql = SQL.replace("AVG(seconds)", "AVG(CLAMP(seconds, 0, 60))")
    question = ("query", sql, "--population", POPULATION, "--goal", "3", "--masked")
    asked = fcp(*question)
    assert asked.exit_code == 1
    assert "asks for secure aggregation" in asked.output
    assert "offers the protocol 'secagg'" in fcp(*question, "--protocol", "secagg").output
    told = fcp(*question, "--capacity", "9", "--explain").output
    assert "fcp_summed_groups(9, 48," in told
    assert "federated_secure_modular_sum" in told


def test_a_server_without_noise_says_so(server, tmp_path):
    asked = fcp(
        *("query", "SELECT COUNT(*) FROM launches", "--population", POPULATION),
        *("--goal", "2", "--epsilon", "1"),
    )
    assert asked.exit_code == 1
    assert "fedsql_dp_group_by" in asked.output
    (tmp_path / "t.toml").write_text(
        f"[task]\npopulation='{POPULATION}'\nname='n'\ngoal_count=1\n[schedule]\nevery='1d'\n"
        "[query]\nsql='SELECT COUNT(*) FROM t'\nepsilon=0.5\n"
    )
    told = fcp("tasks", "repeat", "t.toml")
    assert told.exit_code == 1
    assert "every 1 days, each for epsilon 0.5" in told.output
    assert "at most epsilon 3.5 a week" in told.output
    for option in (["--delta", "1e-6"], ["--epsilon", "0"], ["--epsilon", "1", "--delta", "2"]):
        mistake = fcp("query", "SELECT 1", "--population", "p", "--goal", "1", *option)
        assert (mistake.exit_code, "Traceback" in mistake.output) == (2, False)
