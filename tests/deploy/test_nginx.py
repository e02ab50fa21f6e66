"""Debian's nginx with our example in front of a real ``fcp serve``: TLS, and a path as a prefix."""

from __future__ import annotations

import html
import os
import re
import shutil
from urllib.parse import urljoin

import pytest

from fcp_core.admin import AdminClient
from tests.deploy.proxies import ROOT, TOKEN, Site, browser, sites

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = pytest.mark.slow


class Nginx(Site):
    def command(self):
        text = self.example(
            "nginx/fcp.conf",
            {
                "443": self.port,
                "127.0.0.1:8080": f"127.0.0.1:{self.server_port}",
                "fcp.example.org": "localhost",
                "/var/log/nginx/fcp.log": self.folder / "access.log",
                "/etc/nginx/fcp-proxy.conf": ROOT / "deploy" / "nginx" / "fcp-proxy.conf",
            },
        )
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
        return [str(NGINX), "-p", str(self.folder), "-c", str(path)]


@pytest.fixture
def site(tmp_path, certificates):
    assert NGINX is not None, "there is no nginx: 'make test' installs it (nginx-light)"
    yield from sites(Nginx, tmp_path, certificates)


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
        task_id = site.check_devices(admin, fcp_client)
    with browser(site) as http:
        pages = pages_of(f"{site.url}dashboard/", http)
        assert len(pages) > 8
        assert all(page.startswith(f"{site.url}dashboard/") for page in pages)
        missing = {page.rpartition("/")[2] for page, status in pages.items() if status != 200}
        assert missing <= {"logout", "cancel"}  # forms only: they take no GET
        assert f"{site.url}dashboard/tasks/{task_id}" in pages
        site.check_what_devices_do_not_see(http)
        site.check_that_devices_come_later(http)
    log = (site.folder / "access.log").read_text()
    assert len(log.splitlines()) > 10
    # What a path holds lets somebody in, and an address says who it was.
    assert not re.search(r"/v1|/upload|/data|::1|127\.0", log)
