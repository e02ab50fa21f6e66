"""A real server that is killed while a cohort is at work."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fcp_core.admin import AdminClient
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.client.transport import RetryPolicy
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.testing import make_device, query_task
from fcp_secagg.device import SecureAggregationDevice

TOKEN = "a-token-of-enough-characters"
WAIT = 120.0
SUM = Intrinsic(
    "federated_secure_sum",
    (TensorSpec("v", DataType.INT64, (1,)),),
    (TensorSpec("total", DataType.INT64, (1,)),),
    (Parameter("", np.array(2**40, np.int64)),),
)
CONFIGURATION = """
[fcp]
plugins = fcp_secagg.plugin
polling_interval = 20ms
retry_min = 50ms
retry_max = 100ms
[fcp:population:people]
protocol = secagg
[fcp:protocol.secagg]
cohort = 4
minimum = 3
adversary = curious_server
adversarial_rate = 0.1
dropout_rate = 0.2
polling_interval = 20ms
"""


class Host:
    """``fcp serve`` on one folder."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "setup.cfg").write_text(CONFIGURATION)
        with socket.create_server(("localhost", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://localhost:{self.port}/"
        self.admin = AdminClient(self.url, TOKEN, patience=WAIT)

    def start(self):
        path = os.pathsep.join(item for item in sys.path if item)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fcp_core", "serve", "--port", str(self.port)],
                cwd=self.folder,
                env={**os.environ, "FCP_ADMIN__TOKEN": TOKEN, "PYTHONPATH": path},
                stderr=log,
                stdout=log,
            )

    def kill(self):
        self.process.kill()
        self.process.wait()

    def until(self, true):
        end = time.monotonic() + WAIT
        while not true():
            assert time.monotonic() < end, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.02)


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path)
    made.start()
    yield made
    made.kill()


class Holds(SecureAggregationDevice):
    """Waits before it takes a step: 0 the start, 1 keys, 2 shares, 3 uploads, 5 unmasking."""

    def __init__(self, before, go_on):
        super().__init__()
        self.before, self.go_on = before, go_on

    def contribute(self, assignment, results):
        steps = super().contribute(assignment, results)
        step, count = next(steps), 0
        while True:
            if count == self.before:
                assert self.go_on.wait(WAIT)
            answer = yield step
            try:
                step, count = steps.send(answer), count + 1
            except StopIteration:
                return


@pytest.mark.slow
def test_a_cohort_dies_with_the_server_and_the_task_goes_on_with_others(host):
    """Each device brings a power of two: the sum has those that were told OK, each once."""
    free = [1 << number for number in range(20)]

    def run(protocol=None, value=0):
        """Be a device once; return its value if it was told that it contributed, or 0."""
        value = value or free.pop(0)
        protocols = [protocol or SecureAggregationDevice()]
        retry = RetryPolicy(attempts=1)
        data = {"v": np.array([value], np.int64)}
        device = make_device(host.url, data, protocols=protocols, retry=retry)
        with contextlib.suppress(Exception), device:
            return value if device.run_once().outcome.name == "CONTRIBUTED" else 0
        return 0

    def notes():
        return " ".join(host.admin.get(task).notes)

    with ThreadPoolExecutor(16) as pool:
        spec = query_task(SUM, goal_count=8, over_selection=1.0, late_contributions="refuse")
        task = host.admin.submit(spec).task_id
        told = sum(future.result(WAIT) for future in [pool.submit(run) for _ in range(4)])
        assert told == 0b1111
        for step, state in ((1, "R0_ADVERTISE_KEYS, 3 of"), (5, "R3_UNMASKING, 3 of")):
            go_on = threading.Event()
            cohort = [pool.submit(run, Holds(step, go_on)), *(pool.submit(run) for _ in range(3))]
            host.until(lambda state=state: state in notes())
            host.kill()
            go_on.set()
            assert sum(future.result(WAIT) for future in cohort) == 0
            host.start()
            host.until(lambda: host.admin.get(task).contributed == 4)

        def contribute():
            # Nothing is killed any more: what was not told is not counted.
            value = free.pop(0)
            while host.admin.get(task).state == "open":
                if run(value=value):
                    return value
            return 0

        last = [pool.submit(contribute) for _ in range(4)]
        told += sum(future.result(WAIT) for future in last)
    done = host.admin.wait(task)
    assert (done.state, done.contributed) == ("completed", 8)
    total = open_checkpoint(host.admin.result(task))["total"]
    assert total.tolist() == [told]
    assert any("1 sum, of 4 devices" in note for note in done.notes)
    host.kill()
    host.start()
    assert host.admin.get(task).notes == done.notes
