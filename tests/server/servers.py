"""What tests ask of a server that runs on a thread, and what they give it."""

from __future__ import annotations

import hashlib
import socket

import numpy as np
import urllib3

from fcp_core.protocol.checkpoint import write_checkpoint
from tests.server.fronts import WAIT

#: What a device contributes to a task of ``sum_task``.
BODY = write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1")
#: A plan that gzip makes smaller, and a checkpoint that it does not.
PLAN = b"the plan" * 5000
LARGE = b"".join(bytes([n % 251, n // 251]) for n in range(500))


def submit(thread, spec):
    return thread.run(thread.server.services.tasks.submit(spec)).result(WAIT)


def result(thread, task_id):
    return thread.run(thread.server.services.tasks.wait(task_id)).result(WAIT)


def healthy(url, **pool):
    with urllib3.PoolManager(retries=False, timeout=WAIT, **pool) as client:
        return client.request("GET", url + "healthz").data == b"ok\n"


def refuses(port):
    try:
        socket.create_connection(("localhost", port), timeout=WAIT).close()
    except ConnectionRefusedError:
        return True
    return False


class Time:
    """A clock that a test turns."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def line(key, name):
    """A key as it stands in a file of keys."""
    return f"{hashlib.sha256(key.encode()).hexdigest()}  {name}\n"
