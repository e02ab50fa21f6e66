"""What the demonstration's program trains, round by round; importing it imports TFF."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.protos import plan_pb2
from fcp_platform import FederatedComputation, FederatedContext, FederatedDataSource, LocalServer
from fcp_platform.demo import data
from fcp_platform.demo.display import Board
from fcp_platform.demo.hosts import Hosts
from fcp_platform.demo.private import Private
from fcp_platform.demo.settings import POPULATION, DemoResult, Settings
from fcp_platform.learning import learning_process_computation
from fcp_platform.runtime import LocalRuntime

_HIDDEN = 64
_LEARNING_RATE = 0.3
_EPOCHS = 5
_BATCH = 10


def network(seed: int) -> tf.keras.Model:
    """Return a fresh 64-64-10 network whose weights follow from *seed*."""
    initializer = functools.partial(tf.keras.initializers.GlorotUniform)
    return tf.keras.Sequential(
        [
            tf.keras.layers.InputLayer([data.PIXELS]),
            tf.keras.layers.Dense(
                _HIDDEN, activation="relu", kernel_initializer=initializer(seed=seed)
            ),
            tf.keras.layers.Dense(data.CLASSES, kernel_initializer=initializer(seed=seed + 1)),
        ]
    )


def learning_process(seed: int, *, secure: bool = False) -> Any:
    """Return weighted federated averaging of the network, as a ``LearningProcess``.

    :param secure: whether updates are summed as secure aggregation takes them.
    """
    return tff.learning.algorithms.build_weighted_fed_avg(
        **_learning(seed),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
        model_aggregator=tff.learning.secure_aggregator(weighted=True) if secure else None,
    )


def private_process(seed: int, clients: int, aggregator: Any = None) -> Any:
    """Return federated averaging in which nothing is summed but the updates.

    Neither weights nor metrics are: they would be noisy, and part of what is clipped.

    :param clients: what the sum of the updates is divided by.
    :param aggregator: a ``tff.aggregators`` factory for the sum; None: the plain one, which is the
        server's to make private.
    """

    def no_metrics(finalizers: Any, of_a_client: Any = None) -> Any:
        return lambda metrics: tff.federated_value((), tff.SERVER)

    return tff.learning.algorithms.build_unweighted_fed_avg(
        **_learning(seed),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0 / clients),
        model_aggregator=aggregator or tff.aggregators.SumFactory(),
        metrics_aggregator=no_metrics,
    )


def _learning(seed: int) -> dict[str, Any]:
    """Return the model and what devices do with it, as the builders of ``tff.learning`` have it."""
    element_spec = (
        tf.TensorSpec([None, data.PIXELS], tf.float32),
        tf.TensorSpec([None, 1], tf.int64),
    )

    def model() -> Any:
        return tff.learning.models.from_keras_model(
            network(seed),
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[tf.keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            input_spec=element_spec,
        )

    return {
        "model_fn": model,
        "client_optimizer_fn": tff.learning.optimizers.build_sgdm(_LEARNING_RATE),
    }


def batches(examples: tf.data.Dataset) -> tf.data.Dataset:
    """Turn a device's serialized ``tf.train.Example`` messages into batches, several times over."""

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = {
            "pixels": tf.io.FixedLenFeature([data.PIXELS], tf.float32),
            "label": tf.io.FixedLenFeature([1], tf.int64),
        }
        example = tf.io.parse_single_example(serialized, features)
        return example["pixels"], example["label"]

    return examples.map(parse).shuffle(256).repeat(_EPOCHS).batch(_BATCH)


def prepared(hand: data.Digits) -> tf.data.Dataset:
    """Return a device's digits as :func:`batches` makes them of its examples."""
    digits = tf.data.Dataset.from_tensor_slices((hand.images, hand.labels[:, None]))
    return digits.shuffle(256).repeat(_EPOCHS).batch(_BATCH)


