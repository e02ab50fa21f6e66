"""Federated programs whose rounds run on a server elsewhere."""

from __future__ import annotations

import asyncio
import collections
import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform
from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.protos import plan_pb2
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server import Server, ServerThread
from fcp_core.server.services.tasks import Tasks
from fcp_platform.runners import RemoteRunner

pytestmark = [pytest.mark.tff, pytest.mark.slow]

POPULATION = "test/remote"
COLLECTION = "app:/numbers"
SELECTOR = plan_pb2.ExampleSelector(collection_uri=COLLECTION)
TOKEN = "a-token-that-is-long-enough"
DATA = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)


def make_computation() -> Any:
    """Return a computation as a program that is started again makes it: anew."""

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def total(examples: Any) -> Any:
        return examples.reduce(
            np.int64(0), lambda sum_, x: sum_ + tf.strings.to_number(x, tf.int64)
        )

    @tff.tensorflow.computation(np.int64, np.int64)
    def add(a: Any, b: Any) -> Any:
        return a + b

    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def sum_up(state: Any, data: Any) -> Any:
        sum_ = tff.federated_sum(tff.federated_map(total, data))
        return tff.federated_map(add, (state, sum_)), collections.OrderedDict(sum=sum_)

    return fcp_platform.FederatedComputation(sum_up, name="sum")


@pytest.fixture
def server(tmp_path):
    options = {"retry_min": "50ms", "retry_max": "100ms", "polling_interval": "20ms"}
    plugins = Plugins.load(
        environ={}, overrides={**options, "admin.token": TOKEN}, working_folder=tmp_path
    )
    with ServerThread(Server(plugins, populations=[POPULATION])) as thread:
        yield thread.server


@pytest.fixture
def admin(server):
    with AdminClient(server.url, TOKEN, patience=0) as client:
        yield client


def context(server, **options):
    remote = fcp_platform.RemoteServer(server.url, token=TOKEN, **options)
    # Each device is there for one contribution, and none is to spare.
    return fcp_platform.FederatedContext(POPULATION, remote, over_selection=1.0)


def invoke(running, comp, state, count=2):
    source = fcp_platform.FederatedDataSource(POPULATION, SELECTOR)
    return running.invoke(comp, [state, source.iterator().select(count)])


