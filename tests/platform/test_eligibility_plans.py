"""Eligibility tasks of a population, set by programs here and elsewhere, and weighed by devices."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf

import fcp_platform
from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client
from fcp_core.client.builtin_executors import default_executors
from fcp_core.client.eligibility_plan import EligibilityPlan
from fcp_core.client.executors import SliceSource
from fcp_core.client.interruption import Interruption
from fcp_core.protocol.protos import plan_pb2, tensorflow_struct_pb2
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.eligibility import EligibilityTask, PolicyChoice
from fcp_platform.eligibility import eligibility_task

pytestmark = [pytest.mark.tff, pytest.mark.slow]

POPULATION = "test/eligible"
TOKEN = "a-token-that-is-long-enough"
NUMBERS = plan_pb2.ExampleSelector(collection_uri="app:/numbers")
WORDS = plan_pb2.ExampleSelector(collection_uri="app:/words")


VARIABLE = tf.Variable(1.0)


def length(examples):
    return examples.reduce(tf.constant(0, tf.int64), lambda count, _: count + 1)


def weigh(task, **collections):
    """Run a task's plan as a device with these examples does."""
    store = CallableStore(
        lambda selector: collections[selector.collection_uri.removeprefix("app:/")]
    )
    plan = EligibilityPlan(
        task.plan,
        task.checkpoint,
        default_executors(),
        store,
        SliceSource(None, ""),
        Interruption(),
    )
    return plan.weights()


def test_a_function_weighs_all_tasks_alike():
    task = eligibility_task(
        lambda examples: tf.cast(length(examples) >= 2, tf.float32), NUMBERS, ["a", "b"]
    )
    assert task.task_names == ("a", "b")
    assert weigh(task, numbers=[b"1"]) == {"a": 0.0, "b": 0.0}
    assert weigh(task, numbers=[b"1", b"2"]) == {"a": 1.0, "b": 1.0}


def test_a_function_weighs_each_task_by_data_and_parameters():
    def by_data(data, parameters):
        total = data["numbers"].reduce(
            tf.constant(0.0), lambda sum_, x: sum_ + tf.strings.to_number(x)
        )
        return {
            "sums": total * parameters["scale"][1],
            "words": length(data["words"]) > parameters["least"],
        }

    selector = {"words": WORDS, "numbers": NUMBERS}
    parameters = {"least": np.int64(1), "scale": np.array([0.0, 0.5], np.float32)}
    task = eligibility_task(by_data, selector, ["words", "sums"], parameters=parameters)
    found = weigh(task, words=[b"x", b"y"], numbers=[b"1", b"2"])
    assert found == {"words": 1.0, "sums": 1.5}


def test_a_function_may_check_compare_and_use_what_is_around_it():
    wanted = tf.constant([b"a", b"b"])

    def same(examples):
        found = tf.reduce_any(next(iter(examples.batch(1)))[0] == wanted)
        tf.debugging.assert_greater(length(examples), np.int64(0), "there is nothing")
        if found:
            weight = 1.0
        else:
            weight = 0.5
        return weight

    task = eligibility_task(same, NUMBERS, ["a"])
    assert weigh(task, numbers=[b"b"]) == {"a": 1.0}
    assert weigh(task, numbers=[b"c"]) == {"a": 0.5}
    with pytest.raises(StatusError):
        weigh(task, numbers=[])


def test_a_plan_says_what_published_clients_check():
    """They compare the inputs that they feed and the output that they fetch with these lists."""
    task = eligibility_task(lambda examples: 1.0, NUMBERS, ["a"])
    plan = plan_pb2.ClientOnlyPlan.FromString(task.plan)
    spec, router = plan.phase.tensorflow_spec, plan.phase.federated_compute_eligibility

    def named(tensors):
        return [tensorflow_struct_pb2.TensorSpecProto.FromString(tensor).name for tensor in tensors]

    assert named(spec.input_tensor_specs) == [router.input_filepath_tensor_name]
    assert named(spec.output_tensor_specs) == [router.task_eligibility_info_tensor_name]
    assert task.checkpoint


@pytest.mark.parametrize(
    ("function", "names", "message"),
    [
        (lambda examples: {"b": 1.0}, ["a"], r"weighs \['b'\].*about \['a'\]"),
        (lambda examples: 1.0, [], "weighs"),
        (lambda examples: [1.0, 2.0], ["a"], r"weight of a must be a scalar, not of shape \(2,\)"),
        (lambda examples: VARIABLE * 1.0, ["a"], "has no variables"),
    ],
)
def test_a_function_that_no_device_could_run_is_refused(function, names, message):
    with pytest.raises(ValueError, match=message):
        eligibility_task(function, NUMBERS, names)


