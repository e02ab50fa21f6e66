"""The whole way: a server with a budget, devices, a task with noise, and the ledger of it."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fcp_privacy
from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client
from fcp_core.client.python_tasks import PythonTaskExecutor
from fcp_core.protocol.python_plan import KIND
from fcp_core.protocol.status import Code, StatusError
from fcp_core.tasks.python import ArraySpec, PythonTask

TOKEN = "a-token-of-enough-characters"
#: Three lines make the tasks of a population private; two more bound what they cost.
CONFIG = """
[fcp]
aggregator = dp_gaussian
plugins = fcp_privacy.plugin:PrivacyPlugin
retry_min = 0s
retry_max = 0s
check_in_hold = 5s

[fcp:aggregator.dp_gaussian]
clip = 1.0
noise_multiplier = 0.02

[fcp:privacy]
rho = 2600
watermark = ledger.mark

[fcp:storage.sqlite]
path = fcp.sqlite
"""


#: The processes find the plugin where this test found it.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.path.dirname(fcp_privacy.__path__[0])}


def fcp(folder, *arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "fcp_core", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        **more,
    )


class Served:
    """``fcp serve`` in a folder."""

    def __init__(self, folder):
        self.log = folder / "serve.log"
        with self.log.open("a") as log:
            start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fcp_core", "-v", "serve", "--port", "0"],
                cwd=folder,
                env={**ENVIRONMENT, "FCP_ADMIN__TOKEN": TOKEN},
                stderr=log,
                stdout=log,
            )
        self.port = None
        while self.port is None and self.process.poll() is None:
            found = re.search(r"listening on port (\d+)", self.log.read_text()[start:])
            self.port = found and int(found[1])
            time.sleep(0.05)
        self.url = f"http://localhost:{self.port}/"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.terminate()
        self.process.wait(60)


def mean_task(**fields):
    return PythonTask(
        "phones",
        "mean",
        "give",
        goal_count=3,
        outputs={"value": ArraySpec("float32", (2,))},
        aggregation="mean",
        **{"sum_weights": False, **fields},
    )


def devices(url, values):
    """Let a device for each value contribute once, at the same time."""

    def give(arrays, examples, options):
        return {"value": np.array(next(iter(examples)).split(b","), np.float32)}, 1

    def live(value):
        store = CallableStore(lambda selector: iter([value]))
        executors = {KIND: PythonTaskExecutor({"give": give})}
        with Client(url, "phones", stores=store, executors=executors) as client:
            client.run_once()

    threads = [threading.Thread(target=live, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_a_served_task_is_private_and_booked(tmp_path):
    (tmp_path / "fcp.cfg").write_text(CONFIG)
    values = [b"0.6,0.8", b"0.6,0.8", b"600,800"]
    with Served(tmp_path) as server, AdminClient(server.url, TOKEN) as admin:
        with pytest.raises(StatusError, match="federated_weighted_mean") as caught:
            admin.submit(PythonTask("phones", "mean", "give", 3).to_spec({"x": np.zeros(2)}))
        assert caught.value.code is Code.INVALID_ARGUMENT
        for _ in range(2):
            task = admin.submit(mean_task().to_spec({})).task_id
            while not admin.get(task).is_final:
                devices(server.url, values)
            ended = admin.get(task)
            assert ended.state == "completed", ended.error
            # The third is clipped to a norm of 1, as the others are; the noise is small.
            result = mean_task().decode(admin.result(task))
            assert result.arrays["value"] == pytest.approx([0.6, 0.8], abs=0.1)
            assert result.arrays["value"].tolist() != pytest.approx([0.6, 0.8], abs=1e-7)
            (noise,) = ended.release["noise"]
            assert noise["stddev"] == pytest.approx(0.02 / 3)
            assert noise["output"] == "result/value"
        # rho is 1250 each: there is no room for a third.
        with pytest.raises(StatusError, match="budget is rho 2600"):
            admin.submit(mean_task().to_spec({}))

        shown = fcp(tmp_path, "privacy", "show")
        assert "phones/device" in shown.stdout, shown.stderr
        assert "rho 2500" in shown.stdout
        exported = json.loads(fcp(tmp_path, "privacy", "export", "phones").stdout)
        assert [entry["name"] for entry in exported["entries"]] == ["mean", "mean"]
        assert exported["accounts"][0]["spent"]["rho"] == pytest.approx(2500)
        words = fcp(tmp_path, "privacy", "statement").stdout
        assert "2 results" in words
        assert "as if the device had contributed zeros" in words
    backup = (tmp_path / "fcp.sqlite").read_bytes()
    assert json.loads((tmp_path / "ledger.mark").read_text()) == {"privacy/phones/device": 2}

    # The watermark is outside of the storage, and a storage that went back is noticed.
    for path in tmp_path.glob("fcp.sqlite*"):
        if not path.name.endswith("keys"):
            path.unlink()
    with (
        Served(tmp_path) as server,
        AdminClient(server.url, TOKEN) as admin,
        pytest.raises(StatusError, match="taken back: 2 releases"),
    ):
        admin.submit(mean_task().to_spec({}))
    for path in tmp_path.glob("fcp.sqlite-*"):
        path.unlink()
    (tmp_path / "fcp.sqlite").write_bytes(backup)
    mark = {"privacy/phones/device": 5}
    (tmp_path / "ledger.mark").write_text(json.dumps(mark))
    with Served(tmp_path) as server:
        assert server.process.wait(60) == 2
    assert "the privacy ledger was taken back: 5 releases" in server.log.read_text()
    why = ["--rho", "1", "--releases", "3", "--why", "lost with a disk"]
    booked = fcp(tmp_path, "privacy", "book", "phones/device", *why)
    assert "is at entry 5 now" in booked.stdout, booked.stderr
    with Served(tmp_path) as server, AdminClient(server.url, TOKEN) as admin:
        assert len(admin.list()) == 2
