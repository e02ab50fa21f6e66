"""Fronts, servers and devices on real sockets."""

from __future__ import annotations

import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server import Server, ServerThread
from fcp_core.server.http.limits import Limits
from tests.server import fronts
from tests.server.calls import EligibilityEvalTasks
from tests.server.devices import Device, Refused, Rejected
from tests.server.fronts import Front, Services


@pytest.fixture
def make_front():
    running = []

    def make(services=None, authenticate=lambda **request: None, tls=None, metrics=None, **limits):
        front = Front(services or Services(), authenticate, Limits(**limits), tls, metrics=metrics)
        running.append(front)
        return front

    yield make
    for front in running:
        front.stop()


@pytest.fixture(name="http")
def helpers():
    return fronts


@pytest.fixture
def services():
    """Services that take check-ins and uploads, and remember them."""
    services = fronts.Services()
    services.eligibility_eval_tasks = EligibilityEvalTasks()
    return services


@pytest.fixture
def requests(services):
    return services.eligibility_eval_tasks.requests


@pytest.fixture
def media(services):
    return services.media


@pytest.fixture
def load(tmp_path):
    """Loads plugins with options of the test's own."""

    def load(*extra, **overrides):
        options = {"storage.sqlite.path": str(tmp_path / "fcp.sqlite"), **overrides}
        return Plugins.load(environ={}, extra=extra, overrides=options, working_folder=tmp_path)

    return load


@pytest.fixture
def new_server(load):
    """Makes servers, each for a thread of its own that is not started."""
    made = []

    def make(*extra, overrides=None, **arguments):
        thread = ServerThread(Server(load(*extra, **(overrides or {})), **arguments))
        made.append(thread)
        return thread

    yield make
    for thread in made:
        thread.stop()


@pytest.fixture
def make_server(new_server):
    """Starts servers, each on a thread, with options and plugins of the test's own."""

    def make(overrides=None, extra=(), **arguments):
        thread = new_server(*extra, overrides=overrides, **arguments)
        thread.start()
        return thread

    return make


@pytest.fixture
def sum_task():
    """Makes tasks that sum ``update``, of three floats, to ``total``."""
    intrinsic = Intrinsic(
        "federated_sum",
        inputs=(TensorSpec("update", DataType.FLOAT, (3,)),),
        outputs=(TensorSpec("total", DataType.FLOAT, (3,)),),
    )
    configuration = configuration_to_proto([intrinsic]).SerializeToString()

    def make(population="people", goal=3, name="sum", **more):
        return TaskSpec(
            population=population,
            name=name,
            aggregation=configuration,
            goal_count=goal,
            **{"plan": b"the plan", "checkpoint": b"the checkpoint", **more},
        )

    return make


@pytest.fixture
def make_device():
    devices = []

    def make(url, population, ca=None):
        device = Device(url, population, ca)
        devices.append(device)
        return device

    make.Refused, make.Rejected = Refused, Rejected
    yield make
    for device in devices:
        device.close()
