"""Federated programs on one ``fcp serve`` that are killed and come back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("tensorflow_federated")

from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client

pytestmark = [pytest.mark.tff, pytest.mark.slow]

TOKEN = "a-token-that-is-long-enough"
COLLECTION = "app:/numbers"
ROUNDS, COHORT = 2, 2
#: How many rounds a long program has, and after how many it is killed.
LONG, KILLED_AFTER = 100, 90

#: Adds up the numbers of its devices; its name, its population and the server are arguments.
COMMON = f"""
import asyncio, sys
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import fcp_platform
from fcp_core.protocol.protos import plan_pb2

name, population, url = sys.argv[1:]

@tff.tensorflow.computation(tff.SequenceType(np.str_))
def total(examples):
    return examples.reduce(np.int64(0), lambda s, x: s + tf.strings.to_number(x, tf.int64))

@tff.tensorflow.computation(np.int64, np.int64)
def add(a, b):
    return a + b

@tff.federated_computation(
    tff.FederatedType(np.int64, tff.SERVER),
    tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS),
)
def sum_up(state, data):
    sum_ = tff.federated_sum(tff.federated_map(total, data))
    return tff.federated_map(add, (state, sum_)), sum_

comp = fcp_platform.FederatedComputation(sum_up, name=name)
selector = plan_pb2.ExampleSelector(collection_uri={COLLECTION!r})
data = fcp_platform.FederatedDataSource(population, selector).iterator()
"""

RUN = f"""
with fcp_platform.FederatedContext(
    population,
    fcp_platform.RemoteServer(url, token={TOKEN!r}, program="program " + name),
    over_selection=1.0,  # each device is there for one contribution
) as context:
    print("sum", asyncio.run(main(context)))
"""

#: Over two rounds.
PROGRAM = f"""{COMMON}
async def main(context):
    state = np.int64(0)
    for _ in range({ROUNDS}):
        state, _ = context.invoke(comp, [state, data.select({COHORT})])
    return await state.get_value()
{RUN}"""

#: Over a hundred rounds of one device each, and goes on where it was killed.
LONG_PROGRAM = f"""{COMMON}
async def main(context):
    saved = tff.program.FileProgramStateManager("state")
    state, done = await saved.load_latest(np.int64(0))
    state = np.int64(0) if state is None else state
    for number in range(done + 1, {LONG} + 1):
        print("round", number, flush=True)
        state, _ = context.invoke(comp, [state, data.select(1)])
        # What is saved is what TFF gives the next round, too.
        state = await state.get_value()
        await saved.save(state, number)
    return state
{RUN}"""


@pytest.fixture
def start(tmp_path):
    """Start Python with arguments; what still runs at the end is killed."""
    running = []

    def start(*arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FCP_")}
        with (tmp_path / f"log-{len(running)}").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=tmp_path,
                env={**environment, "FCP_ADMIN__TOKEN": TOKEN, "TF_CPP_MIN_LOG_LEVEL": "2"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process.log = Path(log.name)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


def contribute(url, population, number):
    """Be a device until it has contributed its number."""
    store = CallableStore(lambda selector: [str(number).encode()])
    with Client(url, population, stores={COLLECTION: store}) as client:
        for result in client.run(num_rounds=10_000):
            if result.outcome.name == "CONTRIBUTED":
                return


def sum_of(process):
    assert process.wait(300) == 0, process.log.read_text()
    return int(process.log.read_text().split("sum ")[1])


def serve_command(port, *populations):
    """Return what starts a server, on which no device is told OK as one too many."""
    options = ("retry_min=20ms", "retry_max=60ms", "polling_interval=20ms", "over_selection=1")
    overrides = [word for option in options for word in ("--set", option)]
    served = [word for population in populations for word in ("--population", population)]
    return ("-m", "fcp_core", *overrides, "serve", "--port", str(port), *served)


def test_programs_share_a_server_and_one_that_is_killed_finds_its_round(
    start, tmp_path, port_of_its_own
):
    url = f"http://localhost:{port_of_its_own}/"
    # There are as many devices as contributions.
    serve = serve_command(port_of_its_own, "test/shared", "test/own")
    server = start(*serve)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    wanted = {"one": "test/shared", "two": "test/shared", "three": "test/own"}
    programs = {n: start(str(program), n, population, url) for n, population in wanted.items()}
    with AdminClient(url, TOKEN, patience=30) as admin, ThreadPoolExecutor(8) as threads:
        while len(admin.list(None, "open")) < len(wanted):
            assert all(process.poll() is None for process in programs.values())
            assert server.poll() is None
            time.sleep(0.05)
        programs["one"].kill()
        programs["one"].wait()
        # Its round goes on without it.
        contribute(url, "test/shared", 1)
        # Nor do the others notice that the server is killed while they wait for their values.
        server.kill()
        server.wait()
        server = start(*serve)
        # A device that finds nobody stays away for a quarter of an hour; the admin client waits.
        admin.list()
        programs["one"] = start(str(program), "one", "test/shared", url)
        devices = [
            threads.submit(contribute, url, population, 1 << bit)
            for population, bits in (("test/shared", range(1, 8)), ("test/own", range(8, 12)))
            for bit in bits
        ]
        sums = {name: sum_of(process) for name, process in programs.items()}
        for device in devices:
            device.result(30)
        # Each contribution is in the result of exactly one program of its population.
        assert sums["one"] | sums["two"] == sums["one"] + sums["two"] == 0xFF
        assert [sums[name].bit_count() for name in wanted] == [ROUNDS * COHORT] * 3
        assert sums["three"] == 0xF00
        assert admin.list() == []
    server.terminate()
    assert server.wait(30) == 0, server.log.read_text()


def test_a_program_that_is_killed_after_round_90_goes_on_at_91(start, tmp_path, port_of_its_own):
    url = f"http://localhost:{port_of_its_own}/"
    server = start(*serve_command(port_of_its_own, "test/long"))
    path = tmp_path / "program.py"
    path.write_text(LONG_PROGRAM)
    program = start(str(path), "long", "test/long", url)
    with AdminClient(url, TOKEN, patience=30) as admin:
        for number in range(1, KILLED_AFTER + 1):
            contribute(url, "test/long", number)
        while f"round {KILLED_AFTER + 1}\n" not in program.log.read_text():
            assert program.poll() is None, program.log.read_text()
            time.sleep(0.05)
        # The next round is submitted, and waits for its device.
        while not (submitted := admin.list(None, "open")):
            assert program.poll() is None, program.log.read_text()
            time.sleep(0.05)
        program.kill()
        program.wait()
        # What the server knows of devices that were turned away may change; the round stays.
        left = admin.list(None, "open")
        assert [task.task_id for task in left] == [task.task_id for task in submitted]
        program = start(str(path), "long", "test/long", url)
        for number in range(KILLED_AFTER + 1, LONG + 1):
            contribute(url, "test/long", number)
        assert sum_of(program) == LONG * (LONG + 1) // 2
        rounds = [line for line in program.log.read_text().splitlines() if "round" in line]
        assert rounds == [f"round {number}" for number in range(KILLED_AFTER + 1, LONG + 1)]
        # Had it submitted that round once more, the first task of it would still wait.
        assert admin.list() == []
    server.terminate()
    assert server.wait(30) == 0, server.log.read_text()
