"""Events reach a real HTTP server, and nobody waits for it."""

import asyncio
import hashlib
import hmac
import http.server
import json
import threading

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code
from fcp_core.rounds.events import CheckedIn, TaskClosed, TaskOpened
from fcp_webhook.plugin import KINDS, WebhookPlugin

OPENED = TaskOpened(1.5, "phones", "id", "train", 3)
CLOSED = TaskClosed(2.5, "phones", "id", "train", 2, Code.DEADLINE_EXCEEDED, "too late")


class Receiver:
    """A webhook's receiver: answers as it is told, and keeps what it was sent."""

    def __init__(self):
        self.requests = []
        self.answers = []
        self.arrived = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((self.path, dict(self.headers), body))
                receiver.arrived.release()
                receiver.go_on.wait(30)
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://localhost:{self.server.server_port}/hook"

    def close(self):
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def bodies(self):
        return [json.loads(body) for _, _, body in self.requests]


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def run(tmp_path):
    """Start a plugin, have it told of events, and stop it."""

    def run(*events, between=lambda: None, **options):
        plugins = Plugins.load(
            environ={},
            working_folder=tmp_path,
            overrides={f"webhook.{name}": value for name, value in options.items()},
            extra=[WebhookPlugin()],
        )

        async def main():
            await plugins.startup()
            for event in events:
                plugins.notify(event)
            between()
            await plugins.shutdown()

        asyncio.run(main())

    return run


def test_events_are_posted_in_order_as_json(run, receiver):
    run(OPENED, CheckedIn(2.0, "phones", "s"), CLOSED, url=receiver.url)
    assert receiver.bodies == [
        {
            "event": "TaskOpened",
            "at": 1.5,
            "population": "phones",
            "task_id": "id",
            "task_name": "train",
            "goal_count": 3,
        },
        {
            "event": "TaskClosed",
            "at": 2.5,
            "population": "phones",
            "task_id": "id",
            "task_name": "train",
            "contributed": 2,
            "code": "DEADLINE_EXCEEDED",
            "message": "too late",
        },
    ]
    path, headers, _ = receiver.requests[0]
    assert path == "/hook"
    assert headers["Content-Type"] == "application/json"
    assert "X-FCP-Signature" not in headers


def test_which_events_are_posted_is_an_option(run, receiver):
    run(OPENED, CheckedIn(2.0, "phones", "s"), url=receiver.url, events="CheckedIn")
    assert [body["event"] for body in receiver.bodies] == ["CheckedIn"]
    run(OPENED, CheckedIn(2.0, "phones", "s"), url=receiver.url, events="")
    assert [body["event"] for body in receiver.bodies[1:]] == ["TaskOpened", "CheckedIn"]


def test_a_secret_signs_the_body(run, receiver):
    run(OPENED, url=receiver.url, secret="hunter2")
    ((_, headers, body),) = receiver.requests
    digest = hmac.new(b"hunter2", body, hashlib.sha256).hexdigest()
    assert headers["X-FCP-Signature"] == f"sha256={digest}"


@pytest.mark.parametrize("status", [500, 429])
def test_an_event_that_is_not_taken_is_tried_again(run, receiver, status):
    receiver.answers = [status]
    run(OPENED, CLOSED, url=receiver.url)
    names = [body["event"] for body in receiver.bodies]
    assert names == ["TaskOpened", "TaskOpened", "TaskClosed"]


def test_an_event_that_is_refused_is_not_tried_again(run, receiver, caplog):
    receiver.answers = [400]
    run(OPENED, CLOSED, url=receiver.url)
    assert [body["event"] for body in receiver.bodies] == ["TaskOpened", "TaskClosed"]
    assert "did not take an event: HTTP 400" in caplog.text


def test_nobody_waits_for_a_receiver_that_hangs(run, receiver, caplog):
    """While the receiver holds one event, two wait in the queue, and the others are dropped."""
    receiver.go_on.clear()

    def release():
        assert receiver.arrived.acquire(timeout=30)
        receiver.go_on.set()

    run(*[OPENED] * 10, between=release, url=receiver.url, queue=2)
    # The thread may have taken the first event before the others came, or after.
    assert len(receiver.requests) in (2, 3)
    assert "some are dropped" in caplog.text
    assert f"{10 - len(receiver.requests)} events were dropped" in caplog.text


def test_the_end_does_not_wait_for_ever(run, receiver, caplog):
    receiver.go_on.clear()
    run(OPENED, OPENED, url=receiver.url, drain_timeout="50ms", timeout="30s")
    assert "some events are lost" in caplog.text


def test_a_receiver_that_is_away_is_told_in_the_log(run, receiver, caplog):
    url = receiver.url
    receiver.server.server_close()
    run(OPENED, url=url, attempts=2)
    assert "did not take an event" in caplog.text


def test_without_a_url_there_is_nothing_to_do(run):
    before = set(threading.enumerate())
    run(OPENED, between=lambda: None)
    # Threads of earlier tests may end meanwhile; none may have come.
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "example.org/hook"}, r"webhook\.url: 'example\.org/hook' is no http"),
        ({"events": "TaskOpend"}, r"webhook\.events: there are no events TaskOpend; there are C"),
    ],
)
def test_a_wrong_option_stops_the_start(run, options, message):
    with pytest.raises(UsageError, match=message):
        run(**options)


def test_all_kinds_of_event_are_known():
    assert {"CheckedIn", "Rejected", "Assigned", "Contributed", "Dropped"} < set(KINDS)
