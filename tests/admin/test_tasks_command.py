"""``fcp tasks`` against a server, and the example as its user runs it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client
from fcp_core.commands.course import _more, _noise, _reasons, summary
from fcp_core.commands.main import cli
from fcp_core.commands.output import make_table, print_data, print_tables

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fcp(make_server, monkeypatch, tmp_path):
    """Run ``fcp tasks`` against a server; ``fcp.url`` is where it is."""
    thread = make_server()
    for name in [name for name in os.environ if name.startswith("FCP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCP_ADMIN__TOKEN", make_server.token)
    monkeypatch.setenv("FCP_ADMIN__URL", thread.server.url)

    def fcp(*arguments):
        return CliRunner().invoke(cli, ["tasks", *arguments])

    fcp.url = thread.server.url
    return fcp


@pytest.fixture
def task_file(tmp_path, make_spec):
    path = tmp_path / "task.toml"
    path.write_text(make_spec.text)
    return path


def test_a_task_from_its_file_to_its_table(fcp, task_file, contribute, tmp_path):
    submitted = fcp("submit", str(task_file), "--key", "k")
    assert submitted.exit_code == 0, submitted.output
    task_id = submitted.output.strip()
    assert fcp("submit", str(task_file), "--key", "k").output.strip() == task_id
    assert task_id in fcp("list", "--state", "open").output
    early = fcp("result", task_id)
    assert (early.exit_code, "has not ended" in early.output) == (1, True)
    for _ in range(2):
        contribute(fcp.url, maps=2, mail=1)
    watched = fcp("watch", task_id)
    assert (watched.exit_code, "completed: 2 of 2" in watched.output) == (0, True)
    assert fcp("result", task_id).output == "app,launches\nmaps,4\nmail,2\n"
    for name in ("t.csv", "t.json", "t.ckpt"):
        assert fcp("result", task_id, "-o", name, "--plot", "t.svg").exit_code == 0
    assert (tmp_path / "t.csv").read_text().startswith("app,launches")
    assert (tmp_path / "t.ckpt").read_bytes().startswith(b"FCv1")
    assert "launches: launches" in (tmp_path / "t.svg").read_text()
    assert fcp("result", task_id, "-o", "o.svg").output == ""
    assert (tmp_path / "o.svg").read_text() == (tmp_path / "t.svg").read_text()
    assert fcp("forget", task_id).exit_code == 0
    assert "NOT_FOUND" in fcp("watch", task_id).output


def test_a_cancelled_task_is_a_failure_for_its_watcher(fcp, task_file):
    task_id = fcp("submit", str(task_file)).output.strip()
    # It was another operator's text, and must not pass for a line of the command's own.
    shown = "CANCELLED: no\\n\\x1b[31mneed"
    assert shown in fcp("cancel", task_id, "--reason", "no\n\x1b[31mneed").output
    watched = fcp("watch", task_id)
    assert (watched.exit_code, watched.output.count(shown)) == (1, 2)
    assert shown in fcp("list").output
    long = fcp("submit", str(task_file)).output.strip()
    fcp("cancel", long, "--reason", "x" * 300)
    listed = fcp("list").output
    assert "CANCELLED: xxx" in listed
    assert "x" * 100 not in listed


def test_what_others_wrote_does_nothing_to_a_terminal(capsys, monkeypatch):
    table = make_table("key")
    table.add_row("\x1b[31m\nfaked")
    print_tables(table)
    print_data("k\n\x1b[2J\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_data("k\n\x1b[2J\n")
    shown = capsys.readouterr().out
    assert shown.split("\n")[3].strip() == "\\x1b[31m\\nfaked"
    assert shown.endswith("\nk\n\x1b[2J\nk\n\\x1b[2J\n")


def test_what_others_wrote_is_one_line_of_a_command_s_log(monkeypatch):
    root = logging.getLogger()
    level = root.level
    monkeypatch.setattr(root, "handlers", [])
    try:
        CliRunner().invoke(cli, ["tasks", "--help"])
        (handler,) = root.handlers
    finally:
        root.setLevel(level)
    record = logging.makeLogRecord({"msg": "a\n\x1b[31mb", "name": "fcp.x"})
    assert handler.format(record).endswith("fcp.x: a\\n\\x1b[31mb")


def test_a_watcher_is_told_why_devices_do_not_contribute(fcp, task_file):
    task_id = fcp("submit", str(task_file)).output.strip()
    store = CallableStore(lambda selector: (), query=lambda query: 1 / 0)
    with Client(fcp.url, "phones/all", stores={"app:/launches": store}) as client:
        client.run_once()
    fcp("cancel", task_id)
    assert fcp("watch", task_id).output.count("1 x ") == 1


def test_populations_are_shown(fcp, task_file):
    fcp("submit", str(task_file))
    shown = CliRunner().invoke(cli, ["populations"])
    assert shown.exit_code == 0
    assert shown.output.split()[-7:] == ["phones/all", "1", "2", "0", "0", "0", "0.0"]


def test_a_server_alone_is_its_own_member(fcp, task_file):
    fcp("submit", str(task_file))
    shown = CliRunner().invoke(cli, ["members"])
    assert shown.exit_code == 0
    assert str(os.getpid()) in shown.output
    assert "serves" in shown.output
    assert "phones/all" in shown.output
    shown = CliRunner().invoke(cli, ["members", "--json"])
    found = json.loads(shown.output)
    assert [member["owns"] for member in found["members"]] == [1]
    (lease,) = found["leases"]
    assert (lease["population"], lease["epoch"]) == ("phones/all", 0)


def test_a_watcher_sees_whose_clients_are_silent(fcp, task_file):
    task_id = fcp("submit", str(task_file)).output.strip()
    fcp("cancel", task_id)
    with AdminClient(fcp.url, os.environ["FCP_ADMIN__TOKEN"]) as client:
        task = msgspec.structs.replace(
            client.get(task_id),
            dropped=4,
            reasons={"silent": 3, "computation INTERNAL": 1},
            silent={"2026.1": 3, "unknown": 2},
            release={"noise": [{"output": "sum", "mechanism": "gaussian", "stddev": 0.25}]},
        )
    assert _reasons(task, "11 x computation INTERNAL") == [
        "1 x computation INTERNAL",
        "5 x silent since they were assigned (client versions: 3 x 2026.1, 2 x unknown)",
    ]
    versions = "client versions: 3 x 2026.1, 2 x unknown"
    said = f"1 dropped (1 x computation INTERNAL), 5 silent ({versions})"
    assert not _reasons(task, said)
    assert "durability round: a restart of the server" not in "".join(_more(task))
    (durability, *_) = _more(msgspec.structs.replace(task, state="open"))
    assert durability.startswith("durability round: a restart of the server")
    assert "0 at work, 1 dropped, 3 silent, 0 surplus" in summary(task)
    assert _noise(task) == ["sum has gaussian noise of standard deviation 0.25"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[query.vectors]", "[query.vectors]\nspare = 'int64'", "vector 'spare' is neither"),
        ("goal_count = ", "max_at_work = 0\ngoal_count = ", "max_at_work must be at least 1"),
    ],
)
def test_what_a_task_may_not_be_is_told_with_its_file(fcp, task_file, old, new, problem):
    task_file.write_text(task_file.read_text().replace(old, new))
    wrong = fcp("submit", str(task_file))
    shown = str(wrong.exception) + wrong.output
    assert wrong.exit_code == 2
    assert f"{task_file}: " in shown
    assert problem in shown


def test_mistakes_are_told(fcp, task_file, monkeypatch):
    task_file.write_text(task_file.read_text().replace("goal_count", "goal_cuont"))
    wrong = fcp("submit", str(task_file))
    assert (wrong.exit_code, "line" in wrong.output) == (2, True)
    monkeypatch.setenv("FCP_ADMIN__TOKEN", "not-the-right-token")
    refused = fcp("list")
    assert (refused.exit_code, "UNAUTHENTICATED" in refused.output) == (1, True)
    monkeypatch.delenv("FCP_ADMIN__TOKEN")
    without = fcp("list")
    assert (without.exit_code, "--token-file" in without.output) == (2, True)


def test_the_description_is_printed():
    result = CliRunner().invoke(cli, ["openapi"])
    assert json.loads(result.output)["openapi"] == "3.1.0"


@pytest.mark.slow
def test_the_example_counts_app_launches(tmp_path, port_of_its_own):
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "examples" / "app_launches" / "run.py")),
            *("--devices", "100", "--folder", str(tmp_path), "--port", str(port_of_its_own)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "groups are right" in result.stdout
    assert (tmp_path / "launches.svg").exists()


def test_a_result_as_a_parquet_file(fcp, task_file, contribute, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    task_id = fcp("submit", str(task_file)).output.strip()
    for number in range(2):
        contribute(fcp.url, **{"na\0ïve ☃": 2**40 + number, "": 0})
    assert fcp("watch", task_id).exit_code == 0
    written = fcp("result", task_id, "-o", "t.parquet")
    assert (written.exit_code, written.output) == (0, "")
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.to_pylist() == [
        {"app": "na\0ïve ☃", "launches": 2**41 + 1},
        {"app": "", "launches": 0},
    ]


def test_a_result_without_rows_as_a_parquet_file(fcp, task_file, contribute, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    text = task_file.read_text().replace("[result]", "[result]\nminimum_group_size = 9")
    task_file.write_text(text)
    task_id = fcp("submit", str(task_file)).output.strip()
    for _ in range(2):
        contribute(fcp.url, maps=1)
    assert fcp("watch", task_id).exit_code == 0
    assert fcp("result", task_id, "-o", "t.parquet").exit_code == 0
    table = parquet.read_table(tmp_path / "t.parquet")
    assert (table.column_names, table.num_rows) == (["app", "launches"], 0)
