"""Federated programs that train over rounds, release and go on where they stopped."""

from __future__ import annotations

import asyncio
import collections
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")
import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform as fcp_demo
from fcp_platform.learning import learning_process_computation
from fcp_platform.runtime import LocalRuntime
from tests.platform.programs import Progress, devices, holding, serving, source, sum_up

pytestmark = [pytest.mark.tff, pytest.mark.slow]


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
