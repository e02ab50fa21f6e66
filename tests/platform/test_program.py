"""Federated programs against a real server, with devices that talk to it over HTTP."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import csv
import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform as fcp_demo
from fcp_aggregators.vector import VectorAccumulator
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.client import CallableStore, Client
from fcp_core.plugins import hookimpl
from fcp_core.protocol.protos import client_runner_example_data_pb2, plan_pb2
from fcp_core.protocol.protos.population_eligibility_spec_pb2 import PopulationEligibilitySpec
from fcp_core.protocol.status import Code, StatusError
from fcp_platform.learning import learning_process_computation
from fcp_platform.runtime import LocalRuntime

pytestmark = [pytest.mark.tff, pytest.mark.slow]

POPULATION = "test/population"
COLLECTION = "app:/numbers"
SELECTOR = plan_pb2.ExampleSelector(collection_uri=COLLECTION)
CONFIG = {"retry_min": "50ms", "retry_max": "100ms", "polling_interval": "20ms"}
DATA = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)
MULTIPLE = PopulationEligibilitySpec.TaskInfo.TASK_ASSIGNMENT_MODE_MULTIPLE


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def total(examples: Any) -> Any:
    return examples.reduce(np.int64(0), lambda sum_, x: sum_ + tf.strings.to_number(x, tf.int64))


@tff.tensorflow.computation(np.int64, np.int64)
def add(a: Any, b: Any) -> Any:
    return a + b


@tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
def sum_up(state: Any, data: Any) -> Any:
    sum_ = tff.federated_sum(tff.federated_map(total, data))
    return tff.federated_map(add, (state, sum_)), collections.OrderedDict(sum=sum_)


@tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
def greatest(state: Any, data: Any) -> Any:
    return state, tff.federated_max(tff.federated_map(total, data))


def source(**kwargs: Any) -> Any:
    return fcp_demo.FederatedDataSource(POPULATION, SELECTOR, **kwargs)


class Progress:
    """Waits for events of the server."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: list[Any] = []

    @hookimpl
    def fcp_event(self, event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, name: str, count: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.count(name) >= count, 60)

    def count(self, name: str) -> int:
        return sum(type(event).__name__ == name for event in self.events)


@contextlib.contextmanager
def serving(**kwargs: Any) -> Iterator[Any]:
    """A context that serves, and is TFF's default; options of its server are among *kwargs*."""
    names = [
        field.name for field in dataclasses.fields(fcp_demo.LocalServer) if field.name in kwargs
    ]
    options = {"config": CONFIG, **{name: kwargs.pop(name) for name in names}}
    server = fcp_demo.LocalServer(**options)
    with fcp_demo.FederatedContext(POPULATION, server, **kwargs) as context:
        previous = tff.framework.get_context_stack().current
        tff.framework.set_default_context(context)
        try:
            yield context
        finally:
            tff.framework.set_default_context(previous)


@contextlib.contextmanager
def devices(context: Any, data: Sequence[Callable[[str], list[bytes]]]) -> Iterator[None]:
    """Devices on threads; each holds what its function returns for a collection."""
    done = threading.Event()

    def live(client: Client) -> None:
        while not done.is_set():
            result = client.run_once()
            done.wait(min(result.retry_after, 0.1))

    clients = [
        Client(
            context.server_url,
            POPULATION,
            stores=CallableStore(lambda selector, held=held: held(selector.collection_uri)),
        )
        for held in data
    ]
    threads = [threading.Thread(target=live, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for client in clients:
            client.interrupt()
        for thread in threads:
            thread.join()


def holding(*numbers: int) -> list[Callable[[str], list[bytes]]]:
    return [lambda uri, number=number: [str(number).encode()] for number in numbers]


def test_reference_program_with_client_processes(tmp_path: Path) -> None:
    """The documentation's program: a sum over two rounds, by processes of the command line."""
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    iterator = source().iterator()

    async def program() -> list[tuple[int, int]]:
        state: Any = np.int64(5)
        seen = []
        for _ in range(2):
            state, metrics = computation(state, iterator.select(2))
            seen.append((await state.get_value(), await metrics["sum"].get_value()))
        return seen

    with serving() as context, contextlib.ExitStack() as stack:
        for number in (1, 20):
            path = tmp_path / f"examples-{number}"
            message = client_runner_example_data_pb2.ClientRunnerExampleData()
            examples = message.examples_by_collection_uri[COLLECTION].examples
            examples.extend([str(number).encode(), b"300"])
            path.write_bytes(message.SerializeToString())
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "fcp_core", "client"),
                    f"--server=http://localhost:{context.server_port}",
                    f"--population={POPULATION}",
                    f"--example-data-path={path}",
                    "--num-rounds=-1",
                    "--sleep-after-round-secs=0.1",
                ],
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        seen = asyncio.run(program())
    # A device may contribute twice to a round, as in the reference.
    for before, (state, sum_) in zip([5, seen[0][0]], seen, strict=True):
        assert state == before + sum_
        assert sum_ in (602, 621, 640)


