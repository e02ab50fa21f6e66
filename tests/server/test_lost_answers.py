"""Over sockets: each answer of a session is lost, once or twice, and the call is sent again."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
import urllib3

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client.results import Outcome
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.server import Server, ServerThread
from fcp_core.testing.servers import make_device as client_of
from fcp_core.testing.servers import query_task

WAIT = 30.0
DATA = write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1")
#: The requests of a session, in order: check-in, start, plan, checkpoint, begin, report, upload,
#: submit.
STEPS = 8


class Proxy:
    """Passes requests on, each over a connection of its own, and loses answers."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("localhost", 0))
        self.url = f"http://localhost:{self.listener.getsockname()[1]}/"
        self.target = 0
        #: How many answers of which request are lost; requests that were answered.
        self.lose = {}
        self.answered = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            with near:
                self._serve(near)

    def _serve(self, near: socket.socket) -> None:
        near.settimeout(WAIT)
        reader = near.makefile("rb")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = reader.readline()
            if not line:
                return
            head += line
        length = next(
            (int(x[15:]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:")),
            0,
        )
        head = head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        with socket.create_connection(("localhost", self.target), WAIT) as far:
            far.sendall(head + reader.read(length))
            answer = b""
            while piece := far.recv(1 << 16):
                answer += piece
        if self.lose.get(self.answered, 0):
            self.lose[self.answered] -= 1
            return
        self.answered += 1
        near.sendall(answer)
        reader.close()


@pytest.fixture
def behind(tmp_path):
    """A proxy that loses answers, and the server behind it."""
    proxy = Proxy()
    plugins = Plugins.load(environ={}, working_folder=tmp_path)
    thread = ServerThread(Server(plugins, populations=["people"], external_url=proxy.url))
    thread.start()
    try:
        proxy.target = thread.server.port
        yield proxy, thread
    finally:
        thread.stop()
        proxy.listener.close()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("step", range(STEPS))
def test_an_answer_that_is_lost_changes_nothing(step, times, behind, make_device, sum_task):
    proxy, thread = behind
    tasks = thread.server.services.tasks
    task = thread.run(tasks.submit(sum_task(goal=2))).result(WAIT)
    proxy.lose[step] = times
    for _ in range(2):
        device = make_device(proxy.url, "people")
        request = device.pool.request

        def again(*arguments, request=request, **values):
            """Send a request up to four times, as the published client does."""
            for _ in range(3):
                try:
                    return request(*arguments, **values)
                except urllib3.exceptions.HTTPError:
                    continue
            return request(*arguments, **values)

        device.pool.request = again
        device.contribute(DATA)
    assert proxy.lose[step] == 0
    assert proxy.answered == 2 * STEPS
    result = thread.run(tasks.wait(task)).result(WAIT)
    assert list(open_checkpoint(result)["total"]) == [2.0] * 3
    status = thread.run(tasks.status(task)).result(WAIT)
    assert (status.assigned, status.contributed, status.dropped) == (2, 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("step", range(STEPS - 1))
def test_so_it_does_with_our_client(step, times, behind):
    """It sends again what was not answered, and has nothing but the plan to download."""
    proxy, thread = behind
    total = Intrinsic(
        "federated_sum",
        (TensorSpec("update", DataType.FLOAT, (3,)),),
        (TensorSpec("total", DataType.FLOAT, (3,)),),
    )
    tasks = thread.server.services.tasks
    task = thread.run(tasks.submit(query_task(total, goal_count=2))).result(WAIT)
    proxy.lose[step] = times
    for _ in range(2):
        with client_of(proxy.url, {"update": np.ones(3, np.float32)}) as client:
            assert client.run_once().outcome is Outcome.CONTRIBUTED
    assert proxy.lose[step] == 0
    result = thread.run(tasks.wait(task)).result(WAIT)
    assert list(open_checkpoint(result)["total"]) == [2.0] * 3
    status = thread.run(tasks.status(task)).result(WAIT)
    assert (status.assigned, status.contributed, status.dropped) == (2, 2, 0)
