"""``fcp serve`` as a process: start, stop, and what survives when it is killed."""

import os
import resource
import subprocess
import sys

import pytest
from click.testing import CliRunner

from fcp_core.admin import AdminClient
from fcp_core.commands.main import cli
from fcp_core.server.own_process import OTHER_FILES
from fcp_core.tasks.tables import Table


@pytest.mark.slow
def test_a_killed_server_goes_on_where_it_was(
    serve, port_of_its_own, make_server, make_spec, contribute
):
    port = port_of_its_own
    url = f"http://localhost:{port}/"
    first = serve(port)
    with AdminClient(url, make_server.token) as client:
        done = client.submit(make_spec(1)).task_id
        assert contribute(url, maps=7) == "CONTRIBUTED"
        assert client.wait(done).state == "completed"
        unfinished = client.submit(make_spec(3), key="the-count").task_id
        for number in range(2):
            assert contribute(url, maps=1, mail=10 + number) == "CONTRIBUTED"
        assert client.get(unfinished).contributed == 2
        first.kill()

        second = serve(port)
        # The client waits for the server to come back, and the key finds the task again.
        assert client.submit(make_spec(3), key="the-count").task_id == unfinished
        task = client.get(unfinished)
        assert (task.state, task.contributed) == ("open", 2)
        assert client.csv(done) == "app,launches\nmaps,7\n"
        assert contribute(url, maps=1, mail=100) == "CONTRIBUTED"
        assert client.wait(unfinished).state == "completed"
        rows = dict(Table.of(client.result(unfinished)).rows())
        assert rows == {"maps": 3, "mail": 121}
        assert second.terminate() == 0
    log = second.log.read_text()
    assert f"listening on port {port}" in log
    assert log.count("plugin 'builtin_policies'") == 1
    assert "SIGTERM" in log
    assert "stopped" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_second_server_on_the_same_file_is_refused(
    serve, port_of_its_own, make_server, few_files
):
    first = serve(port_of_its_own)
    url = f"http://localhost:{port_of_its_own}/"
    with AdminClient(url, make_server.token) as client:
        assert client.list() == []
        # It allows itself a file for each connection, and another one, as far as the system does.
        soft, hard = resource.prlimit(first.process.pid, resource.RLIMIT_NOFILE)
        assert soft == min(hard, 20_000 + OTHER_FILES)
        second = serve(0)
        assert second.process.wait(60) == 2
        log = second.log.read_text()
        assert f"in use by another server: process {first.process.pid} on " in log
        assert "Traceback" not in log
        assert client.list() == []
        # Nothing has to be cleaned up after a crash.
        first.kill()
        third = serve(port_of_its_own)
        assert client.list() == []
    assert third.terminate() == 0


@pytest.mark.slow
def test_waiting_calls_end_when_the_server_stops(serve, port_of_its_own, make_server, make_spec):
    port = port_of_its_own
    server = serve(port)
    url = f"http://localhost:{port}/"
    with AdminClient(url, make_server.token) as client:
        task = client.submit(make_spec(1))
        with subprocess.Popen(
            [sys.executable, "-m", "fcp_core", "tasks", "--server", url, "watch", task.task_id],
            env={**os.environ, "FCP_ADMIN__TOKEN": make_server.token},
            stdout=subprocess.PIPE,
            text=True,
        ) as waiting:
            assert waiting.stdout.readline().startswith("launches open: 0 of 1")
            assert server.terminate() == 0
            # The watcher goes on with the server that comes back.
            serve(port)
            client.cancel(task.task_id, "seen enough")
            assert "seen enough" in waiting.stdout.read()
        assert waiting.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--port", "0", "--keyfile", "k.pem"], "needs a certificate"),
        (["--port", "0", "--admin-token-file", "missing"], "missing"),
        (["--port", "0", "--storage", "nowhere"], "nowhere"),
        (["--port", "99999"], "65535"),
    ],
)
def test_a_mistake_is_one_paragraph(tmp_path, monkeypatch, arguments, problem):
    for name in [name for name in os.environ if name.startswith("FCP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["serve", *arguments])
    assert result.exit_code == 2
    assert problem in result.output
    assert len(result.output.splitlines()) == 1
