"""The TFLite model of a plan does what its graph does."""

from __future__ import annotations

import collections
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import plan_pb2
from fcp_platform import FederatedComputation, plans, rounds, tflite

pytestmark = pytest.mark.tff

STRINGS = tff.SequenceType(np.str_)
STATE = tff.FederatedType(
    collections.OrderedDict(w=(np.float32, [4, 3]), b=(np.float32, [3]), n=np.int32), tff.SERVER
)
SELECTOR = plan_pb2.ExampleSelector(collection_uri="app:/examples")
SAVE = "save_client_update_tensors"
TOKEN = b"0123456789abcdef"


@tff.tensorflow.computation(STATE.member, STRINGS)
def train(state: Any, examples: Any) -> Any:
    """Some steps of gradient descent, with a branch and a loop, as a learning process has them."""
    w, b = tf.Variable(state["w"]), tf.Variable(state["b"])

    @tf.function
    def step(seen: Any, batch: Any) -> Any:
        parsed = tf.io.parse_example(batch, {"x": tf.io.FixedLenFeature([4], tf.float32)})
        x = parsed["x"]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.nn.relu(x @ w + b) - x[:, :3]))
        for variable, gradient in zip((w, b), tape.gradient(loss, (w, b)), strict=True):
            if tf.reduce_all(tf.math.is_finite(gradient)):
                variable.assign_sub(0.1 * gradient)
        return seen + tf.shape(batch)[0] + 0 * state["n"]

    seen = examples.repeat(3).batch(5).reduce(np.int32(0), step)
    with tf.control_dependencies([seen]):
        delta = collections.OrderedDict(
            w=w.read_value() - state["w"], b=b.read_value() - state["b"]
        )
    return collections.OrderedDict(delta=delta, seen=seen)


@tff.federated_computation(STATE, tff.FederatedType(STRINGS, tff.CLIENTS))
def training(state: Any, data: Any) -> Any:
    update = tff.federated_map(train, (tff.federated_broadcast(state), data))
    return state, (tff.federated_mean(update["delta"]), tff.federated_sum(update["seen"]))


def examples() -> list[bytes]:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(12):
        feature = {"x": tf.train.Feature(float_list=tf.train.FloatList(value=rng.normal(size=4)))}
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        found.append(example.SerializeToString())
    return found


def with_examples(graph_def: Any, given: list[bytes]) -> Any:
    """Return a graph with a dataset of its own in place of what only a client has."""
    with tf.Graph().as_default() as graph:
        data = tf.constant(given, tf.string, name="data_0/examples")
        tf.raw_ops.TensorSliceDataset(components=[data], output_shapes=[()], name="data_0")
    nodes = {node.name: node for node in graph.as_graph_def().node}
    for node in graph_def.node:
        if node.name == "data_0":
            node.CopyFrom(nodes["data_0"])
    graph_def.node.append(nodes["data_0/examples"])
    return graph_def


def run_graph(graph_def: Any, feeds: dict[str, Any]) -> None:
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
    with tf.compat.v1.Session(graph=graph) as session:
        session.run([SAVE], {f"{name}:0": value for name, value in feeds.items()})


def run_model(model: bytes, feeds: dict[str, Any]) -> None:
    interpreter = tf.lite.Interpreter(model_content=model)
    interpreter.allocate_tensors()
    places = {item["name"]: item["index"] for item in interpreter.get_input_details()}
    assert list(places) == list(feeds)
    for name, value in feeds.items():
        interpreter.set_tensor(places[name], np.array(value))
    interpreter.invoke()


