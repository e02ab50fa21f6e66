"""What a task costs is said to its devices, and a device's owner may limit it."""

from contextlib import closing

import numpy as np
import pytest

import fcp_privacy.plugin
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import Acceptance, History, Outcome, PrivacyPolicy, TaskOutcome
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.statement import Statement
from fcp_core.server import Server
from fcp_core.testing import RunningServer, make_device, query_task

VECTOR = TensorSpec("v", DataType.FLOAT, (2,))
SUM = Intrinsic("federated_sum", (VECTOR,), (TensorSpec("total", DataType.FLOAT, (2,)),))
NOISE = {"clip": 1.0, "epsilon": 0.75, "delta": 1e-6}


@pytest.fixture
def server():
    plugin = fcp_privacy.plugin.PrivacyPlugin()
    plugins = Plugins.load(
        environ={}, overrides={"retry_min": "0s", "retry_max": "0s"}, extra=[plugin]
    )
    with RunningServer(Server(plugins, populations=["people"])) as running:
        yield running


def submit(server, **fields):
    chosen = {"aggregators": {"federated_sum": "dp_gaussian"}, "options": {"dp_gaussian": NOISE}}
    return server.submit(query_task(SUM, **{**chosen, **fields}))


@pytest.fixture
def history():
    with closing(History(":memory:")) as history:
        yield history


def test_a_week_of_tasks_is_what_the_owner_allows(server, history):
    policy = PrivacyPolicy(accept=(Acceptance(epsilon_per_week=2.0, delta_per_week=1e-4),))
    data = {"v": np.array([0.5, 0.25], np.float32)}
    outcomes = []
    for _ in range(3):
        submit(server)
        with make_device(server.url, data, privacy=policy, history=history) as device:
            (task,) = device.run_once().tasks
        outcomes.append(task.outcome)
    assert outcomes == [TaskOutcome.CONTRIBUTED, TaskOutcome.CONTRIBUTED, TaskOutcome.REFUSED]
    assert "of epsilon 2 a week" in task.error.message
    # The owner sees in the history what each task has said.
    said = [Statement.read(run.statement) for run in history.runs()]
    assert [each.epsilon for each in said] == pytest.approx([said[0].epsilon] * 3)
    # At least what was asked for: the statement is at the population's delta.
    assert 0.5 < said[0].epsilon <= 1.0
    assert said[0].said["relation"] == "zero_out"


def test_a_task_without_noise_says_nothing(server, history):
    server.submit(query_task(SUM, over_selection=5.0))
    policy = PrivacyPolicy(accept=(Acceptance(epsilon_per_week=2.0),))
    data = {"v": np.array([0.5, 0.25], np.float32)}
    with make_device(server.url, data, privacy=policy, history=history) as device:
        (task,) = device.run_once().tasks
    assert (task.outcome, "does not say" in task.error.message) == (TaskOutcome.REFUSED, True)
    with make_device(server.url, data, history=history) as device:
        assert device.run_once().outcome is Outcome.CONTRIBUTED
    assert [run.statement for run in history.runs()] == ["", ""]