class Training:
    """The program: rounds, evaluation, release of metrics, and state that outlives it."""

    def __init__(
        self, settings: Settings, board: Board, held_out: data.Digits, result: DemoResult
    ) -> None:
        self._settings = settings
        self._board = board
        self._held_out = held_out
        self._result = result
        folder = settings.folder
        self._states = tff.program.FileProgramStateManager(folder / "state", prefix="round_")
        self._private = Private(settings) if settings.privacy is not None else None
        self._releases = tff.program.GroupingReleaseManager(
            [
                tff.program.TensorBoardReleaseManager(folder / "summaries"),
                tff.program.CSVFileReleaseManager(folder / "metrics.csv"),
            ]
        )

    async def run(self, hosts: Hosts, hands: Sequence[data.Digits]) -> None:
        """Train until the last round.

        :param hosts: the client processes, which wait for the server's address.
        :param hands: the digits that each device has.
        :raises UsageError: if there is no state to resume, or a client process ends early.
        :raises AggregationFailedError: if a round fails.
        """
        settings = self._settings
        with LocalRuntime() as runtime:
            context = FederatedContext(
                POPULATION,
                LocalServer(
                    port=settings.port,
                    config_file=settings.config_file,
                    config=self._config(),
                    plugins=[self._board],
                ),
                base_context=runtime.federated_context,
                deadline=settings.round_deadline,
            )
            tff.framework.set_default_context(context)
            self._board.status = "building the learning process and its first state"
            with self._timed("TFF: process and initial state"):
                process = self._process()
                state, first = await self._beginning(process.initialize())
            self._board.status = "lowering the computation to a plan"
            with self._timed("TFF: lowering to a plan"):
                computation = FederatedComputation(
                    learning_process_computation(process, batches), name="train/digits"
                )
                context.lower(computation)  # here, so that it can be timed
            self._board.status = ""
            with context, self._timed("rounds"):
                hosts.start(context.server_url)
                await _unless(hosts.watch(), self._rounds(first, state, computation))
                # While the server is there: otherwise they would not find it any more.
                await asyncio.to_thread(hosts.stop)
            if self._private is not None:
                aggregator = self._private.simulated_aggregator()
                process = private_process(settings.seed, settings.contributions, aggregator)
                simulated = await self._simulated(process, runtime.federated_context, hands)
                epsilon = await self._private.spent()
                self._result.spent |= {"epsilon": epsilon, "simulated_accuracy": simulated[-1]}
            elif self._secure and self._result.accuracy:
                process = learning_process(settings.seed)
                self._result.in_the_clear = await self._simulated(
                    process, runtime.federated_context, hands
                )

    async def _simulated(
        self, process: Any, context: Any, hands: Sequence[data.Digits]
    ) -> list[float]:
        """Return the accuracy after each of as many rounds of a process in TFF's own runtime.

        :param context: TFF's, to run it in.
        :param hands: what each device has; as many are drawn as a round has contributions.
        """

        async def invoke(computation: Any, argument: Any = None) -> Any:
            return await tff.program.materialize_value(context.invoke(computation, argument))

        self._board.status = "the same in TFF's own simulation"
        with self._timed("TFF: simulation"):
            rng, settings = np.random.default_rng(self._settings.seed), self._settings
            state, weights = await invoke(process.initialize), []
            for _ in range(settings.rounds):
                drawn = rng.choice(len(hands), settings.contributions, replace=False)
                datasets = [prepared(hands[place]) for place in drawn]
                state = (await invoke(process.next, (state, datasets))).state
                weights.append(state.global_model_weights)
        del self._model  # building the process has spoilt it
        self._board.status = ""
        return [self.evaluate(after) for after in weights]

    async def _rounds(self, first: int, state: Any, computation: Any) -> None:
        source = FederatedDataSource(
            POPULATION, plan_pb2.ExampleSelector(collection_uri=data.COLLECTION_URI)
        )
        clients = source.iterator()
        kept: asyncio.Future[None] | None = None
        try:
            for number in range(first, self._settings.rounds + 1):
                with self._board.round(number) as figures:
                    state, metrics = computation(
                        state, clients.select(self._settings.contributions)
                    )
                    state, metrics = await tff.program.materialize_value((state, metrics))
                    # What process.get_model_weights(state) is, without asking TFF's worker for it.
                    accuracy = self.evaluate(state.global_model_weights)
                    self._result.accuracy.append(accuracy)
                    train = metrics["client_work"]["train"] if self._private is None else {}
                    figures.update(
                        {name: float(train[name]) for name in train if name == "loss"},
                        accuracy=accuracy,
                    )
                if kept is not None:
                    await kept
                # The devices do not wait for the disk.
                kept = asyncio.ensure_future(self._keep(number, state, train, accuracy))
        finally:
            if kept is not None:
                await kept

    @property
    def _secure(self) -> bool:
        """Whether updates are summed under another protocol than the plain one."""
        return self._settings.protocol not in (None, "simple")

    def _process(self) -> Any:
        settings = self._settings
        if self._private is not None:
            return private_process(settings.seed, settings.contributions)
        return learning_process(settings.seed, secure=self._secure)

    async def _keep(self, number: int, state: Any, train: Any, accuracy: float) -> None:
        """Save the state after a round, and release its metrics."""
        await self._states.save(state, number)
        await self._releases.release(
            {"train": train, "evaluation": {"accuracy": np.float32(accuracy)}}, number
        )

    @functools.cached_property
    def _model(self) -> tf.keras.Model:
        # Made when it is needed: TFF builds its own in graphs, which spoils what was made before.
        return network(self._settings.seed)

    def evaluate(self, weights: Any) -> float:
        """Return the accuracy of a network with these weights on the held-out digits."""
        weights.assign_weights_to(self._model)
        logits = self._model(self._held_out.images, training=False).numpy()
        return float(np.mean(np.argmax(logits, axis=1) == self._held_out.labels))

    def _config(self) -> dict[str, Any]:
        # The devices have nothing else to do: they come back at once, and wait at the server until
        # there is a round for them. Real ones would not.
        config: dict[str, Any] = {"retry_min": 0, "retry_max": 0, "check_in_hold": 30}
        drop, protocol = self._settings.drop, self._settings.protocol
        # Some more than are needed begin, since some will vanish.
        config["over_selection"] = 1 + 2.5 * drop
        if protocol is not None:
            known = {value.option.key for value in Plugins.load().config.options()}
            wanted = {"join_timeout": 10, "phase_timeout": 2, "polling_interval": 0.1}
            wanted["dropout_rate"] = min(0.4, 2 * drop)
            own = {f"protocol.{protocol}.{name}": value for name, value in wanted.items()}
            config |= {name: value for name, value in own.items() if name in known}
        config |= self._settings.choices()
        if self._private is not None:
            config |= self._private.config()
        return config

    async def _beginning(self, initial: Any) -> tuple[Any, int]:
        """Return the state to begin with and the number of the first round."""
        if not self._settings.resume:
            return initial, 1
        structure = await tff.program.materialize_value(initial)
        state, version = await self._states.load_latest(structure)
        if state is None:
            raise UsageError(
                f"there is no state of a finished round in {self._settings.folder}; run without "
                "--resume first."
            )
        self._board.skip(version)
        return state, version + 1

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._result.seconds[phase] = time.perf_counter() - began


async def _unless(watch: Coroutine[Any, Any, None], work: Coroutine[Any, Any, None]) -> None:
    """Await *work*, but fail as soon as *watch* does."""
    tasks = [asyncio.ensure_future(watch), asyncio.ensure_future(work)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
