"""A proxy with our example in front of a real ``fcp serve``, on ports that were free."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import urllib3

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import Outcome
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.testing.servers import query_task

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-admin-API"
#: What loads the dashboard, which is not installed here.
DASHBOARD = {
    "FCP_PLUGINS": "fcp_dashboard.plugin:DashboardPlugin",
    "PYTHONPATH": str(ROOT / "plugins" / "dashboard" / "src"),
}
WAIT = 120.0
SIZE = 500_000  # numbers: an upload of 4 MB


def until(condition, process, log):
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    return found


class Site:
    """A server and a proxy before it, which subclasses configure."""

    def __init__(self, folder, certificates):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        #: The files by the names that the examples have for them.
        pem = certificates / "server.pem"
        self.keys = {"/etc/fcp/tls.crt": pem, "/etc/fcp/tls.key": pem}
        self.url = f"https://localhost:{self.port}/fcp/"
        self.ca = str(certificates / "authority.pem")
        self.server = self.proxy = self.server_port = None

    def command(self):
        """Write the proxy's configuration; return what runs it."""
        raise NotImplementedError

    def start(self):
        """Return whether the proxy got its port."""
        log = self.folder / "server.log"
        command = [sys.executable, "-m", "fcp_core", "serve", "--port", "0", "--storage", "memory"]
        command += ["--external-url", self.url, "--population", "phones/all", "--dashboard"]
        with log.open("w") as output:
            self.server = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, "FCP_ADMIN__TOKEN": TOKEN, **DASHBOARD},
                stdout=output,
                stderr=output,
            )
        ready = until(
            lambda: re.search(r"listening on port (\d+)", log.read_text()), self.server, log
        )
        self.server_port = int(ready[1])
        log = self.folder / "proxy.log"
        with log.open("w") as output:
            self.proxy = subprocess.Popen(self.command(), stdout=output, stderr=output)
        while self.proxy.poll() is None:
            try:
                socket.create_connection(("localhost", self.port), timeout=WAIT).close()
                return True
            except OSError:
                time.sleep(0.02)
        assert "Address already in use" in log.read_text(), log.read_text()
        return False

    def example(self, path, pairs):
        """Return an example with this machine's ports and files; *pairs* are of this proxy."""
        text = (ROOT / "deploy" / path).read_text()
        for there, here in {**self.keys, **pairs}.items():
            assert there in text
            text = text.replace(there, str(here))
        return text

    def stop(self):
        for process in (self.proxy, self.server):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(WAIT)

    def check_devices(self, admin, make_client):
        """Devices take part in a task; return its id."""
        task_id = admin.submit(sum_task(goal_count=2, resources="uri")).task_id
        for base in (self.url, f"https://[::1]:{self.port}/fcp"):
            data = {"v": np.full(SIZE, 21)}
            device = make_client(base, data, population="phones/all", ca_file=self.ca)
            assert device.run_once().outcome is Outcome.CONTRIBUTED
        assert admin.wait(task_id).state == "completed"
        total = open_checkpoint(admin.result(task_id))["total"]
        assert np.array_equal(total, np.full(SIZE, 42))
        return task_id

    def check_what_devices_do_not_see(self, http, *more):
        """Nothing but the protocol is for devices; and nothing is there without the prefix."""
        for path in (*more, "fcp/healthz", "fcp/metrics", "fcp/", "v1/", "healthz"):
            assert http.request("GET", f"https://localhost:{self.port}/{path}").status == 404

    def check_that_devices_come_later(self, http):
        """A server that is gone is no 502 or 503."""
        self.server.send_signal(signal.SIGTERM)
        self.server.wait(WAIT)
        check_in = f"{self.url}v1/eligibilityevaltasks/phones%2Fall:request?%24alt=proto"
        answer = http.request("POST", check_in, body=b"")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "30")


def sites(kind, tmp_path, certificates):
    """Yield a site of a kind, and stop it."""
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        site = kind(folder, certificates)
        try:
            if site.start():
                yield site
                return
        finally:
            site.stop()
    raise AssertionError("the proxy found no free port")


def browser(site):
    """Return what calls a site as a browser or a device does."""
    return urllib3.PoolManager(ca_certs=site.ca, retries=False)


def sum_task(**fields):
    spec = TensorSpec("v", DataType.INT64, (SIZE,))
    total = TensorSpec("total", DataType.INT64, (SIZE,))
    intrinsic = Intrinsic("federated_sum", (spec,), (total,))
    return query_task(intrinsic, population="phones/all", **fields)
