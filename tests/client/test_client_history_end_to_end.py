"""The policies that rest on a device's history: a real server, a real device, its SQLite file."""

from __future__ import annotations

import pytest

from fcp_core.client import CallableStore, Client, History, make_query_result
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.machine import ManualClock
from fcp_core.server import Server, ServerThread
from fcp_core.tasks.taskfile import parse_task

TASK = """
[task]
population = "phones"
name = "{name}"
goal_count = {goal}
[[query]]
collection_uri = "app:/launches"
[query.vectors]
launches = "int64"
[result]
sum = ["launches"]
{more}
"""
HOUR = 3600.0


class Device:
    """One device that forgets everything between sessions but its history file."""

    def __init__(self, url, path):
        self.url = url
        self.path = path
        self.clock = ManualClock()

    def session(self):
        """Go through a session; return the name of the task, or how else it ended."""
        store = CallableStore(
            lambda selector: (), query=lambda query: make_query_result({"launches": [1]})
        )
        history = History(self.path, now=self.clock.now)
        with Client(
            self.url,
            "phones",
            stores={"app:/launches": store},
            history=history,
            clock=self.clock,
        ) as client:
            result = client.run_once()
        history.close()
        done = result.outcome.name == "CONTRIBUTED"
        return result.tasks[0].task_name if done else result.outcome.name


@pytest.fixture
def running(tmp_path):
    """Return a way to start a server: its thread, a device, and a way to submit tasks."""
    threads = []

    def start(**options):
        overrides = {key.replace("__", "."): value for key, value in options.items()}
        plugins = Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path)
        thread = ServerThread(Server(plugins, populations=["phones"]))
        threads.append(thread)
        thread.start()

        def submit(name, goal=99, more=""):
            spec = parse_task(TASK.format(name=name, goal=goal, more=more)).to_spec()
            tasks = thread.server.services.tasks
            return thread.run(tasks.submit(spec)).result()

        return Device(thread.server.url, tmp_path / "history.sqlite"), submit

    yield start
    for thread in threads:
        thread.stop()


def test_sampling_without_replacement_by_group(running):
    device, submit = running(
        eligibility="sampling_without_replacement",
        eligibility__sampling_without_replacement__min_period="1h",
        eligibility__sampling_without_replacement__group_regex="train/.*",
    )
    submit("train/a")
    submit("train/b")
    assert device.session() == "REJECTED"  # the history is too young to tell
    device.clock.advance(HOUR)
    assert device.session() == "train/a"
    assert device.session() == "REJECTED"
    device.clock.advance(HOUR - 1)
    assert device.session() == "REJECTED"
    device.clock.advance(1)
    assert device.session() == "train/b"  # tasks take turns


@pytest.mark.parametrize(("index", "outcome"), [(5, "REJECTED"), (7, "REJECTED"), (8, "train")])
def test_minimum_separation_by_the_tasks_own_index(running, index, outcome):
    device, submit = running()
    policy = '[[eligibility]]\npolicy = "minimum_separation"\nminimum_separation = 2\n'
    # With a goal of one, the first round is over when the device has contributed.
    submit("train", 1, f"{policy}current_index = 5")
    assert device.session() == "train"
    submit("train", 1, f"{policy}current_index = {index}")
    assert device.session() == outcome
    submit("anything", 1)
    assert device.session() == "anything"
