"""What there may be at a time: connections, tensors, slow clients."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest

from fcp_core.protocol.checkpoint import base as checkpoints
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http import refusals


def test_connections_beyond_the_limit_are_closed_and_then_there_is_room(make_front, http, caplog):
    front = make_front(max_connections=3)
    health = http.head("/healthz", "GET")
    open_connections = [front.connect().send(health) for _ in range(3)]
    assert [c.reply("GET").status for c in open_connections] == [200] * 3
    with front.connect() as one_more:
        assert one_more.is_closed()
    assert caplog.messages == [
        "a device is turned away: there are 3 connections already (max_connections)"
    ]
    # Those that are there go on.
    assert open_connections[0].send(health).reply("GET").status == 200
    for connection in open_connections:
        connection.socket.close()
    while True:  # the server sees an end a little later than it happens
        with front.connect() as connection:
            try:
                assert connection.send(health).reply("GET").status == 200
            except (ConnectionError, OSError, ValueError):
                continue
            break


def test_many_slow_clients_end_and_others_are_served_meanwhile(make_front, http, monkeypatch):
    monkeypatch.setattr(refusals, "LINGER_TIME", 0.3)
    front = make_front(idle_timeout=1.0, body_timeout=1.0)
    slow = [
        b"GET /hea",
        http.head("/v1/eligibilityevaltasks/p:request", Content_Length=100) + b"some",
        http.head("/upload/v1/media/known/upload", Content_Length=100) + b"some",
        http.head("/upload/v1/media/unknown", Content_Length=100) + b"some",
        b"",
    ]
    connections = [front.connect().send(start) for start in slow * 20]
    assert front.ask(http.head("/healthz", "GET"), method="GET").status == 200
    ended = []

    def drain(connection):
        with connection:
            answer = io.BytesIO()
            while piece := connection.socket.recv(65536):
                answer.write(piece)
            ended.append(answer.getvalue())

    threads = [threading.Thread(target=drain, args=(c,), daemon=True) for c in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(http.WAIT)
    assert len(ended) == len(connections)
    assert front.frontend.in_flight == 0


def test_who_does_not_read_an_answer_does_not_keep_it(make_front, http, services):
    async def much(request, sender=None):
        return eligibility.EligibilityEvalTaskResponse(session_id="x" * (32 << 20))

    services.eligibility_eval_tasks.request_eligibility_eval_task = much
    front = make_front(services, body_timeout=0.5)
    with front.connect() as connection:
        connection.send(http.head("/v1/eligibilityevaltasks/p:request", Content_Length=0))
        assert connection.socket.recv(1) == b"H"
        end = time.monotonic() + http.WAIT
        while front.frontend._http.connections:
            assert time.monotonic() < end, "it is kept"
            time.sleep(0.02)


@pytest.mark.parametrize("format", ["tf_v1", "federated_compute"])
def test_tensors_of_a_checkpoint_are_bounded(format, monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_TENSORS", 20)
    enough = {f"t{number}": np.zeros(1, np.float32) for number in range(20)}
    assert len(open_checkpoint(write_checkpoint(enough, format))) == 20
    data = write_checkpoint({**enough, "more": np.zeros(1, np.float32)}, format)
    with pytest.raises(StatusError, match="more than 20 tensors") as caught:
        open_checkpoint(data)
    assert caught.value.code is Code.INVALID_ARGUMENT
