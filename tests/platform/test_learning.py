"""Learning processes of tff.learning, lowered, against TFF's own runtime."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

from fcp_platform import naming, values
from fcp_platform.learning import learning_process_computation
from fcp_platform.runtime import LocalRuntime

pytestmark = [pytest.mark.tff, pytest.mark.slow]

_FEATURES = {
    "x": tf.io.FixedLenFeature([4], tf.float32),
    "y": tf.io.FixedLenFeature([], tf.int64),
}


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[LocalRuntime]:
    with LocalRuntime() as running:
        yield running


def parse_examples(examples: Any) -> Any:
    def parse(batch: Any) -> Any:
        features = tf.io.parse_example(batch, _FEATURES)
        return features["x"], features["y"]

    return examples.repeat(2).batch(5).map(parse)


def make_model() -> Any:
    model = tf.keras.Sequential(
        [
            tf.keras.layers.InputLayer(input_shape=(4,)),
            tf.keras.layers.Dense(6, activation="relu"),
            tf.keras.layers.LayerNormalization(),
            tf.keras.layers.Dense(3),
        ]
    )
    return tff.learning.models.from_keras_model(
        model,
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        input_spec=(
            tf.TensorSpec([None, 4], tf.float32),
            tf.TensorSpec([None], tf.int64),
        ),
        metrics=[tf.keras.metrics.SparseCategoricalAccuracy()],
    )


def client_examples() -> list[list[bytes]]:
    rng = np.random.default_rng(5)
    clients = []
    for size in (7, 3, 12):
        examples = []
        for _ in range(size):
            x = rng.normal(size=4)
            feature = {
                "x": tf.train.Feature(float_list=tf.train.FloatList(value=x)),
                "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(np.argmax(x[:3]))])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            examples.append(example.SerializeToString())
        clients.append(examples)
    return clients


def by_name(value: Any, type_spec: Any, prefix: str) -> dict[str, Any]:
    return {
        leaf.name: values.as_array(leaf, each)
        for leaf, each in values.flatten(value, type_spec, prefix)
    }


def check_round(run_round: Callable[..., Any], comp: Any, state: Any, clients: Any) -> Any:
    expected = comp(state, clients)
    found = run_round(comp, state, clients)
    wanted = by_name(expected.state, comp.type_signature.result[0], naming.STATE)
    wanted |= by_name(expected.metrics, comp.type_signature.result[1], naming.METRICS)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=1e-5, err_msg=name)
    return expected


def test_federated_averaging_and_evaluation(run_round: Callable[..., Any]) -> None:
    process = tff.learning.algorithms.build_weighted_fed_avg(
        make_model,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1, 0.5),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    )
    train = learning_process_computation(process, parse_examples)
    clients = client_examples()
    state = process.initialize()
    first = check_round(run_round, train, state, clients)
    # The second round starts from other weights, and metrics must start anew.
    second = check_round(run_round, train, first.state, clients)
    metrics = second.metrics["client_work"]["train"]
    assert metrics["num_examples"] == 2 * (7 + 3 + 12)

    evaluation = tff.learning.algorithms.build_fed_eval(make_model)
    evaluate = learning_process_computation(evaluation, parse_examples)
    eval_state = evaluation.set_model_weights(
        evaluation.initialize(), process.get_model_weights(second.state)
    )
    check_round(run_round, evaluate, eval_state, clients)


def test_tff_optimizers_and_clipping_aggregator(run_round: Callable[..., Any]) -> None:
    """A functional model, TFF's optimizers and an aggregator with a state of its own."""

    def build_keras_model() -> Any:
        return tf.keras.Sequential(
            [
                tf.keras.layers.InputLayer(input_shape=(4,)),
                tf.keras.layers.Dense(3, kernel_initializer="zeros"),
            ]
        )

    model = tff.learning.models.functional_model_from_keras(
        build_keras_model,
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        input_spec=(
            tf.TensorSpec([None, 4], tf.float32),
            tf.TensorSpec([None], tf.int64),
        ),
        metrics_constructor=collections.OrderedDict(
            accuracy=tf.keras.metrics.SparseCategoricalAccuracy
        ),
    )
    process = tff.learning.algorithms.build_weighted_fed_avg(
        model,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.2),
        server_optimizer_fn=tff.learning.optimizers.build_adam(0.1),
        model_aggregator=tff.learning.robust_aggregator(),
    )
    train = learning_process_computation(process, parse_examples)
    state = process.initialize()
    for _ in range(2):
        state = check_round(run_round, train, state, client_examples()).state


def test_errors() -> None:
    with pytest.raises(TypeError, match="must be a LearningProcess"):
        learning_process_computation(object(), parse_examples)
    process = tff.learning.algorithms.build_fed_eval(make_model)
    with pytest.raises(TypeError, match="parse_examples gives str"):
        learning_process_computation(process, lambda examples: examples)