def test_a_program_whose_plans_lie_in_the_assignments() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    sent = set()

    class Watcher:
        @hookimpl
        def fcp_check_task(self, task: Any) -> None:
            sent.add(task.resources)

    async def program() -> int:
        state, _metrics = computation(np.int64(0), source().iterator().select(2))
        return await state.get_value()

    with (
        serving(resources="inline", plugins=[Watcher()]) as context,
        # One of them may be quick enough to contribute twice.
        devices(context, holding(7, 7)),
    ):
        assert asyncio.run(program()) == 14
    assert sent == {"inline"}


def test_a_program_whose_server_has_two_processes() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program() -> list[int]:
        state: Any = np.int64(0)
        iterator = source().iterator()
        for _ in range(2):
            state, _metrics = computation(state, iterator.select(4))
        return [await state.get_value()]

    # The observer is this process's alone; what all would need cannot be an object of the program.
    with (
        serving(processes=2, plugins=[progress]) as context,
        devices(context, holding(7, 7, 7, 7)),
    ):
        assert asyncio.run(program()) == [56]
    assert progress.count("Contributed") == 8


def test_multiple_tasks_at_once_and_rounds_of_one_name() -> None:
    single = fcp_demo.FederatedComputation(sum_up, name="single")
    first = fcp_demo.FederatedComputation(sum_up, name="first")
    second = fcp_demo.FederatedComputation(greatest, name="second")
    several = source(task_assignment_mode=MULTIPLE).iterator()
    one_by_one = source().iterator()

    async def program() -> list[Any]:
        zero = np.int64(0)
        rounds = [
            first(zero, several.select(3)),
            second(zero, several.select(3)),
            # The second round of a name starts from the first one's state without waiting for it.
            one := single(zero, one_by_one.select(2)),
            single(one[0], one_by_one.select(2)),
        ]
        return await tff.program.materialize_value(rounds)

    with serving() as context, devices(context, holding(7, 7, 7)):
        (_, a), (_, b), (c, _), (d, _) = asyncio.run(program())
    assert (a["sum"], b, c, d) == (21, 7, 14, 28)


def test_round_in_which_every_client_fails() -> None:
    def fail(uri: str) -> list[bytes]:
        raise StatusError(Code.INVALID_ARGUMENT, f"no collection {uri}")

    computation = fcp_demo.FederatedComputation(sum_up, name="sum")

    async def program() -> None:
        state, _ = computation(0, source().iterator().select(2))
        await state.get_value()

    progress = Progress()
    with (
        serving(deadline=600.0, plugins=[progress]) as context,
        devices(context, [fail, fail]),
        pytest.raises(
            fcp_demo.AggregationFailedError, match=r"^Aggregation failed\. sum: "
        ) as error,
    ):
        asyncio.run(program())
    # The program hears of it long before the deadline, and why.
    assert error.value.code is Code.INTERNAL
    assert "its first 10 devices all failed alike (computation INTERNAL" in str(error.value)
    assert progress.count("Dropped") >= 10


def test_minimum_fraction_is_enough_at_the_deadline() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program() -> Any:
        state, _ = computation(0, source().iterator().select(1000))
        return await state.get_value()

    with (
        serving(deadline=5.0, minimum_fraction=0.001, plugins=[progress]) as context,
        devices(context, holding(3)),
    ):
        assert asyncio.run(program()) == 3 * progress.count("Contributed")


def test_program_that_ends_cancels_the_round() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program() -> None:
        state, _ = computation(0, source().iterator().select(1))
        waiting = asyncio.ensure_future(state.get_value())
        await asyncio.to_thread(progress.wait_for, "TaskOpened")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with serving(plugins=[progress]):
        asyncio.run(program())
        progress.wait_for("TaskClosed")
    assert [e.code for e in progress.events if type(e).__name__ == "TaskClosed"] == [Code.CANCELLED]


