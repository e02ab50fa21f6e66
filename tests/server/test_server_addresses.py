"""Where a server listens, and what devices are told."""

from __future__ import annotations

import asyncio
import socket

import pytest

from fcp_core.errors import UsageError
from fcp_core.server import Server
from fcp_core.server.http import listeners
from tests.server.fronts import WAIT
from tests.server.servers import healthy


def test_a_port_that_is_taken(new_server, load):
    port = new_server().server.port
    with pytest.raises(UsageError, match=f"localhost, port {port}: .*in use; .*0 is a free one"):
        Server(load(), port=port)
    with pytest.raises(UsageError, match=r"cannot listen on no\.such\.host\.invalid"):
        Server(load(), host="no.such.host.invalid")


def test_two_servers_share_a_port(new_server, load, monkeypatch):
    first = new_server(reuse_port=True)
    monkeypatch.setattr(listeners, "_ENDING", 0)
    with pytest.raises(UsageError, match=r"in use; .*0 is a free one"):
        # The processes of one server do, and it must be theirs alone.
        Server(load(), port=first.server.port, processes=2)
    second = new_server(reuse_port=True, port=first.server.port)
    first.start()
    second.start()
    assert healthy(first.server.url)
    first.stop()
    assert healthy(second.server.url)


@pytest.mark.parametrize("host", ["localhost", "", "127.0.0.1"])
def test_devices_of_the_same_machine_are_told_localhost(new_server, host):
    thread = new_server(host=host)
    assert thread.server.url == f"http://localhost:{thread.server.port}/"
    thread.start()
    assert healthy(thread.server.url)


def test_one_address_family(new_server):
    thread = new_server(address_family=socket.AF_INET)
    thread.start()
    assert healthy(f"http://127.0.0.1:{thread.server.port}/")


def test_an_external_url_is_what_devices_are_told(new_server, make_device, sum_task):
    thread = new_server(external_url="https://fcp.example.org/base", populations=["p"])
    assert thread.server.url == "https://fcp.example.org/base/"
    thread.start()
    thread.run(thread.server.services.tasks.submit(sum_task("p"))).result(WAIT)
    device = make_device(f"http://localhost:{thread.server.port}", "p")
    device.check_in()
    assert device.forwarding.target_uri_prefix == "https://fcp.example.org/base/"


@pytest.mark.parametrize("url", ["fcp.example.org", "ftp://fcp.example.org", "https://a/?q=1", ""])
def test_an_external_url_that_is_none(load, url):
    with pytest.raises(UsageError, match="external URL"):
        Server(load(), external_url=url)


def test_devices_refuse_plain_http_from_elsewhere(load, caplog):
    server = Server(load(), external_url="http://fcp.example.org")
    asyncio.run(server.stop())
    assert "devices refuse http://fcp.example.org" in caplog.text


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_every_interface_without_an_address_for_devices_warns(load, new_server, caplog, host):
    new_server(host=host)
    assert "set external_url" in caplog.text
    caplog.clear()
    new_server(host=host, external_url="https://fcp.example.org/")
    new_server(host="localhost")
    assert "set external_url" not in caplog.text


@pytest.mark.parametrize(("known", "name"), [(True, "localhost"), (False, "[::1]")])
def test_an_ipv6_address_may_stand_in_brackets(new_server, monkeypatch, known, name):
    """Devices are told a name that leads to it: some machines have localhost for IPv4 only."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        if host != "localhost":
            return look_up(host, *arguments, **options)
        if not known:
            raise socket.gaierror
        return look_up("::1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(UsageError, match=r"cannot listen on \[::1, port"):
        new_server(host="[::1")
    thread = new_server(host="[::1]")
    with socket.create_connection(("::1", thread.server.port), timeout=WAIT):
        assert thread.server.url == f"http://{name}:{thread.server.port}/"
