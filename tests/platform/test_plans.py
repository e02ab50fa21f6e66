"""The plan on the wire: the names, ops and specifications that devices rely on."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

from fcp_core.aggregation.configuration import parse_configuration
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import plan_pb2, tensorflow_struct_pb2
from fcp_platform import FederatedComputation, plans, rounds

pytestmark = pytest.mark.tff

STRINGS = tff.SequenceType(np.str_)
STATE = tff.FederatedType(collections.OrderedDict(w=np.float32, n=np.int32), tff.SERVER)


@tff.tensorflow.computation(STRINGS)
def count(examples: Any) -> Any:
    return examples.reduce(np.int32(0), lambda n, _: n + 1)


def lower(comp: Any) -> Any:
    return FederatedComputation(comp, name="a").lowered


def spec_names(specs: Any) -> list[str]:
    parsed = [tensorflow_struct_pb2.TensorSpecProto.FromString(spec) for spec in specs]
    assert all(spec.dtype == tf.string.as_datatype_enum for spec in parsed)
    return [spec.name for spec in parsed]


def test_names_and_ops() -> None:
    data = tff.FederatedType(collections.OrderedDict(a=STRINGS, b=[STRINGS]), tff.CLIENTS)

    @tff.tensorflow.computation(STATE.member["w"], data.member)
    def work(w: Any, data: Any) -> Any:
        first = data["a"].reduce(np.float32(0), lambda n, _: n + w)
        return collections.OrderedDict(
            first=first, second=data["b"][0].reduce(np.int32(0), lambda n, _: n + 1)
        )

    @tff.federated_computation(STATE, data)
    def comp(state: Any, data: Any) -> Any:
        update = tff.federated_map(work, (tff.federated_broadcast(state["w"]), data))
        return state, (tff.federated_sum(update), tff.federated_max(update["second"]))

    selectors = [plan_pb2.ExampleSelector(collection_uri=f"app:/{name}") for name in "xy"]
    lowered = lower(comp)
    plan = plans.build_plan(lowered, selectors)
    assert not plan.tflite_graph
    spec, router = plan.phase.tensorflow_spec, plan.phase.federated_compute
    assert spec.dataset_token_tensor_name == "data_token:0"
    assert spec_names(spec.input_tensor_specs) == ["input_filepath:0", "output_filepath:0"]
    assert list(spec.target_node_names) == ["save_client_update_tensors"]
    assert not spec.output_tensor_specs
    assert not router.aggregations
    assert router.input_filepath_tensor_name == "input_filepath:0"
    assert router.output_filepath_tensor_name == "output_filepath:0"

    nodes = {node.name: node for node in tf.compat.v1.GraphDef.FromString(plan.graph).node}
    placeholders = {name for name, node in nodes.items() if node.op == "Placeholder"}
    assert placeholders == {"data_token", "input_filepath", "output_filepath"}
    for index, selector in enumerate(selectors):
        dataset = nodes[f"data_{index}"]
        assert dataset.op == "ExternalDataset"
        assert not dataset.attr
        token, constant = dataset.input
        assert token == "data_token"
        value = tf.make_ndarray(nodes[constant].attr["value"].tensor)
        assert value.shape == ()
        assert plan_pb2.ExampleSelector.FromString(value.item()) == selector
    assert nodes["save_client_update_tensors"].op == "SaveSlices"

    uris = [config.intrinsic_uri for config in lowered.aggregations.configs]
    assert sorted(uris) == ["federated_max", "federated_sum", "federated_sum"]
    state = {"server/w": np.array(2.5, np.float32), "server/n": np.array(1, np.int32)}
    prepared = rounds.prepare(lowered, state)
    assert dict(open_checkpoint(prepared.checkpoint)) == {"client/0": 2.5}
    for intrinsic in parse_configuration(prepared.aggregation):
        assert intrinsic.inputs[0].name.startswith("update/")
        assert intrinsic.outputs[0].name.startswith("intermediate_update/0/")


def test_nothing_broadcast() -> None:
    @tff.federated_computation(STATE, tff.FederatedType(STRINGS, tff.CLIENTS))
    def comp(state: Any, data: Any) -> Any:
        return state, tff.federated_sum(tff.federated_map(count, data))

    lowered = lower(comp)
    plan = plans.build_plan(lowered, [plan_pb2.ExampleSelector()])
    assert not plan.phase.federated_compute.input_filepath_tensor_name
    assert spec_names(plan.phase.tensorflow_spec.input_tensor_specs) == ["output_filepath:0"]
    state = {"server/w": np.array(2.5, np.float32), "server/n": np.array(1, np.int32)}
    assert rounds.prepare(lowered, state).checkpoint == b""


def test_wrong_number_of_selectors() -> None:
    @tff.federated_computation(STATE, tff.FederatedType(STRINGS, tff.CLIENTS))
    def comp(state: Any, data: Any) -> Any:
        return state, tff.federated_sum(tff.federated_map(count, data))

    with pytest.raises(ValueError, match="reads 1 sequences of client data, the data source"):
        plans.build_plan(lower(comp), [])


def test_unused_broadcast_and_data_are_still_fed() -> None:
    @tff.federated_computation(STATE, tff.FederatedType(STRINGS, tff.CLIENTS))
    def comp(state: Any, data: Any) -> Any:
        one = tff.federated_value(np.int32(1), tff.CLIENTS)
        ignored = tff.federated_map(
            tff.tensorflow.computation(lambda one, w: one),
            (one, tff.federated_broadcast(state["w"])),
        )
        return state, tff.federated_sum(ignored)

    plan = plans.build_plan(lower(comp), [plan_pb2.ExampleSelector()])
    nodes = {node.name for node in tf.compat.v1.GraphDef.FromString(plan.graph).node}
    fed = {name.split(":")[0] for name in spec_names(plan.phase.tensorflow_spec.input_tensor_specs)}
    assert {"data_token", "data_0"} | fed <= nodes


def test_select_on_the_wire() -> None:
    """The slices' selector is made on the device; the data token is the same as the data's."""

    @tff.tensorflow.computation(np.float32, np.int32)
    def choose(value: Any, key: Any) -> Any:
        return value * tf.cast(key, tf.float32)

    @tff.tensorflow.computation(STRINGS)
    def keys(examples: Any) -> Any:
        return tf.reshape(examples.reduce(np.int32(0), lambda n, _: n + 1), [1])

    @tff.tensorflow.computation(tff.SequenceType(np.float32))
    def total(slices: Any) -> Any:
        return slices.reduce(np.float32(0), lambda a, b: a + b)

    @tff.federated_computation(STATE, tff.FederatedType(STRINGS, tff.CLIENTS))
    def comp(state: Any, data: Any) -> Any:
        slices = tff.federated_select(tff.federated_map(keys, data), state["n"], state["w"], choose)
        return state, tff.federated_sum(tff.federated_map(total, slices))

    lowered = lower(comp)
    plan = plans.build_plan(lowered, [plan_pb2.ExampleSelector()])
    nodes = tf.compat.v1.GraphDef.FromString(plan.graph).node
    by_name = {node.name: node for node in nodes}
    (selector,) = (node for node in nodes if node.op == "MakeSlicesSelectorExampleSelector")
    assert not selector.attr
    assert len(selector.input) == 2
    datasets = [node for node in nodes if node.op == "ExternalDataset"]
    assert sorted(by_name[node.input[1]].op for node in datasets) == ["Const", selector.op]
    assert {node.input[0] for node in datasets} == {"data_token"}

    state = {"server/w": np.array(2.5, np.float32), "server/n": np.array(2, np.int32)}
    prepared = rounds.prepare(lowered, state)
    ((name, slices),) = prepared.slices.items()
    assert open_checkpoint(prepared.checkpoint)["client/0"].item() == name.encode()
    values = {key: dict(open_checkpoint(data)) for key, data in slices.items()}
    assert values == {0: {"slice": 0.0}, 1: {"slice": 2.5}, 2: {"slice": 5.0}}


def test_what_is_aggregated_securely_can_be_routed_to_secure_aggregation() -> None:
    """It is not in the checkpoint then, and the router has the names of the configuration."""

    @tff.tensorflow.computation(STRINGS)
    def count(data: Any) -> Any:
        number = data.reduce(np.int64(0), lambda n, _: n + 1)
        return collections.OrderedDict(hidden=tf.stack([number, number]), seen=number)

    @tff.federated_computation(STATE, tff.FederatedType(STRINGS, tff.CLIENTS))
    def comp(state: Any, data: Any) -> Any:
        found = tff.federated_map(count, data)
        hidden = tff.federated_secure_sum_bitwidth(found["hidden"], 8)
        return state, (hidden, tff.federated_sum(found["seen"]))

    lowered = lower(comp)
    (config,) = (
        c
        for c in lowered.aggregations.configs
        if c.intrinsic_uri == "federated_secure_sum_bitwidth"
    )
    hidden = config.intrinsic_args[0].input_tensor.name
    plain = plans.build_plan(lowered, [plan_pb2.ExampleSelector()])
    assert not plain.phase.federated_compute.aggregations
    plan = plans.build_plan(lowered, [plan_pb2.ExampleSelector()], routed=True)
    router = plan.phase.federated_compute
    assert list(router.aggregations) == [hidden]
    assert router.aggregations[hidden].HasField("secure_aggregation")
    (given,) = plan.phase.tensorflow_spec.output_tensor_specs
    spec = tensorflow_struct_pb2.TensorSpecProto.FromString(given)
    assert (spec.name, spec.dtype) == (hidden, tf.int64.as_datatype_enum)
    assert [dim.size for dim in spec.shape.dim] == [2]
    nodes = {node.name: node for node in tf.compat.v1.GraphDef.FromString(plan.graph).node}
    assert hidden in nodes
    saved = next(node for name, node in nodes.items() if "tensor_names" in name).attr["value"]
    assert hidden.encode() not in list(saved.tensor.string_val)