def test_who_stops_waiting_does_not_end_the_round() -> None:
    """Neither one that runs out of time, nor one of several, nor a round that waits for it."""
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program(context: Any) -> list[int]:
        state, metrics = computation(0, source().iterator().select(1))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(state.get_value(), 0)
        waiting = [asyncio.ensure_future(metrics["sum"].get_value()) for _ in range(3)]
        await asyncio.to_thread(progress.wait_for, "TaskOpened")
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        with devices(context, holding(3)):
            return [*await asyncio.gather(*waiting[1:]), await state.get_value()]

    with serving(plugins=[progress]) as context:
        assert asyncio.run(program(context)) == [3, 3, 3]


def test_aggregate_on_the_server() -> None:
    @tff.tensorflow.computation(np.int64, np.int64)
    def longest(a: Any, b: Any) -> Any:
        return tf.maximum(a, b)

    @tff.tensorflow.computation(np.int64)
    def report(a: Any) -> Any:
        return tf.strings.join(["at most ", tf.strings.as_string(a)])

    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def comp(state: Any, data: Any) -> Any:
        sums = tff.federated_map(total, data)
        return state, tff.federated_aggregate(sums, np.int64(0), longest, longest, report)

    computation = fcp_demo.FederatedComputation(comp, name="aggregate")

    async def program() -> Any:
        _, metrics = computation(0, source().iterator().select(3))
        return await metrics.get_value()

    with serving() as context, devices(context, holding(8, 8, 8)):
        assert asyncio.run(program()) == b"at most 8"


