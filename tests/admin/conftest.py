"""Servers with an admin API, and devices that answer queries, for the tests of this folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client, make_query_result
from fcp_core.plugins.manager import Plugins
from fcp_core.server import Server, ServerThread
from fcp_core.tasks.taskfile import parse_task
from tests.admin.api_calls import Api

TOKEN = "a-token-of-enough-characters"
POPULATION = "phones/all"
TASK = """
[task]
population = "phones/all"
name = "launches"
goal_count = 2
[[query]]
collection_uri = "app:/launches"
[query.vectors]
app = "string"
launches = "int64"
[result]
group_by = ["app"]
sum = ["launches"]
"""


@pytest.fixture
def make_spec():
    def make(goal_count=2, **changes):
        text = TASK.replace("goal_count = 2", f"goal_count = {goal_count}")
        for old, new in changes.items():
            text = text.replace(f'{old} = "', f'{old} = "{new}')
        return parse_task(text).to_spec()

    make.text = TASK
    return make


@pytest.fixture
def contribute():
    """Be a device once; return the outcome's name."""

    def contribute(url, **launches):
        vectors = {
            "app": list(launches),
            "launches": np.array(list(launches.values()), np.int64),
        }
        store = CallableStore(lambda selector: (), query=lambda query: make_query_result(vectors))
        with Client(url, POPULATION, stores={"app:/launches": store}) as client:
            return client.run_once().outcome.name

    return contribute


@pytest.fixture
def make_server(tmp_path):
    """Start a server on a thread; its admin token is ``make_server.token``."""
    running = []

    def make(token=TOKEN, **overrides):
        options = {key.replace("__", "."): value for key, value in overrides.items()}
        if token is not None:
            options["admin.token"] = token
        plugins = Plugins.load(environ={}, overrides=options, working_folder=tmp_path)
        thread = ServerThread(Server(plugins))
        running.append(thread)
        thread.start()
        return thread

    make.token = TOKEN
    yield make
    for thread in running:
        thread.stop()


@pytest.fixture
def admin(make_server):
    """A client of a server's admin API."""
    thread = make_server()
    with AdminClient(thread.server.url, TOKEN, patience=0) as client:
        yield client


class Process:
    """``fcp serve`` as a process; standard error is its log."""

    def __init__(self, folder: Path, port: int, *arguments: str) -> None:
        self.log = folder / f"log-{port}-{len(list(folder.glob('log-*')))}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fcp_core", "serve", "--port", str(port), *arguments],
                cwd=folder,
                env={**os.environ, "FCP_ADMIN__TOKEN": TOKEN},
                stderr=log,
                stdout=log,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@pytest.fixture
def serve(tmp_path):
    processes = []

    def serve(port, *arguments):
        process = Process(tmp_path, port, *arguments)
        processes.append(process)
        return process

    yield serve
    for process in processes:
        process.kill()


@pytest.fixture
def port_of_its_own():
    """A port that was free a moment ago, for a process that is told its port."""
    with socket.create_server(("localhost", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def thread(make_server):
    """A server with an admin API."""
    return make_server()


@pytest.fixture
def api(thread, make_server):
    """Calls it, and holds each answer to the description."""
    api = Api(thread.server.url, make_server.token)
    yield api
    api.pool.clear()
