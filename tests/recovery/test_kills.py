"""A server that is killed at any moment loses nothing that it has acknowledged."""

import math
import random
import threading
import time
from collections import Counter

import pytest

KILLS = 20
GOAL = 25


class Program(threading.Thread):
    """Has one round after the other, until it is told to stop."""

    def __init__(self, host, spec, rows):
        super().__init__(daemon=True)
        self.host, self.spec, self.rows = host, spec, rows
        self.results = {}
        self.stopping = False
        self.error = None

    def run(self):
        try:
            # On a busy machine all kills together take longer than one would wait for a server.
            with self.host.admin(patience=math.inf) as admin:
                while not self.stopping:
                    # It may be submitted twice: the answer can be lost.
                    spec = self.spec(GOAL, late_contributions="refuse")
                    task = admin.submit(spec, key=f"round {len(self.results)}").task_id
                    assert admin.wait(task).state == "completed"
                    self.results[task] = admin.result(task)
                for task, result in self.results.items():
                    assert admin.get(task).state == "completed"
                    assert admin.result(task) == result, "a result has changed"
        except BaseException as error:
            self.error = error


@pytest.mark.slow
def test_what_was_answered_is_counted_once_whenever_the_server_is_killed(
    make_host, make_crowd, spec, rows, until
):
    rng = random.Random()
    host = make_host("assignment_timeout=2s", "retry_min=100ms", "retry_max=200ms")
    host.start()
    program = Program(host, spec, rows)
    program.start()
    crowd = make_crowd(host, 4)
    for _ in range(KILLS):
        until(lambda: host.ready()[0] == 200, "the server")
        time.sleep(rng.uniform(0.0, 0.3))
        host.kill()
        host.start()
    program.stopping = True
    until(lambda: not program.is_alive(), "the last round")
    crowd.stop()
    if program.error is not None:
        raise program.error
    found = Counter()
    for result in program.results.values():
        counts = rows(result)
        assert len(counts) == GOAL
        found.update(counts)
    assert set(found.values()) == {1}, "a contribution is in the results twice"
    lost = set(crowd.counted) - set(found)
    assert not lost, f"{len(lost)} of {len(crowd.counted)} contributions are lost"
    assert len(crowd.counted) > KILLS