class Product(VectorAccumulator):
    """The product of what devices send: TFF has no such intrinsic."""

    def identity(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.ones(shape, dtype)

    def combine(self, vector: Any, value: Any) -> None:
        vector *= value


class Multiplies:
    @hookimpl
    def fcp_register_aggregators(self) -> list[AggregatorFactory]:
        def load(intrinsic: Any, options: Any, data: bytes) -> Product:
            return Product.load(intrinsic, data, options)

        return [AggregatorFactory("product", frozenset({"test:product"}), "", Product, load)]


def test_an_aggregator_with_a_uri_of_its_own() -> None:
    computation = fcp_demo.FederatedComputation(greatest, name="product")

    async def program() -> Any:
        _, metrics = computation(np.int64(0), source().iterator().select(3))
        return await tff.program.materialize_value(metrics)

    with (
        serving(
            plugins=[Multiplies()],
            uris={"federated_max": "test:product"},
            aggregators={"test:product": "product"},
        ) as context,
        devices(context, holding(7, 7, 7)),
    ):
        assert asyncio.run(program()) == 343
    # A server that has none refuses the round in words.
    with (
        serving(uris={"federated_max": "test:product"}),
        pytest.raises(fcp_demo.AggregationFailedError, match="test:product"),
    ):
        asyncio.run(program())


@pytest.mark.parametrize(
    ("uris", "words"),
    [
        ({"federated_secure_sum": "mine"}, "federated_secure_sum' is none of federated_max"),
        ({"federated_map": "mine"}, "federated_map' is none of"),
        ({"federated_sum": "federated_mean"}, "is named by 'aggregators'"),
        ({"federated_sum": ""}, "must be the URI"),
    ],
)
def test_uris_that_no_aggregator_of_ones_own_can_have(uris: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fcp_demo.FederatedContext(POPULATION, uris=uris)


def test_uris_do_not_take_noise_away() -> None:
    with pytest.raises(ValueError, match="the server's noise"):
        fcp_demo.FederatedContext(POPULATION, uris={"federated_sum": "mine"}, dp="server")


def test_stopped_context_fails_its_rounds() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program() -> None:
        with serving(plugins=[progress]):
            state, _ = computation(0, source().iterator().select(1))
            await asyncio.to_thread(progress.wait_for, "TaskOpened")
        with pytest.raises(fcp_demo.AggregationFailedError):
            await state.get_value()

    asyncio.run(program())


def test_secure_sums_only_where_the_operator_allows() -> None:
    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def secure(state: Any, data: Any) -> Any:
        return state, tff.federated_secure_sum_bitwidth(tff.federated_map(total, data), 10)

    computation = fcp_demo.FederatedComputation(secure, name="secure")

    async def program() -> Any:
        _, sum_ = computation(0, source().iterator().select(2))
        return await sum_.get_value()

    with (
        serving(),
        pytest.raises(
            fcp_demo.AggregationFailedError,
            match=r"allow_unprotected = true in \[fcp:aggregator.federated_secure_sum_bitwidth\]",
        ) as error,
    ):
        asyncio.run(program())
    assert error.value.code is Code.FAILED_PRECONDITION
    allowed = {**CONFIG, "aggregator.federated_secure_sum_bitwidth.allow_unprotected": True}
    with serving(config=allowed) as context, devices(context, holding(4, 4)):
        assert asyncio.run(program()) == 8


def test_select_serves_slices() -> None:
    """Devices get the slices of their keys, in their order, repeated ones too."""
    value_type = collections.OrderedDict(
        table=tff.TensorType(np.float32, [6, 2]), words=tff.TensorType(np.str_, [6])
    )

    @tff.tensorflow.computation(value_type, np.int32)
    def choose(value: Any, key: Any) -> Any:
        row = tf.gather(value["table"], key)
        return collections.OrderedDict(
            row=row, word=tf.gather(value["words"], key), big=tf.cast(key, tf.uint64)
        )

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def client_keys(examples: Any) -> Any:
        first = examples.take(1).reduce("", lambda _, x: x)
        number = tf.strings.to_number(first, tf.int32)
        return tf.ensure_shape(tf.stack([number, 5, number]), [3])

    @tff.tensorflow.computation(tff.SequenceType(choose.type_signature.result))
    def work(slices: Any) -> Any:
        def step(state: Any, one: Any) -> Any:
            weight = tf.cast(one["big"], tf.float32) + 1
            total = state["total"] + weight * one["row"] * state["factor"]
            length = state["length"] + tf.strings.length(one["word"])
            return {"total": total, "factor": state["factor"] * 10, "length": length}

        start = {"total": tf.zeros([2]), "factor": tf.constant(1.0), "length": tf.constant(0)}
        end = slices.reduce(start, step)
        return end["total"], end["length"]

    @tff.federated_computation(tff.FederatedType(value_type, tff.SERVER), DATA)
    def comp(state: Any, data: Any) -> Any:
        keys = tff.federated_map(client_keys, data)
        # A bound: there are no slices for the last three, and nobody asks for them.
        max_key = tff.federated_value(8, tff.SERVER)
        slices = tff.federated_select(keys, max_key, state, choose)
        return state, tff.federated_sum(tff.federated_map(work, slices))

    computation = fcp_demo.FederatedComputation(comp, name="select")
    # What all devices download is the name of the slices alone.
    assert [leaf.type.dtype.type for leaf in computation.lowered.broadcast] == [np.str_]
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    words = np.array([b"a" * number for number in range(6)], object)

    async def program() -> Any:
        state = collections.OrderedDict(table=table, words=words)
        _, metrics = computation(state, source().iterator().select(4))
        return await tff.program.materialize_value(metrics)

    with serving() as context, devices(context, holding(2, 2)):
        total, length = asyncio.run(program())
    np.testing.assert_allclose(total, 4 * (303 * table[2] + 60 * table[5]))
    assert length == 4 * (2 + 5 + 2)


def test_release_managers_and_program_state(tmp_path: Path) -> None:
    """References are released, saved and loaded by TFF's own managers; a program resumes."""
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    saved = tff.program.FileProgramStateManager(tmp_path / "state", keep_total=2)
    releases = [
        tff.program.CSVFileReleaseManager(
            tmp_path / "metrics.csv",
            save_mode=tff.program.CSVSaveMode.WRITE,
        ),
        tff.program.TensorBoardReleaseManager(tmp_path / "board"),
        tff.program.LoggingReleaseManager(),
    ]

    async def program(rounds: int) -> Any:
        state, version = await saved.load_latest(np.int64(0))
        if state is None:
            state, version = np.int64(0), 0
        iterator = source().iterator()
        for number in range(version + 1, version + 1 + rounds):
            state, metrics = computation(state, iterator.select(2))
            for manager in releases:
                await manager.release(metrics, key=number)
            await saved.save(state, number)
        return await tff.program.materialize_value(state)

    with serving() as context, devices(context, holding(4, 4)):
        assert asyncio.run(program(2)) == 16
        assert asyncio.run(program(1)) == 24
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["key"], row["sum"]) for row in rows] == [("1", "8"), ("2", "8"), ("3", "8")]
    assert list((tmp_path / "board").iterdir())


