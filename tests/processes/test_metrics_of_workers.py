"""What a worker has measured is counted once: while it lives, when it dies, and ever after."""

from __future__ import annotations

import os
import signal
import threading
import urllib.request


def scrape(server):
    url = f"http://127.0.0.1:{server.server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=60) as reply:
        return reply.read().decode().splitlines()


def value(lines, start):
    (line,) = [line for line in lines if line.startswith(start + " ")]
    return float(line.rpartition(" ")[2])


def check_ins(server):
    """Return how often devices checked in, as the requests of all processes tell."""
    route = "EligibilityEvalTasks.RequestEligibilityEvalTask"
    return value(scrape(server), f'fcp_requests_total{{route="{route}",status="200"}}')


def check_in(kit, connection, times):
    for _ in range(times):
        kit.Device(1).check_in(connection)


def test_a_dead_worker_is_counted_once(serve, kit):
    server = serve(2, {"metrics": "true", "metrics_address": "127.0.0.1:0"})
    here, worker = server.pids
    server.submit(5)
    check_in(kit, server.to(worker), 4)
    check_in(kit, server.to(here), 2)
    assert check_ins(server) == 6
    os.kill(worker, signal.SIGKILL)
    kit.until(lambda: worker not in server.pids, "the loss is noticed")
    assert check_ins(server) == 6
    kit.until(lambda: len(server.pids) == 2, "another worker")
    assert check_ins(server) == 6
    check_in(kit, server.to(server.pids[1]), 3)
    # Asked twice, since what was told is kept.
    assert [check_ins(server), check_ins(server)] == [9, 9]
    os.kill(server.pids[1], signal.SIGKILL)
    kit.until(lambda: len(server.pids) == 1, "the second loss is noticed")
    assert check_ins(server) == 9


def test_a_worker_that_dies_while_it_is_asked_is_counted_once(serve, kit):
    """Else a counter would jump up and fall again, which looks like a restart and its rate."""
    server = serve(3, {"metrics": "true", "metrics_address": "127.0.0.1:0"})
    _, worker, slow = server.pids
    server.submit(5)
    check_in(kit, server.to(worker), 4)
    check_in(kit, server.to(slow), 1)
    assert check_ins(server) == 5
    # Neither answers; the scrape waits for the second when the first is gone.
    os.kill(worker, signal.SIGSTOP)
    os.kill(slow, signal.SIGSTOP)
    found = []
    asked = threading.Thread(target=lambda: found.append(check_ins(server)))
    try:
        asked.start()
        kit.until(lambda: is_asked(server, 2), "both are asked")
        os.kill(worker, signal.SIGKILL)
        kit.until(lambda: worker not in server.pids, "the loss is noticed")
    finally:
        os.kill(slow, signal.SIGCONT)
    asked.join(kit.WAIT)
    assert found == [5]
    assert check_ins(server) == 5


def is_asked(server, count):
    """Whether the deciding process waits for what so many workers measure."""

    async def waiting():
        peers = server.server._workers._workers
        return sum(bool(peer._link._calls) for peer in peers)

    return server.run(waiting()) == count
