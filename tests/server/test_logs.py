"""The log: as JSON, with sessions, and with nothing that identifies a device."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.rounds.tokens import label
from fcp_core.server import Server, ServerThread
from fcp_core.server.logs import configure_logging, hide_addresses

WAIT = 30.0


@pytest.fixture
def log():
    """Turns logging on; the root logger is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()

    def start(format, level=logging.DEBUG):
        configure_logging(level, format, stream)
        return stream

    yield start
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_has_one_object_a_line_with_what_it_is_about(log):
    stream = log("json")
    about = {"session_id": "s-1", "size": 3, "odd": object, "message": "not this"}
    logging.getLogger("fcp.x").info("two\nlines of %s", "ü", extra={"fcp": about})
    try:
        raise KeyError("broken")
    except KeyError:
        logging.getLogger("fcp.x").exception("failed")
    first, second = lines(stream)
    assert first["message"] == "two\nlines of ü"
    assert (first["level"], first["logger"]) == ("INFO", "fcp.x")
    assert first["time"].endswith("Z")
    assert (first["session_id"], first["size"], first["odd"]) == ("s-1", 3, str(object))
    assert "KeyError: 'broken'" in second["exception"]


def test_text_is_for_people(log):
    stream = log("text", logging.INFO)
    logging.getLogger("fcp.x").debug("not this")
    logging.getLogger("fcp.x").info("this")
    assert stream.getvalue().endswith(" INFO fcp.x: this\n")
    assert stream.getvalue().count("\n") == 1


NASTY = (
    "x\n2026-01-01 00:00:00,000 ERROR fcp.server: \x1b[31mhacked\u202e\u2028\x9b\r" + "y" * 10_000
)


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_a_device_wrote_cannot_pass_for_a_line_of_the_log(log, format):
    stream = log(format)
    logger = logging.getLogger("fcp.x")
    logger.info("a device says %s", NASTY, extra={"fcp": {"reason": NASTY}})
    try:
        raise ValueError(NASTY)
    except ValueError:
        logger.exception("failed")
    written = stream.getvalue()
    assert not set("\x1b\u202e\u2028\x9b\r") & set(written)
    starts = [line for line in written.splitlines() if not line.startswith("  ")]
    assert len(starts) == 2
    assert len(starts[0]) < 10_000
    if format == "json":
        first, second = lines(stream)
        assert NASTY.startswith(first["message"][len("a device says ") :])
        assert NASTY.startswith(first["reason"])
        assert NASTY[:60] in second["exception"]


@pytest.mark.slow
def test_fcp_serve_logs_as_it_is_configured(tmp_path):
    command = [sys.executable, "-m", "fcp_core", "-s", "log_format=json", "serve", "--port", "0"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FCP_")}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True
    ) as process:
        entries = []
        try:
            for line in process.stderr:
                entries.append(json.loads(line))
                if "listening on" in entries[-1]["message"]:
                    process.terminate()
        finally:
            process.kill()
    assert {entry["level"] for entry in entries} == {"INFO"}
    assert any("listening on" in entry["message"] for entry in entries)


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "('10.1.2.3', 4242)", "::1", "2001:db8::7", "fe80:1:2:3:4:5:6:7"]
)
def test_tornado_shows_no_address(caplog, address):
    hide_addresses()
    with caplog.at_level(logging.INFO, "tornado.general"):
        logging.getLogger("tornado.general").info(
            "Malformed HTTP message from %s: %s", address, "x"
        )
    (record,) = caplog.records
    assert "(address)" in record.getMessage()
    assert not any(part in record.getMessage() for part in ("10.1", "::", "fe80", "db8"))
    assert record.getMessage().endswith(": x")


def test_a_round_is_told_by_its_sessions_and_by_nothing_else(
    log, tmp_path, make_device, sum_task, http
):
    stream = log("json")
    plugins = Plugins.load(environ={}, working_folder=tmp_path)
    with ServerThread(Server(plugins)) as thread:
        tasks = thread.server.services.tasks
        task_id = thread.run(tasks.submit(sum_task(goal=1))).result(WAIT)
        device = make_device(thread.server.url, "people")
        task, _, _ = device.assignment()
        upload = device.start_upload(task)
        device.report(task)
        device.upload(upload, write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1"))
        device.submit(task, upload)
        thread.run(tasks.wait(task_id)).result(WAIT)
        with http.Connection(thread.server.port) as connection:
            connection.send(b"nonsense\r\n\r\n")
            connection.is_closed()
            port = connection.socket.getsockname()[1]
    entries = [line for line in lines(stream) if line["logger"].startswith(("fcp", "tornado"))]
    of_session = [line for line in entries if line.get("session_id") == label(device.session_id)]
    events = [line["event"] for line in of_session if "event" in line]
    assert events == ["CheckedIn", "Assigned", "Contributed"]
    assert [line["route"] for line in of_session if "route" in line] == [
        "TaskAssignments.StartTaskAssignment",
        "TaskAssignments.ReportTaskResult",
    ]
    text = "\n".join(json.dumps(line) for line in entries)
    secrets = [
        device.session_id,
        "127.0.0.1",
        "::1",
        str(port),
        "x-goog-api-key",
        "urllib3",
        task.authorization_token,
        upload.client_token,
        upload.resource.resource_name,
        device.session_id,
    ]
    assert [secret for secret in secrets if secret in text] == []
    assert sys.getsizeof(text) > 1000  # there was something to find it in