def test_federated_averaging_with_evaluation_and_resumption(tmp_path: Path) -> None:
    """Training and evaluation of a model by a program that ends and goes on from its state."""
    labels, features = 3, 4

    def build_keras_model() -> Any:
        layers = [
            tf.keras.layers.InputLayer(input_shape=(features,)),
            tf.keras.layers.Dense(labels),
        ]
        return tf.keras.Sequential(layers)

    model = tff.learning.models.functional_model_from_keras(
        build_keras_model,
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        input_spec=(tf.TensorSpec([None, features]), tf.TensorSpec([None], tf.int64)),
        metrics_constructor=collections.OrderedDict(
            accuracy=tf.keras.metrics.SparseCategoricalAccuracy
        ),
    )

    def parse_examples(examples: Any) -> Any:
        def parse(batch: Any) -> Any:
            numbers = tf.io.decode_csv(batch, [[0.0]] * features + [[0]])
            return tf.stack(numbers[:-1], axis=1), tf.cast(numbers[-1], tf.int64)

        return examples.repeat(3).batch(8).map(parse)

    def examples(number: int) -> list[bytes]:
        rng = np.random.default_rng(number)
        rows = rng.normal(size=(40, features))
        return [",".join(map(str, [*row, np.argmax(row[:labels])])).encode() for row in rows]

    training = tff.learning.algorithms.build_weighted_fed_avg(
        model, client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.3)
    )
    evaluation = tff.learning.algorithms.build_fed_eval(model)
    train = fcp_demo.FederatedComputation(
        learning_process_computation(training, parse_examples), name="train"
    )
    evaluate = fcp_demo.FederatedComputation(
        learning_process_computation(evaluation, parse_examples), name="evaluate"
    )
    saved = tff.program.FileProgramStateManager(tmp_path / "state")

    began: list[Any] = []
    ended: list[Any] = []

    async def weights_of(state: Any) -> Any:
        state = await tff.program.materialize_value(state)
        return await tff.program.materialize_value(training.get_model_weights(state).trainable)

    async def program(rounds: range) -> list[float]:
        # What is not a FederatedComputation runs in the base context.
        eval_state = evaluation.initialize()
        initial_state = await tff.program.materialize_value(training.initialize())
        state, version = await saved.load_latest(initial_state)
        assert version == rounds[0]
        state = initial_state if state is None else state
        began.append(await weights_of(state))
        accuracies = []
        for number in rounds:
            state, _ = train(state, source().iterator().select(3))
            await saved.save(state, number + 1)
            weights = training.get_model_weights(state)
            eval_state = evaluation.set_model_weights(eval_state, weights)
            _, metrics = evaluate(eval_state, source().iterator().select(3))
            metrics = await tff.program.materialize_value(metrics)
            current = metrics["client_work"]["eval"]["current_round_metrics"]
            accuracies.append(float(current["accuracy"]))
        ended.append(await weights_of(state))
        return accuracies

    data = [lambda uri, number=number: examples(number) for number in range(3)]
    with (
        LocalRuntime() as runtime,
        serving(base_context=runtime.federated_context) as context,
        devices(context, data),
    ):
        accuracies = asyncio.run(program(range(2)))
        accuracies += asyncio.run(program(range(2, 4)))
    # The second program began where the first ended, to the bit; how well it learns is random.
    for initial, resumed, left in zip(began[0], began[1], ended[0], strict=True):
        np.testing.assert_array_equal(resumed, left)
        assert not np.array_equal(initial, left)
    assert accuracies[-1] > 0.8


def test_tls(certificates: Path) -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")

    async def program() -> Any:
        state, _ = computation(0, source().iterator().select(1))
        return await state.get_value()

    with serving(certfile=certificates / "server.pem") as context:
        assert context.server_url.startswith("https://localhost:")
        client = Client(
            context.server_url,
            POPULATION,
            stores=CallableStore(lambda selector: [b"11"]),
            ca_file=str(certificates / "authority.pem"),
        )
        done = threading.Event()

        def live() -> None:
            while not done.is_set():
                client.run_once()
                done.wait(0.05)

        thread = threading.Thread(target=live)
        thread.start()
        try:
            assert asyncio.run(program()) == 11
        finally:
            done.set()
            client.interrupt()
            thread.join()