def devices(server, *numbers, **options):
    """Let a device contribute for each number; return the threads."""

    def live(number):
        store = CallableStore(lambda selector: [str(number).encode()])
        with Client(server.url, POPULATION, stores={COLLECTION: store}, **options) as client:
            for result in client.run(num_rounds=100):
                if result.outcome.name == "CONTRIBUTED":
                    return

    threads = [threading.Thread(target=live, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    return threads


async def until_open(admin):
    """Wait until the server has an open task; return its id."""
    while True:
        tasks = await asyncio.to_thread(admin.list, None, "open")
        if tasks:
            return tasks[0].task_id
        await asyncio.sleep(0.01)


def test_rounds_run_on_the_server_elsewhere(server, admin):
    async def program(running):
        comp = make_computation()
        state, metrics = invoke(running, comp, np.int64(0))
        state, metrics = invoke(running, comp, state)
        return await state.get_value(), (await metrics["sum"].get_value())

    with context(server) as running:
        assert running.server_url == server.url
        assert running.server_port == server.port
        threads = devices(server, 1, 10, 100, 1000)
        state, total = asyncio.run(asyncio.wait_for(program(running), 30))
        for thread in threads:
            thread.join()
    assert state == 1111
    assert total in {1 + 10, 1 + 100, 1 + 1000, 10 + 100, 10 + 1000, 100 + 1000}
    # Nothing is left behind of rounds whose results were fetched.
    assert admin.list() == []


def interrupt(running, admin, at_the_end=lambda: None):
    """Run a program that ends while its round is open; return the round's task."""

    async def program():
        state, _ = invoke(running, make_computation(), np.int64(5))
        waiting = asyncio.ensure_future(state.get_value())
        task = await until_open(admin)
        waiting.cancel()
        for other in asyncio.all_tasks() - {asyncio.current_task()}:
            other.cancel()
        at_the_end()
        return task

    return asyncio.run(asyncio.wait_for(program(), 60))


def interrupted(running, admin, at_the_end=lambda: None):
    """The same, and the program's context is left."""
    with running:
        return interrupt(running, admin, at_the_end)


def test_a_program_that_is_started_again_finds_its_round(server, admin):
    task = interrupted(context(server, program="adder"), admin)
    assert admin.get(task).state == "open"
    (thread,) = devices(server, 1)
    thread.join()
    assert admin.get(task).contributed == 1

    async def again(running):
        state, _ = invoke(running, make_computation(), np.int64(5))
        value = asyncio.ensure_future(state.get_value())
        (thread,) = devices(server, 20)
        try:
            return await value
        finally:
            thread.join()

    with context(server, program="adder") as running:
        assert asyncio.run(asyncio.wait_for(again(running), 30)) == 26
    assert admin.list() == []


def test_a_program_without_a_name_leaves_nothing_open(server, admin):
    task = interrupted(context(server), admin)
    assert admin.wait(task, 20).state == "cancelled"


def test_a_program_that_ends_before_it_knows_its_task_leaves_nothing_open(
    server, admin, monkeypatch
):
    ended, submit = threading.Event(), AdminClient.submit

    def slow(*args, **kwargs):
        task = submit(*args, **kwargs)
        assert ended.wait(60)
        return task

    monkeypatch.setattr(AdminClient, "submit", slow)
    task = interrupted(context(server), admin, ended.set)
    assert admin.wait(task, 60).state == "cancelled"


def test_a_program_that_ends_while_its_own_server_stores_its_task_leaves_nothing_open(monkeypatch):
    ended, submit = threading.Event(), Tasks.submit

    async def slow(*args, **kwargs):
        task = await submit(*args, **kwargs)
        while not ended.is_set():
            await asyncio.sleep(0.01)
        return task

    monkeypatch.setattr(Tasks, "submit", slow)
    local = fcp_platform.LocalServer(config={"admin.token": TOKEN})
    with (
        fcp_platform.FederatedContext(POPULATION, local, over_selection=1.0) as running,
        AdminClient(running.server_url, TOKEN, patience=0) as admin,
    ):
        task = interrupt(running, admin, ended.set)
        assert admin.wait(task, 60).state == "cancelled"


def test_another_program_gets_a_round_of_its_own(server, admin):
    first = interrupted(context(server, program="one"), admin)
    admin.cancel(first)
    second = interrupted(context(server, program="two"), admin)
    assert second != first


def test_rounds_with_slices_are_found_again_too():
    """The key says what is in a round, slices of federated_select among it."""
    runner = RemoteRunner("http://localhost:1/", TOKEN, program="p")

    def key(**slices):
        return runner._key(TaskSpec(POPULATION, "n", b"", b"", 2, slices=slices))

    assert key(a={1: b"x", 2: b"y"}, b={}) == key(b={}, a={2: b"y", 1: b"x"})
    others = [key(), key(a={1: b"x"}), key(a={1: b"y"}), key(a={2: b"x"}), key(b={1: b"x"})]
    assert len(set(others)) == len(others)
    runner.stop()


def test_a_server_that_cannot_be_used_says_so(server):
    make, remote = fcp_platform.FederatedContext, fcp_platform.RemoteServer
    with pytest.raises(UsageError, match="admin token"):
        make(POPULATION, remote(server.url))
    with pytest.raises(UsageError, match="cannot be used"):
        make(POPULATION, remote(server.url, token="wrong-but-long-enough")).__enter__()
    assert TOKEN not in repr(remote(server.url, token=TOKEN))


def test_a_server_is_said_as_one_object():
    with pytest.raises(TypeError, match=r"LocalServer or a RemoteServer, not 'http://x/'"):
        fcp_platform.FederatedContext(POPULATION, server="http://x/")
    with pytest.raises(TypeError, match="token"):
        fcp_platform.FederatedContext(POPULATION, token=TOKEN)


def test_certificates_do_for_the_program_and_its_devices(certificates, tmp_path):
    """A round over mutual TLS: the program shows the operator's, devices show theirs."""
    authority = certificates / "authority.pem"
    options = {"client_ca": authority, "admin.certificate_names": "operator", "retry_max": "50ms"}
    options["retry_min"] = "10ms"
    plugins = Plugins.load(
        environ={},
        overrides={name: str(value) for name, value in options.items()},
        working_folder=tmp_path,
    )

    def make(**options):
        remote = fcp_platform.RemoteServer(thread.server.url, ca_file=authority, **options)
        return fcp_platform.FederatedContext(POPULATION, remote, max_at_work=1)

    served = Server(plugins, populations=[POPULATION], certfile=certificates / "server.pem")
    with ServerThread(served) as thread:

        async def program(running):
            state, _ = invoke(running, make_computation(), np.int64(5))
            return await state.get_value()

        device = {"ca_file": str(authority), "certfile": str(certificates / "device.pem")}
        operator = certificates / "operator.pem"
        with make(certfile=operator) as running:
            threads = devices(thread.server, 10, 100, **device)
            assert asyncio.run(asyncio.wait_for(program(running), 30)) == 115
        for each in threads:
            each.join()
        with pytest.raises(UsageError, match="cannot be used"):
            make(certfile=device["certfile"]).__enter__()
