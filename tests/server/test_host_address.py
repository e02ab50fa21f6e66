"""A server on every interface that was not told its address goes by what each device used."""

from __future__ import annotations

import http.client

import numpy as np
import pytest

from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eets
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos import task_assignments_pb2 as tasks_pb2
from fcp_core.server import Server, ServerThread
from fcp_core.server import server as module
from fcp_core.server.host_address import HOST, HostAddress

WAIT = 30.0


@pytest.fixture
def thread(monkeypatch, tmp_path):
    """A server that takes 127.0.0.1 for every interface."""
    monkeypatch.setattr(module, "_EVERY", ("127.0.0.1",))
    plugins = Plugins.load(environ={}, working_folder=tmp_path)
    running = ServerThread(Server(plugins, host="127.0.0.1"))
    running.start()
    yield running
    running.stop()


def ask(port, path, request, response, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        connection.request("POST", path, request.SerializeToString(), headers)
        return response.FromString(connection.getresponse().read())
    finally:
        connection.close()


def addresses(port, **headers):
    """Return where a device is sent on to, and where it finds its plan."""
    check_in = ask(
        port,
        "/v1/eligibilityevaltasks/people:request?%24alt=proto",
        eets.EligibilityEvalTaskRequest(),
        eets.EligibilityEvalTaskResponse,
        **headers,
    )
    operation = ask(
        port,
        f"/v1/populations/people/taskassignments/{check_in.session_id}:start?%24alt=proto",
        tasks_pb2.StartTaskAssignmentRequest(),
        longrunning.Operation,
        **headers,
    )
    response = tasks_pb2.StartTaskAssignmentResponse()
    assert operation.response.Unpack(response)
    task = response.task_assignment
    prefixes = {
        check_in.task_assignment_forwarding_info.target_uri_prefix,
        task.aggregation_data_forwarding_info.target_uri_prefix,
    }
    return prefixes, task.plan.uri.partition("data/")[0]


def test_each_device_goes_on_where_it_came_to(thread, sum_task):
    port = thread.server.port
    thread.run(thread.server.services.tasks.submit(sum_task(goal=9))).result(WAIT)
    assert addresses(port, Host="fcp.example") == ({"/"}, "https://fcp.example/")
    assert addresses(port, Host="fcp.example:444", **{"X-Forwarded-Proto": "http"}) == (
        {"/"},
        "http://fcp.example:444/",
    )
    # One that came to this machine stays there, and older clients know that form, too.
    for host in (f"localhost:{port}", "localhost:5"):
        assert addresses(port, Host=host) == ({f"http://{host}/"}, f"http://{host}/")
    assert addresses(port, Host="a b@c") == (
        {f"http://localhost:{port}/"},
        f"http://localhost:{port}/",
    )


def test_a_round_over_relative_prefixes(thread, make_device, sum_task):
    tasks = thread.server.services.tasks
    task_id = thread.run(tasks.submit(sum_task(goal=2))).result(WAIT)
    body = write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1")
    for _ in range(2):
        device = make_device(f"http://127.0.0.1:{thread.server.port}/", "people")
        device.contribute(body)
        assert device.forwarding.target_uri_prefix == "/"
    thread.run(tasks.wait(task_id)).result(WAIT)


@pytest.mark.parametrize(
    ("host", "proto", "secure", "calls", "downloads"),
    [
        ("", "", False, "http://localhost:7/", "http://localhost:7/"),
        ("", "", True, "https://localhost:7/", "https://localhost:7/"),
        ("LOCALHOST:80", "", False, "http://LOCALHOST:80/", "http://LOCALHOST:80/"),
        ("192.0.2.1:8080", "", False, "/", "http://192.0.2.1:8080/"),
        ("[2001:db8::1]:8080", "", True, "/", "https://[2001:db8::1]:8080/"),
        ("fcp.example", "gopher", True, "/", "https://fcp.example/"),
        ("fcp.example/x", "", True, "https://localhost:7/", "https://localhost:7/"),
    ],
)
def test_the_address_that_a_call_names(host, proto, secure, calls, downloads):
    token = HOST.set((host, proto))
    try:
        reached = HostAddress(7, secure=secure)
        assert (reached.base_url(), reached.data_url()) == (calls, downloads)
    finally:
        HOST.reset(token)
