"""A server of several real processes: rounds over all of them, and the end of one or of all."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading

import pytest

from fcp_core.server.processes import worker_process

pytestmark = pytest.mark.slow


def contribute_everywhere(kit, number, at):
    """Have *number* devices start at one process, upload at another and submit at a third."""
    for index in range(number):
        device = kit.Device(1 + index).assign(at[index % len(at)])
        device.start(at[(index + 1) % len(at)]).upload(at[index % len(at)])
        device.submit(at[(index + 2) % len(at)])
    return sum(range(1, number + 1))


def test_a_round_over_three_processes(serve, kit):
    token = "0123456789abcdef"
    server = serve(3, {"metrics": "yes", "admin.token": token})
    pids = server.pids
    assert len(set(pids)) == 3
    task = server.submit(9)
    at = [server.to(pid) for pid in pids]
    assert contribute_everywhere(kit, 9, at) == server.total(task)
    assert server.status(task).contributed == 9
    # The same again: what was folded in the first round is not in the second.
    task = server.submit(4)
    assert contribute_everywhere(kit, 4, at[1:]) == server.total(task)

    for pid in pids:
        at = server.to(pid)
        status, text = at.ask("GET", "/metrics")
        assert status == 200
        assert b'fcp_requests_total{route="upload",status="200"} 13\n' in text
        assert b'fcp_contributions_total{population="people",task="sum"} 13\n' in text
        assert at.ask("GET", "/readyz")[0] == 200
        # The admin API answers at every process, and asks for its token.
        assert at.ask("GET", "/admin/v1/tasks")[0] == 401
        status, body = at.ask("GET", f"/admin/v1/tasks/{task}", Authorization=f"Bearer {token}")
        assert (status, json.loads(body)["contributed"]) == (200, 4)
        checkpoint = at.ask(
            "GET", f"/admin/v1/tasks/{task}/result", Authorization=f"Bearer {token}"
        )
        assert checkpoint[0] == 200
        assert len(checkpoint[1]) > 80_000


@pytest.mark.parametrize("kept", ["memory", "storage"])
def test_downloads_and_refusals_are_the_same_everywhere(serve, kit, kept):
    server = serve(2, {"resources_from": kept})
    task = server.submit(5)
    answers = []
    for pid in server.pids:
        at = server.to(pid)
        device = kit.Device(1).assign(at)
        path = "/" + device.task.plan.uri.split("/", 3)[3]
        first, again = at.ask("GET", path), at.ask("GET", path)
        assert first == again
        assert first[0] == 200
        answers.append(
            [
                first[1],
                at.ask("GET", "/data/nothing/here"),
                at.ask("POST", "/upload/v1/media/nothing?upload_protocol=raw", b"x"),
                at.ask("POST", "/v1/populations/people/taskassignments/none:start?%24alt=proto"),
                at.ask("GET", "/v1/operations/none?%24alt=proto"),
                at.ask("POST", "/v1/secureaggregations/a/clients/b:start?%24alt=proto"),
                at.ask("POST", "/v1/eligibilityevaltasks/nobody:request?%24alt=proto"),
                at.ask("GET", "/metrics"),
            ]
        )
    assert answers[0] == answers[1]
    # A task that has ended takes its downloads along, from the worker's copy too.
    server.run(server.server.services.tasks.cancel(task))
    with pytest.raises(kit.StatusError):
        server.total(task)
    assert server.to(server.pids[1]).ask("GET", path)[0] == 410


def test_a_held_check_in_waits_at_a_worker(serve, kit):
    server = serve(2, {"check_in_hold": "60s"})
    at = server.to(server.pids[1])
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(kit.Device(1).check_in(at)))
    waiting.start()
    held = server.server.services._populations.get("people").held._held
    kit.until(lambda: held, "the device waits")
    server.submit(1)
    waiting.join(kit.WAIT)
    assert answers[0].session_id


def test_a_worker_dies_that_has_folded_something(serve, kit):
    server = serve(2)
    here, worker = server.pids
    task = server.submit(3)
    at_worker, at_main = server.to(worker), server.to(here)
    kit.Device(100).contribute(at_worker)
    kit.Device(1000).contribute(at_main)
    late = kit.Device(5).assign(at_main).start(at_main).upload(at_main)
    assert server.status(task).contributed == 2

    os.kill(worker, signal.SIGKILL)
    kit.until(lambda: server.status(task).contributed == 0, "the round begins anew")
    # Its upload went with the round, and it cannot help that: it is told OK, and not counted.
    late.submit(at_main)
    assert server.status(task).surplus == 1
    kit.until(lambda: len(server.pids) == 2 and worker not in server.pids, "another worker")
    # The program that waits for the task gets what came after that, each exactly once.
    new = server.to(server.pids[1])
    for value, at in ((1, new), (2, at_main), (4, new)):
        kit.Device(value).contribute(at)
    assert server.total(task) == 7


def test_a_worker_dies_that_has_folded_nothing(serve, kit):
    server = serve(2)
    here, worker = server.pids
    task = server.submit(3)
    at_worker, at_main = server.to(worker), server.to(here)
    kit.Device(1).contribute(at_main)
    held = kit.Device(100).assign(at_worker).start(at_worker).upload(at_worker)
    begun = kit.Device(2).assign(at_worker).start(at_worker)
    at_worker.putrequest("POST", begun.upload_path)
    at_worker.putheader("Content-Length", str(len(begun.body)))
    at_worker.endheaders(begun.body[:1000])
    kit.until(lambda: server.is_uploading(begun), "the upload begins")

    os.kill(worker, signal.SIGKILL)
    kit.until(lambda: not server.is_uploading(begun), "the loss is noticed")
    # What it held is gone; the device is told to come back, and its place is free.
    with pytest.raises(kit.Refused) as refused:
        held.submit(at_main)
    assert refused.value.status == 409  # not 503: sent again, it could only be refused again

    # What it was receiving may be sent again, to any process.
    begun.upload(at_main).submit(at_main)
    assert server.status(task).contributed == 2
    kit.until(lambda: len(server.pids) == 2, "another worker")
    kit.Device(4).contribute(server.to(server.pids[1]))
    assert server.total(task) == 7


@pytest.mark.parametrize("paused", [False, True], ids=["killed", "paused"])
def test_a_worker_dies_while_the_result_is_made(serve, kit, monkeypatch, paused):
    """Whichever comes first, the report or the loss: the task ends with a right result."""
    if paused:  # it is killed when it has said nothing for so long, or everything would hang
        monkeypatch.setattr(worker_process, "SILENCE", 4.0)
    server = serve(2)
    here, worker = server.pids
    task = server.submit(2)
    at_worker, at_main = server.to(worker), server.to(here)
    kit.Device(1).contribute(at_worker)
    os.kill(worker, signal.SIGSTOP)
    kit.Device(2).contribute(at_main)
    kit.until(lambda: server.status(task).state.value == "closing", "the report has begun")
    if not paused:
        os.kill(worker, signal.SIGKILL)
    kit.until(lambda: server.status(task).state.value == "open", "the round begins anew")
    kit.Device(4).contribute(at_main)
    kit.Device(8).contribute(at_main)
    assert server.total(task) == 12


def test_a_stop_lets_uploads_end(serve, kit):
    server = serve(2, {"drain_timeout": "50s", "check_in_hold": "60s"})
    _, worker = server.pids
    task = server.submit(5)
    at = server.to(worker)
    device = kit.Device(1).assign(at).start(at)
    at.putrequest("POST", device.upload_path)
    at.putheader("Content-Length", str(len(device.body)))
    at.endheaders(device.body[:1000])
    assert server.status(task).pending == 1
    kit.until(lambda: server.is_uploading(device), "the upload begins")
    stopping = threading.Thread(target=server.thread.stop)
    stopping.start()
    kit.until(lambda: not listens(server.server.port), "nothing listens any more")
    at.send(device.body[1000:])
    assert at.getresponse().status == 200
    stopping.join(kit.WAIT)
    assert not stopping.is_alive()
    assert not kit.is_alive(worker)


def listens(port):
    with open("/proc/net/tcp") as table:
        lines = [line.split() for line in table][1:]
    return any(line[1].endswith(f":{port:04X}") and line[3] == "0A" for line in lines)


# A program of its own.


@pytest.fixture
def command(tmp_path):
    """Starts ``fcp serve --processes``; gives the process and where it listens."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "fcp_core", "serve", "--processes", "2", "--port", "0",
             "--host", "127.0.0.1", "--population", "people", *arguments],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        lines, workers, port = [], [], None
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"process \d+ of the server \(pid (\d+)\) is ready", line):
                workers.append(int(found[1]))
            if found := re.search(r"listening on port (\d+)", line):
                port = int(found[1])
                break
        return process, port, workers, lines

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_command_serves_with_several_processes(command, kit):
    process, port, workers, lines = command()
    assert len(workers) == 1, "".join(lines)
    connection = kit.Connection("127.0.0.1", port, timeout=kit.WAIT)
    assert connection.ask("GET", "/readyz") == (200, b"ok\n")
    connection.close()
    # As a terminal or a service manager does it: everybody gets the signal, one decides.
    os.killpg(process.pid, signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(kit.WAIT) == 0
    assert rest.rstrip().endswith("stopped")
    assert "Traceback" not in rest
    assert not kit.is_alive(workers[0])


def test_workers_end_with_a_server_that_is_killed(command, kit):
    process, _, workers, _ = command()
    process.kill()
    process.wait()
    kit.until(lambda: not kit.is_alive(workers[0]), "the worker has ended")


def test_a_server_that_cannot_start_leaves_nothing(tmp_path):
    (tmp_path / "late.py").write_text(
        "import os, fcp_core.plugins as p\n"
        "@p.hookimpl\n"
        "def fcp_startup(config):\n"
        "    if os.getppid() == int(os.environ['MAIN']):\n"
        "        raise ValueError('no room for a second process')\n"
    )
    code = (
        "import os, sys; os.environ['MAIN'] = str(os.getpid());"
        "sys.argv = ['fcp', '-s', 'plugins=./late.py', '-s', 'storage=memory', 'serve',"
        " '--processes', '2', '--port', '0'];"
        "from fcp_core.commands.main import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert "fcp: plugin 'late'" in result.stderr
    assert "no room for a second process" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_round_over_tls(serve, kit, certificates):
    server = serve(2, certfile=certificates / "server.pem")
    task = server.submit(4)
    context = ssl.create_default_context(cafile=certificates / "authority.pem")
    at = [server.to(pid, context) for pid in server.pids]
    assert contribute_everywhere(kit, 4, at) == server.total(task)
