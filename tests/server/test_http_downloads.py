"""Downloads over HTTP, and clients that leave or do not read."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import random
import threading

import pytest

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import ManualClock
from fcp_core.server.http.metrics import ServerMetrics


@pytest.fixture
def plan(http, media):
    data = gzip.compress(random.Random(4).randbytes(3_000_000))
    plan = http.Download(data, "application/x-protobuf+gzip", "tag", 60.5)
    media.files["group/plan"] = plan
    return plan


def test_a_download(make_front, http, services, media, plan):
    front = make_front(services)
    reply = front.ask(http.head("/data/group/plan", "GET", Accept_Encoding="gzip"))
    assert (reply.status, reply.body) == (200, plan.data)
    assert reply.headers["Content-Type"] == "application/x-protobuf+gzip"
    assert reply.headers["Content-Length"] == str(len(plan.data))
    assert reply.headers["Cache-Control"] == "max-age=60"
    assert reply.headers["Content-Encoding"] is None
    assert reply.headers["ETag"] == '"tag"'

    reply = front.ask(http.head("/data/group/plan", "HEAD"), method="HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Length"] == str(len(plan.data))


def test_a_download_that_the_client_has_already(make_front, http, services, media, plan):
    front = make_front(services)
    for known in ('"tag"', 'W/"tag"', '"other", "tag"', "*"):
        reply = front.ask(http.head("/data/group/plan", "GET", If_None_Match=known))
        assert (reply.status, reply.body, reply.headers["ETag"]) == (304, b"", '"tag"')
    reply = front.ask(http.head("/data/group/plan", "GET", If_None_Match='"other"'))
    assert (reply.status, reply.body) == (200, plan.data)


def test_what_may_not_be_kept_says_so(make_front, http, services, media):
    media.files["a b/slices_3"] = http.Download(b"", "application/octet-stream+gzip", "t", 0.0)
    reply = make_front(services).ask(http.head("/data/a%20b/slices_3", "GET"))
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Cache-Control"] == "no-cache"


def test_downloads_need_no_key_and_end(make_front, http, services, media, plan):
    def authenticate(**request):
        raise StatusError(Code.UNAUTHENTICATED, "no key")

    front = make_front(services, authenticate)
    assert front.ask(http.head("/data/group/plan", "GET")).status == 200
    del media.files["group/plan"]
    reply = front.ask(http.head("/data/group/plan", "GET"))
    assert (reply.status, reply.error) == (404, (Code.NOT_FOUND, "nothing here"))
    reply = front.ask(http.head("/data/group/plan", Content_Length=0))
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")


def test_a_client_that_leaves_before_its_download_is_no_error(
    make_front, http, services, media, caplog
):
    metrics = ServerMetrics(ManualClock(), dict)
    file = http.Download(b"data", "application/x", "tag", 0.0)
    began = threading.Event()

    async def download(name):
        began.set()
        while metrics.requests.get("download", "499") == 0:
            await asyncio.sleep(0)
        return file

    media.download = download
    front = make_front(services, metrics=metrics)
    with front.connect() as connection:
        connection.send(http.head("/data/group/plan", "GET"))
        assert began.wait(http.WAIT)
        connection.reset()
    front.stop()  # waits for the request
    front.stop = lambda: None
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_client_that_does_not_read_is_let_go(make_front, http, services, media):
    media.files["g/large"] = http.Download(bytes(64 << 20), "application/octet-stream", "t", 0.0)
    front = make_front(services, body_timeout=0.2)
    with front.connect() as connection:
        connection.send(http.head("/data/g/large", "GET"))
        assert connection.socket.recv(8) == b"HTTP/1.1"
        assert front.run(front.frontend._context.settle(http.WAIT))
        left = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.socket.recv(1 << 20):
                left += len(piece)
        assert left < 64 << 20
