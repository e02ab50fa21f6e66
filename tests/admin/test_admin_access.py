"""How the client of the admin API reaches a server, and with which certificates."""

from __future__ import annotations

import contextlib
import math
import re
import socket

import pytest
from click.testing import CliRunner

from fcp_core.admin import AdminClient
from fcp_core.admin import client as client_module
from fcp_core.commands.main import cli
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server import Server, ServerThread


def test_the_client_refuses_to_send_the_token_in_the_clear():
    with pytest.raises(UsageError, match="HTTPS"):
        AdminClient("http://fcp.example.org/", "token")
    with pytest.raises(UsageError, match="must be like"):
        AdminClient("fcp.example.org", "token")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"deadline": math.inf}, "deadline"),
        ({"options": {"federated_sum": {"max_norm": math.nan}}}, "options.federated_sum.max_norm"),
        ({"options": {"x": {"y": [1.0, -math.inf]}}}, "options.x.y.1"),
    ],
)
def test_the_client_sends_no_number_that_json_lacks(fields, name):
    spec = TaskSpec(population="p", name="n", plan=b"", aggregation=b"", goal_count=1, **fields)
    with (
        AdminClient("http://localhost:1/", None, patience=0) as client,
        pytest.raises(StatusError, match=f"^{name}: .* is not a finite number"),
    ):
        client.submit(spec)


def test_the_client_says_when_nobody_is_there(make_server, monkeypatch, caplog):
    monkeypatch.setattr(client_module, "_SILENT", 0.0)
    thread = make_server()
    thread.stop()
    with (
        AdminClient(thread.server.url, make_server.token, patience=0.15) as client,
        pytest.raises(StatusError, match="cannot be reached") as caught,
    ):
        client.list()
    assert caught.value.code is Code.UNAVAILABLE
    assert caplog.text.count("cannot be reached: Failed to establish a new connection") == 1
    assert "Connection refused; asking again for 0 s" in caplog.text


def test_a_server_that_does_not_answer_is_not_tried_for_longer_than_said(monkeypatch):
    monkeypatch.setattr(client_module, "_ANSWER_TIMEOUT", 0.5)
    with socket.create_server(("localhost", 0)) as silent:
        url = f"http://localhost:{silent.getsockname()[1]}/"
        with (
            AdminClient(url, "a", patience=0.4) as client,
            pytest.raises(StatusError, match="cannot be reached"),
        ):
            client.list()
        # Once more after the first time, since that took longer than the patience.
        silent.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                asked += 1
    assert asked <= 2


def test_a_certificate_opens_as_the_token_does(certificates, tmp_path):
    authority = certificates / "authority.pem"
    plugins = Plugins.load(
        environ={},
        overrides={
            "client_ca": str(authority),
            "client_certificates": "optional",
            "admin.certificate_names": "operator",
        },
        working_folder=tmp_path,
    )
    with ServerThread(Server(plugins, certfile=certificates / "server.pem")) as thread:

        def client(token, certfile):
            path = None if certfile is None else certificates / certfile
            return AdminClient(
                thread.server.url, token, ca_file=authority, certfile=path, patience=0
            )

        with client(None, "operator.pem") as operator:
            assert operator.list() == []
        for url, hint in (
            (thread.server.url, "--ca-file"),
            (thread.server.url.replace("https:", "http:"), "; does it speak https?"),
        ):
            with (
                AdminClient(url, "a", patience=0) as lost,
                pytest.raises(StatusError, match=re.escape(hint)),
            ):
                lost.list()
        files = ["--ca-file", authority, "--client-certfile", certificates / "operator.pem"]
        arguments = ["tasks", "--server", thread.server.url, *files, "list"]
        listed = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert (listed.exit_code, "contributed" in listed.output) == (0, True), listed.output
        for token, certfile in ((None, "device.pem"), ("some-token-or-other", None)):
            with client(token, certfile) as other, pytest.raises(StatusError) as caught:
                other.list()
            assert caught.value.code is Code.UNAUTHENTICATED
            assert caught.value.message.startswith("the admin API needs the header")


def test_names_of_certificates_need_an_authority(make_server):
    with pytest.raises(UsageError, match="client_ca"):
        make_server(admin__certificate_names="operator")


def test_a_certificate_that_cannot_be_shown_is_told_at_once(tmp_path):
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(UsageError, match=r"text\.pem cannot be used"):
        AdminClient("https://localhost:1/", None, certfile=tmp_path / "text.pem")


def test_https_to_a_server_of_plain_http_says_so(make_server):
    url = make_server().server.url.replace("http://", "https://")
    with (
        AdminClient(url, "a-token-of-enough-characters") as client,
        pytest.raises(StatusError, match="plain http"),
    ):
        client.list()
