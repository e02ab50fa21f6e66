"""``fcp client``: flags, exit status and signals."""

from __future__ import annotations

import gzip
import re
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fcp_core.client import connections, read_tfrecord, write_tfrecord
from fcp_core.client.protocols import DeviceProtocol
from fcp_core.client.stores import make_query_result
from fcp_core.commands.client import _collection_and_path, client
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import client_runner_example_data_pb2, eligibility_eval_tasks_pb2
from fcp_core.protocol.status import StatusError

pytestmark = pytest.mark.slow

FCP_CLIENT = [sys.executable, "-m", "fcp_core", "client"]


def run(*arguments):
    # This process is the tests' own: its memory stays as it is.
    return CliRunner().invoke(client, ["--max-memory-mb=0", *arguments], catch_exceptions=False)


@pytest.fixture
def data_file(tmp_path):
    data = client_runner_example_data_pb2.ClientRunnerExampleData()
    result = make_query_result({"v": [5, 6]})
    data.examples_by_collection_uri["app:/values"].examples.append(result.SerializeToString())
    path = tmp_path / "examples"
    path.write_bytes(data.SerializeToString())
    return path


def test_every_flag(server, query_plan, data_file, tmp_path):
    server.script_session(query_plan)
    result = run(
        f"--server={server.url}",
        f"--population={server.population}",
        "--session=a session",
        "--api-key=key",
        "--retry-token=token",
        "--client-version=v3",
        "--client-attestation-measurement=proof",
        f"--example-data-path={data_file}",
        f"--history={tmp_path / 'history'}",
        "--allow-op=ReadFile",
        "--allow-op=WriteFile",
        "--allow-all-operations",
        "--max-answer-mb=1",
        "--max-content-mb=2",
        "--max-answer-secs=3",
        "--max-plan-secs=4",
        "--num-rounds=2",
        "--sleep-after-round-secs=0",
    )
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"session \d: contributed; task contributed", result.output)) == 2
    first = server.requests[0]
    assert first.headers["x-goog-api-key"] == "key"
    request = eligibility_eval_tasks_pb2.EligibilityEvalTaskRequest.FromString(first.body)
    assert request.client_version.version_code == "v3"
    assert request.attestation_measurement.value == "proof"
    uploads = [r for r in server.requests if f"{r.method} {r.path}" == server.upload]
    assert [open_checkpoint(upload.body)["x"].tolist() for upload in uploads] == [[5, 6]] * 2


def test_underscores_and_tfrecords(server, query_plan, tmp_path):
    server.script_session(query_plan)
    path, other = tmp_path / "records", tmp_path / "other"
    write_tfrecord(path, [make_query_result({"v": [9]}).SerializeToString()])
    write_tfrecord(other, [])
    result = run(
        f"--server={server.url}",
        f"--population={server.population}",
        "--api_key=key",
        "--retry_token=",
        "--client_version=",
        "--client_attestation_measurement=",
        "--num_rounds=1",
        "--sleep_after_round_secs=3",
        f"--tfrecord=app:/values={path}",
        f"--tfrecord=app:/other={other}",
    )
    assert result.exit_code == 0, result.output
    assert open_checkpoint(server.of(server.upload).body)["x"].tolist() == [9]


def test_protocols_of_plugins_are_asked(server, query_plan, monkeypatch, tmp_path):
    asked = []

    class Side(DeviceProtocol):
        def accepts(self, assignment):
            asked.append(assignment.task_name)
            return False

        def contribute(self, assignment, results):
            yield from ()

    factories = {
        "two-phase": SimpleNamespace(device=Side),
        "server only": SimpleNamespace(device=None),
        "old": SimpleNamespace(),
    }
    monkeypatch.setattr(Plugins, "load", lambda: SimpleNamespace(protocols=factories))
    server.script_session(query_plan)
    run(f"--server={server.url}", f"--population={server.population}")
    assert asked == ["task"]


def test_a_server_configuration_that_is_wrong_does_not_stop_a_device(
    server, query_plan, monkeypatch, tmp_path
):
    (tmp_path / "setup.cfg").write_text("[fcp]\nno_such_option = 1\n")
    monkeypatch.chdir(tmp_path)
    server.script_session(query_plan)
    result = run(f"--server={server.url}", f"--population={server.population}")
    assert result.exit_code == 0
    assert "goes on without plugins" in result.stderr
    assert "no_such_option" in result.stderr