def make_task():
    return eligibility_task(
        lambda examples: tf.cast(length(examples) >= 2, tf.float32),
        NUMBERS,
        ["sum"],
        policies=[PolicyChoice("minimum_separation", {"current_index": 9}, ["sum"])],
    )


def test_a_context_sets_it_before_and_while_it_serves():
    wrong = EligibilityTask(policies=[PolicyChoice("minimum_seperation")])
    with (
        fcp_platform.FederatedContext(POPULATION) as context,
        pytest.raises(StatusError, match="Did you mean 'minimum_separation'"),
    ):
        context.set_eligibility_task(wrong)
    context = fcp_platform.FederatedContext(
        POPULATION, fcp_platform.LocalServer(config={"admin.token": TOKEN})
    )
    context.set_eligibility_task(make_task())
    with context, AdminClient(context.server_url, TOKEN) as admin:
        (found,) = admin.eligibility_tasks().eligibility_tasks
        assert (found.population, found.task_names) == (POPULATION, ["sum"])
        for _ in range(2):
            context.set_eligibility_task(None)
            assert admin.eligibility_tasks().eligibility_tasks == []


@pytest.fixture
def served(tmp_path):
    """``fcp serve`` as a process; its address."""
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    arguments = ["--port", str(port), "--population", POPULATION]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fcp_core", "serve", *arguments],
            cwd=tmp_path,
            env={**os.environ, "FCP_ADMIN__TOKEN": TOKEN},
            stderr=log,
            stdout=log,
        )
    yield f"http://localhost:{port}/"
    process.kill()
    process.wait()


def test_a_program_elsewhere_says_who_may_take_its_rounds(served):
    """One device of two has data enough for the plan; the server is a process of its own."""
    import tensorflow_federated as tff

    clients = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def total(examples):
        return examples.reduce(
            np.int64(0), lambda sum_, x: sum_ + tf.strings.to_number(x, tf.int64)
        )

    @tff.tensorflow.computation(np.int64, np.int64)
    def add(a, b):
        return a + b

    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), clients)
    def sum_up(state, data):
        sum_ = tff.federated_sum(tff.federated_map(total, data))
        return tff.federated_map(add, (state, sum_)), sum_

    comp = fcp_platform.FederatedComputation(sum_up, name="sum")
    remote = fcp_platform.RemoteServer(served, token=TOKEN)
    context = fcp_platform.FederatedContext(POPULATION, remote)
    admin = AdminClient(served, TOKEN)

    def live(*numbers):
        store = CallableStore(lambda selector: [str(number).encode() for number in numbers])
        stores = {NUMBERS.collection_uri: store}
        with Client(served, POPULATION, stores=stores, history=None) as client:
            return client.run_once().outcome.name

    async def program(running):
        source = fcp_platform.FederatedDataSource(POPULATION, NUMBERS)
        state, _ = running.invoke(comp, [np.int64(5), source.iterator().select(1)])
        value = asyncio.ensure_future(state.get_value())
        while not await asyncio.to_thread(admin.list, POPULATION, "open"):
            await asyncio.sleep(0.05)
        outcomes = [await asyncio.to_thread(live, *numbers) for numbers in ([100], [1, 10])]
        return await value, outcomes

    with admin, context as running:
        task = make_task()
        running.set_eligibility_task(task)
        assert admin.eligibility_task(POPULATION) == task
        # In its place, one without policies: these devices have no history to vouch for them.
        running.set_eligibility_task(
            eligibility_task(
                lambda examples: tf.cast(length(examples) >= 2, tf.float32), NUMBERS, ["sum"]
            )
        )
        result = asyncio.run(asyncio.wait_for(program(running), 60))
    assert result == (16, ["REJECTED", "CONTRIBUTED"])
    with AdminClient(served, TOKEN) as again:
        # The server keeps it when the program has gone, until somebody takes it away.
        assert again.eligibility_task(POPULATION).task_names == ("sum",)
        fcp_platform.FederatedContext(POPULATION, remote).set_eligibility_task(None)
        assert again.eligibility_tasks().eligibility_tasks == []


def test_the_example_finds_who_may_take_part(tmp_path):
    """Its exit status says whether what came of it is the truth."""
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    example = Path(__file__).parents[2] / "examples" / "eligibility" / "run.py"
    done = subprocess.run(
        [sys.executable, str(example), "--folder", str(tmp_path), "--port", str(port)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "keyboards [2, 4, 6, 8] took part" in done.stdout
    assert "minimum_separation for all tasks, minimum_separation = 24" in done.stdout