def test_computations_without_a_new_state_or_any() -> None:
    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def evaluate(state: Any, data: Any) -> Any:
        values = tff.federated_map(add, (tff.federated_map(total, data), broadcast(state)))
        return tff.federated_sum(values)

    @tff.federated_computation(DATA)
    def count(data: Any) -> Any:
        sums = tff.federated_map(total, data)
        return collections.OrderedDict(all=tff.federated_sum(sums), most=tff.federated_max(sums))

    evaluation = fcp_demo.FederatedComputation(evaluate, name="evaluate")
    stateless = fcp_demo.FederatedComputation(count, name="count")

    async def program() -> list[Any]:
        data = source().iterator().select(2)
        return await tff.program.materialize_value([evaluation(5, data), stateless(data)])

    with serving() as context, devices(context, holding(7, 7)):
        assert asyncio.run(program()) == [24, collections.OrderedDict(all=14, most=7)]


def test_a_computation_is_simulated_in_a_context_of_tff() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    with LocalRuntime():
        state, metrics = computation(data=[["1", "2"], ["4"]], state=5)
    assert (state, metrics["sum"]) == (12, 7)


def test_faults_of_the_servers_own_graphs() -> None:
    """Before devices are asked, and after they have worked: in words, not TensorFlow's."""

    @tff.tensorflow.computation(np.int64)
    def positive(value: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_positive(value, "is it positive?")]):
            return tf.identity(value)

    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def comp(state: Any, data: Any) -> Any:
        sent = broadcast(tff.federated_map(positive, state))
        sums = tff.federated_sum(tff.federated_map(add, (tff.federated_map(total, data), sent)))
        return state, tff.federated_map(positive, sums)

    computation = fcp_demo.FederatedComputation(comp, name="positive")

    async def program(state: int) -> None:
        _, metrics = computation(state, source().iterator().select(1))
        await metrics.get_value()

    where = {0: "before the broadcast", 3: "with the aggregate"}
    with serving() as context, devices(context, holding(-7)):
        for state, part in where.items():
            with pytest.raises(fcp_demo.AggregationFailedError) as error:
                asyncio.run(program(state))
            assert error.value.code is Code.INVALID_ARGUMENT
            assert str(error.value).startswith(
                f"Aggregation failed. positive: what the server does {part} failed: assertion "
                "failed: [is it positive?"
            )
            assert "\n" not in str(error.value)


def broadcast(value: Any) -> Any:
    return tff.federated_broadcast(value)


def test_tffs_own_training_program_saves_its_state(tmp_path: Path) -> None:
    """It keeps the data source's iterator beside the model, and goes on from both."""
    x = tf.TensorSpec([None, 1], tf.float32)

    def model() -> Any:
        return tff.learning.models.from_keras_model(
            tf.keras.Sequential([tf.keras.layers.InputLayer((1,)), tf.keras.layers.Dense(1)]),
            loss=tf.keras.losses.MeanSquaredError(),
            input_spec=(x, x),
        )

    def parse(texts: Any) -> Any:
        def pair(text: Any) -> Any:
            number = tf.strings.to_number(text)[:, tf.newaxis]
            return number, 2 * number

        return texts.batch(4).map(pair)

    process = tff.learning.algorithms.build_weighted_fed_avg(
        model, client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.01)
    )
    computation = learning_process_computation(process, parse)
    training = tff.learning.templates.LearningProcess(
        process.initialize,
        fcp_demo.FederatedComputation(computation, name="train"),
        process.get_model_weights,
        process.set_model_weights,
    )
    saved = tff.program.FileProgramStateManager(tmp_path)
    progress = Progress()

    async def program(rounds: int) -> None:
        await tff.learning.programs.train_model(
            train_process=training,
            train_data_source=source(),
            train_per_round_clients=2,
            train_total_rounds=rounds,
            program_state_manager=saved,
            model_output_manager=tff.program.MemoryReleaseManager(),
            evaluation_manager=None,
            evaluation_periodicity=1,
        )

    with (
        LocalRuntime() as runtime,
        serving(base_context=runtime.federated_context, plugins=[progress]) as context,
        devices(context, holding(1, 2)),
    ):
        asyncio.run(program(1))
        asyncio.run(program(2))
        assert asyncio.run(saved.get_versions()) == [0, 1, 2]
    # The second run has not done the first round again.
    assert progress.count("TaskClosed") == 2
