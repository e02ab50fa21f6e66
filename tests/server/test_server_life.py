"""A server's life on a thread: starts that fail, stops, and what they leave."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eets
from fcp_core.server import Server
from tests.server.fronts import WAIT
from tests.server.servers import healthy, refuses


class Hooks:
    """Records the life cycle; fails at start-up if it is told to."""

    def __init__(self, failure=None):
        self.calls = []
        self.failure = failure

    @hookimpl
    async def fcp_startup(self, config):
        self.calls.append("startup")
        if self.failure is not None:
            raise self.failure

    @hookimpl
    def fcp_shutdown(self):
        self.calls.append("shutdown")


def test_life_of_a_thread(new_server):
    hooks = Hooks()
    thread = new_server(hooks)
    with thread as entered:
        assert entered is thread
        assert healthy(thread.server.url)
        assert hooks.calls == ["startup"]

        async def where():
            return threading.current_thread()

        assert thread.run(where()).result(WAIT) is not threading.current_thread()
    assert hooks.calls == ["startup", "shutdown"]
    assert refuses(thread.server.port)
    thread.stop()
    assert hooks.calls == ["startup", "shutdown"]
    with pytest.raises(RuntimeError, match="starts once"):
        thread.start()
    with pytest.raises(RuntimeError, match="not running"):
        thread.run(where())


def test_a_server_that_never_started_gives_its_port_back(new_server):
    hooks = Hooks()
    thread = new_server(hooks)
    port = thread.server.port
    thread.stop()
    thread.stop()
    assert hooks.calls == []
    assert refuses(port)
    work = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="not running"):
        thread.run(work)


def test_a_failing_start_is_raised_in_the_caller(new_server):
    before, hooks = Hooks(), Hooks(failure=OSError("the disk is full"))
    thread = new_server(before, hooks)
    with pytest.raises(UsageError, match="the disk is full"):
        thread.start()
    assert before.calls == ["startup", "shutdown"]
    assert refuses(thread.server.port)


def test_a_failing_storage_stops_the_plugins_again(new_server, tmp_path):
    hooks = Hooks()
    thread = new_server(hooks)

    async def fail():
        raise UsageError("no storage")

    thread.server.services.start = fail
    with pytest.raises(UsageError, match="no storage"):
        thread.start()
    assert hooks.calls == ["startup", "shutdown"]
    assert refuses(thread.server.port)


def test_a_server_starts_once(load):
    async def main():
        server = Server(load())
        await server.start()
        with pytest.raises(RuntimeError, match="starts once"):
            await server.start()
        await server.stop()
        await server.stop()

    asyncio.run(main())


def test_stopping_from_the_servers_own_thread(new_server):
    thread = new_server()
    thread.start()

    async def stop():
        thread.stop()

    thread.run(stop()).result(WAIT)
    thread.stop()
    assert refuses(thread.server.port)


def test_a_request_that_hangs_does_not_keep_the_server(new_server, http):
    thread = new_server(overrides={"drain_timeout": "0s"}, populations=["p"])
    entered = threading.Event()

    async def hang(request, caller):
        entered.set()
        await asyncio.Event().wait()

    thread.server.services.eligibility_eval_tasks.request_eligibility_eval_task = hang
    thread.start()
    with http.Connection(thread.server.port) as connection:
        connection.send(http.head("/v1/eligibilityevaltasks/p:request", Content_Length=0))
        assert entered.wait(WAIT)
        thread.stop()
        reply = connection.reply()
    answer = eets.EligibilityEvalTaskResponse.FromString(reply.body)
    assert (reply.status, answer.WhichOneof("result")) == (200, "rejection_info")
    assert refuses(thread.server.port)


def test_limits_that_contradict_each_other(load):
    with pytest.raises(UsageError, match=r"max_body \(2000.*max_in_flight \(1000") as caught:
        Server(load(max_in_flight=1000, max_body=2000, max_decompressed=10))
    assert "overrides: max_body" in str(caught.value)


@pytest.mark.slow
def test_probes_see_a_stop_that_is_announced(new_server, http):
    thread = new_server(overrides={"drain_notice": "3s"})
    thread.start()

    def ready():
        with http.Connection(thread.server.port) as connection:
            connection.send(http.head("/readyz", "GET"))
            return connection.reply().status

    assert ready() == 200
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(thread.stop)
        while not thread.server._frontend._context.stopping:
            time.sleep(0.01)
        assert ready() == 503
        stopping.result(WAIT)
    assert refuses(thread.server.port)
