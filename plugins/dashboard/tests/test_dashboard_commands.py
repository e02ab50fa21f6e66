"""The commands, against a real server."""

import io
import re

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.commands.main import cli
from fcp_core.testing.servers import query_task
from fcp_dashboard.snapshot import Snapshot
from fcp_dashboard.terminal import screen

TOKEN = "a-token-of-the-tests"
VALUE = TensorSpec("v", DataType.INT64, (2,))
SUM = Intrinsic("federated_sum", (VALUE,), (TensorSpec("sum", DataType.INT64, (2,)),))


@pytest.fixture
def fcp(tmp_path, monkeypatch):
    """Run a command as a user does who has the distribution installed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, token=TOKEN):
        plugin = "plugins=fcp_dashboard.plugin:DashboardPlugin"
        return CliRunner(env={"FCP_ADMIN__TOKEN": token, "COLUMNS": "200"}).invoke(
            cli, ["--set", plugin, *arguments], prog_name="fcp"
        )

    return run


def test_the_commands_are_where_they_are_looked_for(fcp):
    listed = fcp("--help").output
    assert "  dashboard " in listed
    assert "  top " in listed
    assert "tasks-report" not in listed
    assert "  report " in fcp("tasks", "--help").output


def test_a_link_is_printed_that_logs_in(fcp, dashboard, browser):
    server = dashboard()
    done = fcp("dashboard", "--server", server.url)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{server.url}dashboard/login?link=")
    word = done.output.strip().partition("link=")[2]
    assert browser(server).ask("/login", form={"link": word}).status == 303


def test_the_overview_is_printed(fcp, dashboard, fcp_population):
    server = dashboard()
    server.submit(query_task(SUM, name="train", goal_count=3))
    fcp_population(server, [{"v": [1, 2]}])
    done = fcp("top", "--once", "--server", server.url)
    assert done.exit_code == 0, done.output
    assert re.search(r"people .* 0 +0 +2 ", done.output)
    assert re.search(r"train +people +open +1/3 .*\n  2 of 3 are missing", done.output)


def test_a_report_is_written(fcp, dashboard, tmp_path):
    server = dashboard()
    task_id = server.submit(query_task(SUM, name="train"))
    done = fcp("tasks", "--server", server.url, "report", task_id, "-o", "report.html")
    assert done.exit_code == 0, done.output
    assert "<h1><bdi>train</bdi>" in (tmp_path / "report.html").read_text()
    done = fcp("tasks", "--server", server.url, "report", "nothing", "-o", "other.html")
    assert done.exit_code == 1
    assert "there is no task 'nothing' here" in done.output
    assert not (tmp_path / "other.html").exists()


def test_what_is_wrong_is_said(fcp, dashboard, fcp_server):
    plain = fcp_server(overrides={"admin.token": TOKEN})
    done = fcp("top", "--once", "--server", plain.url)
    assert done.exit_code == 2
    assert "has no dashboard; 'fcp serve --dashboard' has one" in done.output
    done = fcp("dashboard", "--server", dashboard().url, token="a-token-of-somebody")
    assert done.exit_code == 1
    assert "UNAUTHENTICATED" in done.output


def test_a_screen_of_nothing_is_no_failure():
    file = io.StringIO()
    nothing = Snapshot(0.0, [], [], [])
    Console(file=file, width=120).print(screen(nothing, 120, 10, "it is gone"))
    assert "it is gone" in file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_a_screen_has_room_for_what_matters(dashboard, browser, width):
    names = [f"phones/region{number}" for number in range(30)]
    server = dashboard(populations=names)
    for number in range(20):
        server.submit(query_task(SUM, population=names[-1], name=f"study/number{number}"))
    answer = browser(server).log_in().ask("/snapshot.json")
    snapshot = msgspec.json.decode(answer.body, type=Snapshot)
    file = io.StringIO()
    Console(file=file, width=width).print(screen(snapshot, width, 24))
    lines = file.getvalue().splitlines()
    assert len(lines) <= 24
    text = " ".join(" ".join(lines).split())
    assert "task population state" in text if width > 100 else "task state" in text
    assert "contributed at work dropped end" in text
    assert "study/number19 " in text
    assert "1 of 1 is missing: no device of population phones/region29 has checked in since" in text
    assert "and 22 more" in text  # of 30 populations
    assert "and 17 more" in text  # of 20 tasks
