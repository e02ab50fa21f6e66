"""Debian's nginx with our example in front of a real ``fcp serve``: TLS, and a path as a prefix."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
import pytest
import urllib3

from fcp_core.admin import AdminClient
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import Outcome
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.testing.servers import query_task

EXAMPLE = Path(__file__).parents[2] / "deploy" / "nginx"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
TOKEN = "a-token-of-the-admin-API"
#: What loads the dashboard, which is not installed here.
DASHBOARD = {
    "FCP_PLUGINS": "fcp_dashboard.plugin:DashboardPlugin",
    "PYTHONPATH": str(EXAMPLE.parents[1] / "plugins" / "dashboard" / "src"),
}
WAIT = 120.0
SIZE = 500_000  # numbers: an upload of 4 MB

pytestmark = pytest.mark.slow


def until(condition, process, log):
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    return found


class Site:
    """A server and nginx before it, on ports that were free."""

    def __init__(self, folder, certificates):
        self.folder, self._certificates = folder, certificates
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"https://localhost:{self.port}/fcp/"
        self.ca = str(certificates / "authority.pem")
        self.server = self.nginx = None

    def start(self):
        """Return whether nginx got its port."""
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
        log = self.folder / "nginx.log"
        with log.open("w") as output:
            self.nginx = subprocess.Popen(
                [str(NGINX), "-p", str(self.folder), "-c", str(self.configure(int(ready[1])))],
                stdout=output,
                stderr=output,
            )
        while self.nginx.poll() is None:
            try:
                socket.create_connection(("localhost", self.port), timeout=WAIT).close()
                return True
            except OSError:
                time.sleep(0.02)
        assert "Address already in use" in log.read_text(), log.read_text()
        return False

    def configure(self, server_port):
        """Write the example with this machine's ports and files."""
        pairs = {
            "443": str(self.port),
            "127.0.0.1:8080": f"127.0.0.1:{server_port}",
            "fcp.example.org": "localhost",
            "/etc/fcp/tls.crt": str(self._certificates / "server.pem"),
            "/etc/fcp/tls.key": str(self._certificates / "server.pem"),
            "/var/log/nginx/fcp.log": str(self.folder / "access.log"),
            "/etc/nginx/fcp-proxy.conf": str(EXAMPLE / "fcp-proxy.conf"),
        }
        text = (EXAMPLE / "fcp.conf").read_text()
        for there, here in pairs.items():
            assert there in text
            text = text.replace(there, here)
        user = "user root;" if os.geteuid() == 0 else ""
        temporary = "\n".join(
            f"{name}_temp_path {self.folder / name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        path = self.folder / "nginx.conf"
        path.write_text(
            f"{user} daemon off; pid {self.folder}/nginx.pid; error_log stderr;\n"
            f"events {{}}\nhttp {{\n{temporary}\n{text}}}\n"
        )
        return path

    def stop(self):
        for process in (self.nginx, self.server):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(WAIT)


@pytest.fixture
def site(tmp_path, certificates):
    assert NGINX is not None, "there is no nginx: 'make test' installs it (nginx-light)"
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        site = Site(folder, certificates)
        try:
            if site.start():
                yield site
                return
        finally:
            site.stop()
    pytest.fail("nginx found no free port")


def sum_task(**fields):
    spec = TensorSpec("v", DataType.INT64, (SIZE,))
    total = TensorSpec("total", DataType.INT64, (SIZE,))
    intrinsic = Intrinsic("federated_sum", (spec,), (total,))
    return query_task(intrinsic, population="phones/all", **fields)


def pages_of(url, http):
    """Log in to the dashboard, follow every link in it; return the status of each address."""
    login = {"token": TOKEN}
    answer = http.request(
        "POST", f"{url}login", fields=login, encode_multipart=False, redirect=False
    )
    cookie = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
    assert "; Secure" in answer.headers["Set-Cookie"]
    found, todo = {}, [urljoin(f"{url}login", answer.headers["Location"])]
    while todo:
        page = todo.pop()
        if page not in found:
            answer = http.request("GET", page, headers=cookie)
            found[page] = answer.status
            if answer.headers["Content-Type"].startswith("text/html") and page.startswith(url):
                links = re.findall(r'(?:href|src|action)="([^"]*)"', answer.data.decode())
                links = [urljoin(page, html.unescape(link)).partition("#")[0] for link in links]
                todo += [link for link in links if link.startswith("https:")]
    return found


def test_devices_and_programs_go_through_nginx(site, fcp_client):
    with AdminClient(site.url, TOKEN, ca_file=site.ca) as admin:
        task_id = admin.submit(sum_task(goal_count=2, resources="uri")).task_id
        for base in (site.url, f"https://[::1]:{site.port}/fcp"):
            device = fcp_client(
                base, {"v": np.full(SIZE, 21)}, population="phones/all", ca_file=site.ca
            )
            assert device.run_once().outcome is Outcome.CONTRIBUTED
        assert admin.wait(task_id).state == "completed"
        total = open_checkpoint(admin.result(task_id))["total"]
    assert np.array_equal(total, np.full(SIZE, 42))
    with urllib3.PoolManager(ca_certs=site.ca, retries=False) as http:
        pages = pages_of(f"{site.url}dashboard/", http)
        assert len(pages) > 8
        assert all(page.startswith(f"{site.url}dashboard/") for page in pages)
        missing = {page.rpartition("/")[2] for page, status in pages.items() if status != 200}
        assert missing <= {"logout", "cancel"}  # forms only: they take no GET
        assert f"{site.url}dashboard/tasks/{task_id}" in pages
        # Not for devices; and nothing is there without the prefix.
        for path in ("fcp/healthz", "fcp/metrics", "fcp/", "v1/", "healthz"):
            assert http.request("GET", f"https://localhost:{site.port}/{path}").status == 404
        # A server that is gone is no 502 or 503: devices come back later.
        site.server.send_signal(signal.SIGTERM)
        site.server.wait(WAIT)
        check_in = f"{site.url}v1/eligibilityevaltasks/phones%2Fall:request?%24alt=proto"
        answer = http.request("POST", check_in, body=b"")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "30")
    log = (site.folder / "access.log").read_text()
    assert len(log.splitlines()) > 10
    # What a path holds lets somebody in, and an address says who it was.
    assert not re.search(r"/v1|/upload|/data|::1|127\.0", log)
