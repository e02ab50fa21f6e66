"""Addresses with a path before everything, and of IPv6, from the check-in to the result."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
import urllib3
from click.testing import CliRunner

from fcp_core.admin import AdminClient
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import Outcome
from fcp_core.commands.main import cli
from fcp_core.errors import ListenError, UsageError
from fcp_core.testing.servers import query_task

TOKEN = "a-token-of-the-admin-API"


def task(population, **fields):
    spec = TensorSpec("v", DataType.INT64, (1,))
    total = TensorSpec("total", DataType.INT64, (1,))
    intrinsic = Intrinsic("federated_sum", (spec,), (total,))
    # As a resource of its own, so that its address counts too.
    return query_task(intrinsic, population=population, resources="uri", **fields)


@pytest.fixture
def serve(fcp_server):
    """Start a server under an address whose port is found out before."""

    def start(host, address, **arguments):
        for left in reversed(range(10)):
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
                free.bind((host, 0))
                port = free.getsockname()[1]
            try:
                url = address.format(port=port)
                return fcp_server(host=host, port=port, external_url=url, **arguments)
            except ListenError:  # somebody else was quicker
                if not left:
                    raise

    return start


# A population with a slash is %2F in paths, which nothing on the way may decode.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "shown", "path", "processes"),
    [
        ("::1", "[::1]", "", 1),
        ("::1", "[::1]", "/team%20a/fcp", 1),
        ("127.0.0.1", "localhost", "/fcp", 1),
        pytest.param("127.0.0.1", "127.0.0.1", "/v1x/", 2, marks=pytest.mark.slow),
    ],
)
def test_a_session_and_its_task_under_an_address(serve, fcp_client, host, shown, path, processes):
    server = serve(
        host,
        f"http://{shown}:{{port}}{path}",
        populations=["phones/all"],
        overrides={"admin.token": TOKEN},
        processes=processes,
    )
    port = server.server.port
    assert server.url == f"http://{shown}:{port}{path.rstrip('/')}/"
    # What a proxy that takes the prefix off sends comes without one.
    for number, base in enumerate((server.url, f"http://{shown}:{port}/")):
        with AdminClient(base, TOKEN) as admin:
            name = f"task{number}"
            task_id = admin.submit(task("phones/all", name=name, goal_count=1)).task_id
            device = fcp_client(base, {"v": [7]}, population="phones/all")
            assert device.run_once().outcome is Outcome.CONTRIBUTED
            assert admin.wait(task_id).state == "completed"
            assert b"total" in admin.result(task_id)
        environment = {"FCP_ADMIN__TOKEN": TOKEN}
        listed = CliRunner().invoke(cli, ["tasks", "--server", base, "list"], env=environment)
        assert listed.exit_code == 0
        assert name in listed.output


def test_only_the_prefix_itself_is_one(serve):
    server = serve("127.0.0.1", "http://localhost:{port}/fcp")
    port = server.server.port
    with urllib3.PoolManager(retries=False) as http:
        there = {
            path: http.request("GET", f"http://127.0.0.1:{port}{path}").status
            for path in ("/fcp/healthz", "/healthz", "/fcpx/healthz", "/fcp/fcp/healthz", "/fcp")
        }
    assert urlsplit(server.url).path == "/fcp/"
    assert there == {
        "/fcp/healthz": 200,
        "/healthz": 200,
        "/fcpx/healthz": 404,
        "/fcp/fcp/healthz": 404,
        "/fcp": 404,
    }


#: Such as nobody can connect to.
NOWHERE = [
    "http://[::1",
    "https://host:99999/",
    "https://host:x/",
    "https://a b/",
    "https://user@host/",
    "https://[::1::]/",
    "host:80",
]


@pytest.mark.parametrize(
    "url", [*NOWHERE, "https://-/", "https://host/é/", "https://host/\n", "https://host/?a=1"]
)
def test_what_is_no_address(url, fcp_server):
    for use in (lambda: fcp_server(external_url=url), lambda: AdminClient(url, TOKEN)):
        with pytest.raises(UsageError, match="must be like https://"):
            use()


@pytest.mark.parametrize("url", NOWHERE)
@pytest.mark.parametrize(
    "command",
    [
        "serve --storage memory --port 0 --external-url {}",
        "tasks --server {} list",
        "client --population p --server {}",
    ],
)
def test_commands_say_that_it_is_none(url, command):
    environment = {"FCP_ADMIN__TOKEN": TOKEN}
    done = CliRunner().invoke(cli, [part.format(url) for part in command.split()], env=environment)
    assert done.exit_code in (1, 2)
    assert isinstance(done.exception, SystemExit), "a traceback"