def test_a_session_that_failed_was_still_gone_through(server, query_plan):
    server.script_session(query_plan)
    server.script[server.eligibility] = 404
    result = run(f"--server={server.url}", f"--population={server.population}")
    assert result.exit_code == 0
    assert "session 1: failed; NOT_FOUND" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--server=http://127.0.0.2:8080", "--population=p"],
        ["--server=https://x", "--population=é"],
        ["--server=https://x", "--population=p", "--num-rounds=0"],
    ],
)
def test_no_session_at_all(arguments):
    assert run(*arguments).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--tfrecord=path"], "COLLECTION_URI=PATH"),
        (["--tfrecord==path"], "COLLECTION_URI=PATH"),
        (["--tfrecord=app:/a=/missing/a=b"], "there is no file /missing/a=b"),
        (["--tfrecord=a=b", "--num-empty-examples=3"], "exclude"),
        (["--example-data-path=/missing"], "cannot be read"),
        (["--history=/"], "history"),
    ],
)
def test_mistakes(arguments, match):
    with pytest.raises(UsageError, match=match):
        run("--server=https://x", "--population=p", *arguments)


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_certificates_that_cannot_be_read_are_no_server_out_of_reach(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"to trust, .*ca\.pem, cannot be used"):
        run("--server=https://localhost:1", "--population=p", f"--test-cert={path}")


def test_what_the_published_runner_takes_together(server, query_plan, data_file):
    server.script_session(query_plan)
    result = run(
        f"--server={server.url}",
        f"--population={server.population}",
        f"--example_data_path={data_file}",
        "--num_empty_examples=3",
        "--test_cert=",
    )
    assert result.exit_code == 0, result.output
    upload = next(r for r in server.requests if f"{r.method} {r.path}" == server.upload)
    assert open_checkpoint(upload.body)["x"].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("uri", "name"), [("app:/values", "a=b"), ("app:/values?x=1", "records"), ("app:/c=d", "e=f=g")]
)
def test_equals_signs_on_both_sides_of_a_tfrecord(tmp_path, uri, name):
    path = tmp_path / name
    write_tfrecord(path, [])
    assert _collection_and_path(f"{uri}={path}", "--tfrecord") == (uri, str(path))


def test_a_compressed_tfrecord_is_called_one(tmp_path):
    write_tfrecord(tmp_path / "plain", [b"1"])
    path = tmp_path / "records.gz"
    path.write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    with pytest.raises(StatusError, match="is compressed"):
        list(read_tfrecord(path))


def test_https_to_a_server_of_plain_http_ends_without_a_retry(server):
    url = server.url.replace("http://", "https://")
    result = run(f"--server={url}", "--population=p")
    assert "FAILED_PRECONDITION" in result.output
    assert "plain http" in result.output
    assert not server.requests


def test_https_to_a_server_that_says_nothing_ends_without_a_retry(monkeypatch):
    monkeypatch.setattr(connections, "_HANDSHAKE_SECONDS", 0.1)
    with socket.create_server(("localhost", 0)) as silent:
        result = run(f"--server=https://localhost:{silent.getsockname()[1]}", "--population=p")
    assert "is it a server that speaks plain http?" in result.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_process_politely(server, query_plan, number):
    server.script_session(query_plan)
    asked, release = threading.Event(), threading.Event()

    def hang(request):
        asked.set()
        release.wait(60)
        return 500

    server.script[server.start] = server.Operation(name="operations/an operation")
    server.script[server.get_operation] = hang
    server.script[server.cancel_operation] = b""
    arguments = [f"--server={server.url}", f"--population={server.population}", "--num-rounds=-1"]
    with subprocess.Popen([*FCP_CLIENT, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert asked.wait(60)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    release.set()
    assert process.returncode == 1
    assert "CANCELLED" in output
    assert server.lines[-1] == server.cancel_operation


def test_what_a_device_gives_is_limited_by_flags(server, query_plan, data_file):
    server.script_session(query_plan)
    server.script[server.eligibility] = bytes(2 << 20)
    common = (f"--server={server.url}", f"--population={server.population}")
    result = run(*common, f"--example-data-path={data_file}", "--max-answer-mb=1")
    assert "RESOURCE_EXHAUSTED" in result.output
    with pytest.raises(UsageError, match="plan_seconds"):
        run(*common, "--max-plan-secs=0")
    with pytest.raises(UsageError, match="not the name"):
        run(*common, "--allow-op=no name")


@pytest.mark.skipif(sys.platform != "linux", reason="where the limit is kept")
def test_memory_is_limited():
    script = (
        "from fcp_core.client.limits import limit_memory\n"
        "limit_memory(256 << 20)\n"
        "bytearray(100 << 20)\n"
        "limit_memory(1 << 30)\n"  # a limit is never widened
        "try: bytearray(512 << 20)\n"
        "except MemoryError: print('refused')\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "refused\n"


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300"])
def test_a_sleep_that_never_ends_is_refused(seconds):
    with pytest.raises(UsageError, match="--sleep-after-round-secs takes at most"):
        run("--server=http://localhost:1", "--population=p", f"--sleep-after-round-secs={seconds}")


@pytest.mark.parametrize("mebibytes", ["1", str(2**70)])
def test_a_limit_of_memory_that_cannot_be_kept_makes_no_traceback(mebibytes, server):
    done = subprocess.run(
        # The server has nothing for it, and says so: the client does not wait to ask again.
        [*FCP_CLIENT, f"--server={server.url}", "--population=p", "--num-rounds=1"]
        + [f"--max-memory-mb={mebibytes}"],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if mebibytes == "1" else 0), done.stderr