def test_the_model_gives_what_the_graph_gives(tmp_path: Path) -> None:
    lowered = FederatedComputation(training, name="a").lowered
    plan = plans.build_plan(lowered, [SELECTOR], tflite=True)
    rng = np.random.default_rng(0)
    state = {
        "server/w": rng.normal(size=(4, 3)).astype(np.float32),
        "server/b": rng.normal(size=3).astype(np.float32),
        "server/n": np.array(1, np.int32),
    }
    source = tmp_path / "input"
    source.write_bytes(rounds.prepare(lowered, state).checkpoint)

    def feeds(target: str) -> dict[str, Any]:
        return {
            "data_token": TOKEN,
            "input_filepath": str(source).encode(),
            "output_filepath": str(tmp_path / target).encode(),
        }

    run_graph(
        with_examples(tf.compat.v1.GraphDef.FromString(plan.graph), examples()), feeds("graph")
    )
    plain, _ = plans.client_graph(lowered, lowered.plain_client, [SELECTOR])
    model = tflite.convert(with_examples(plain, examples()), list(feeds("")), [SAVE])
    run_model(model, feeds("model"))
    wanted = open_checkpoint((tmp_path / "graph").read_bytes())
    found = open_checkpoint((tmp_path / "model").read_bytes())
    assert set(found) == set(wanted) == {"update/0/w", "update/0/b", "update/1"}
    assert wanted["update/1"] == 36
    assert np.abs(wanted["update/0/w"]).max() > 0.01
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    # The plan's own model differs in the operation that reads the client's examples.
    interpreter = tf.lite.Interpreter(model_content=plan.tflite_graph)
    assert [item["name"] for item in interpreter.get_input_details()] == list(feeds(""))
    assert b"FlexExternalDataset" in plan.tflite_graph
    assert SELECTOR.collection_uri.encode() in plan.tflite_graph
    # A program that is started again makes the same bytes.
    assert plans.build_plan(lowered, [SELECTOR], tflite=True) == plan


def test_what_is_routed_is_given_back() -> None:
    @tff.tensorflow.computation(STRINGS)
    def work(examples: Any) -> Any:
        seen = examples.reduce(np.int32(0), lambda n, _: n + 1)
        return collections.OrderedDict(seen=seen, square=tf.stack([seen, seen * seen]))

    @tff.federated_computation(STATE, tff.FederatedType(STRINGS, tff.CLIENTS))
    def comp(state: Any, data: Any) -> Any:
        update = tff.federated_map(work, data)
        return state, (
            tff.federated_sum(update["seen"]),
            tff.federated_secure_sum_bitwidth(update["square"], 8),
        )

    lowered = FederatedComputation(comp, name="a").lowered
    plan = plans.build_plan(lowered, [SELECTOR], routed=True, tflite=True)
    (name,) = plan.phase.federated_compute.aggregations
    interpreter = tf.lite.Interpreter(model_content=plan.tflite_graph)
    assert [item["name"] for item in interpreter.get_output_details()] == [name]
    assert b"FlexSaveSlices" in plan.tflite_graph


def test_slices_are_selected_in_the_model_too() -> None:
    @tff.tensorflow.computation(np.float32, np.int32)
    def choose(value: Any, key: Any) -> Any:
        return value * tf.cast(key, tf.float32)

    @tff.tensorflow.computation(STRINGS)
    def keys(examples: Any) -> Any:
        return tf.reshape(examples.reduce(np.int32(0), lambda n, _: n + 1), [1])

    @tff.tensorflow.computation(tff.SequenceType(np.float32))
    def total(slices: Any) -> Any:
        return slices.reduce(np.float32(0), lambda a, b: a + b)

    state = tff.FederatedType(collections.OrderedDict(w=np.float32, n=np.int32), tff.SERVER)

    @tff.federated_computation(state, tff.FederatedType(STRINGS, tff.CLIENTS))
    def comp(state: Any, data: Any) -> Any:
        slices = tff.federated_select(tff.federated_map(keys, data), state["n"], state["w"], choose)
        return state, tff.federated_sum(tff.federated_map(total, slices))

    lowered = FederatedComputation(comp, name="a").lowered
    plan = plans.build_plan(lowered, [SELECTOR], tflite=True)
    assert b"FlexMakeSlicesSelectorExampleSelector" in plan.tflite_graph


def test_a_graph_that_cannot_be_converted_is_sent_alone(caplog: pytest.LogCaptureFixture) -> None:
    graph_def = tf.compat.v1.GraphDef()
    graph_def.node.add(name="save", op="NobodyKnowsThis")
    with caplog.at_level(logging.WARNING, "fcp_platform.tflite"):
        assert tflite.convert(graph_def, [], ["save"]) == b""
    (record,) = caplog.records
    assert "the plan has no TFLite model: " in record.getMessage()
