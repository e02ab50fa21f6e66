"""``fcp tasks schedule``, ``schedules`` and ``unschedule`` against a server."""

import os

import pytest
from click.testing import CliRunner

from fcp_core.admin import AdminClient
from fcp_core.admin.schedules import ScheduledTask, ScheduleSummary
from fcp_core.commands.main import cli
from fcp_core.protocol.status import Code, StatusError
from fcp_core.tasks.schedule import Schedule
from fcp_core.tasks.taskfile import parse_task

FILE = """
[task]
population = "phones/all"
name = "count/launches"
goal_count = 3
[query]
sql = "SELECT app, COUNT(*) AS n FROM launches GROUP BY app"
"""
EVERY = "[schedule]\nevery = '1d'\n"


@pytest.fixture
def fcp(make_server, monkeypatch, tmp_path):
    thread = make_server()
    for name in [name for name in os.environ if name.startswith("FCP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCP_ADMIN__TOKEN", make_server.token)
    monkeypatch.setenv("FCP_ADMIN__URL", thread.server.url)
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *arguments: CliRunner().invoke(cli, ["tasks", *arguments])


def test_a_schedule_from_its_file_to_its_end(fcp, tmp_path):
    file = tmp_path / "launches.toml"
    file.write_text(FILE)
    refused = fcp("schedule", str(file))
    assert (refused.exit_code, "has no [schedule]" in refused.output) == (2, True)
    file.write_text(FILE + EVERY)
    made = fcp("schedule", str(file))
    assert made.exit_code == 0
    task_id = made.output.split()[0]
    assert task_id in fcp("list").output
    listed = fcp("schedules").output
    assert task_id in listed
    assert "count/launches" in listed
    assert "1 d" in listed
    assert fcp("submit", str(file)).output.split() == [task_id]  # it is the period's task
    assert fcp("unschedule", "phones/all", "count/launches").exit_code == 0
    assert "count/launches" not in fcp("schedules").output
    assert "NOT_FOUND" in fcp("unschedule", "phones/all", "count/launches").output
    assert task_id in fcp("list", "--state", "open").output


def test_what_is_no_schedule_is_refused_in_words(fcp):
    spec = parse_task(FILE).to_spec()
    with AdminClient(os.environ["FCP_ADMIN__URL"], os.environ["FCP_ADMIN__TOKEN"]) as client:
        for schedule in (Schedule(0.5), Schedule(2e9), Schedule(60.0, 1e12)):
            with pytest.raises(StatusError, match=r"body: .* at `\$\.(every|starting)`") as error:
                client.schedule(spec, schedule)
            assert error.value.code is Code.INVALID_ARGUMENT
        with pytest.raises(StatusError, match="a task with slices is a program's"):
            client.schedule(spec.replace(slices={"a": {0: b""}}), Schedule(60.0))
        body = ScheduledTask.of(spec, Schedule(60.0))
        with pytest.raises(StatusError, match="the address is that of other of phones/all"):
            client._call("PUT", "/schedules/phones%2Fall/other", ScheduleSummary, body=body)
        assert client.schedules().schedules == []
