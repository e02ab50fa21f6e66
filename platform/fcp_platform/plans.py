"""The plan that devices download: one graph that restores, reads data, works and saves."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import tensorflow as tf

from fcp_core.protocol.protos import plan_pb2, tensorflow_struct_pb2
from fcp_platform import encoding, intrinsics
from fcp_platform.graphs import LocalGraph, ancestors, only
from fcp_platform.lowering import Lowered
from fcp_platform.select import put_device_ops
from fcp_platform.tflite import convert

_INPUT = "input_filepath"
_OUTPUT = "output_filepath"
#: The placeholder of the token that datasets are read with.
TOKEN = "data_token"
_SAVE = "save_client_update_tensors"
_DATASET_OP = "ExternalDataset"
#: What TensorFlow lets a node be called.
_NODE = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")


def build_plan(
    lowered: Lowered,
    selectors: list[plan_pb2.ExampleSelector],
    *,
    routed: bool = False,
    tflite: bool = False,
) -> plan_pb2.ClientOnlyPlan:
    """Build the plan of a lowered computation.

    :param selectors: what to select for each leaf of the client data, depth first.
    :param routed: whether what is aggregated securely is kept out of the checkpoint, and routed to
        secure aggregation as the published client wants it; its devices contribute nothing then to
        a task that has no such protocol.
    :param tflite: whether it has a TFLite model beside the graph, if TensorFlow can make one.
    :raises ValueError: if there are more or fewer selectors than leaves.
    :raises TypeError: if a tensor that is routed has a name that TensorFlow cannot give to a node.
    """
    secure = _secure_names(lowered) if routed else frozenset()
    data = [port for port in lowered.client.inputs if port.leaf.is_sequence]
    if len(data) != len(selectors):
        raise ValueError(
            f"the computation reads {len(data)} sequences of client data, the data source selects "
            f"{len(selectors)}"
        )
    graph_def, saves = client_graph(lowered, lowered.client, selectors, secure)
    plan = plan_pb2.ClientOnlyPlan(graph=graph_def.SerializeToString(deterministic=True))
    spec = plan.phase.tensorflow_spec
    spec.dataset_token_tensor_name = f"{TOKEN}:0"
    router = plan.phase.federated_compute
    if lowered.broadcast:
        router.input_filepath_tensor_name = f"{_INPUT}:0"
        spec.input_tensor_specs.append(string_spec(_INPUT))
    if saves:
        spec.target_node_names.append(_SAVE)
        router.output_filepath_tensor_name = f"{_OUTPUT}:0"
        spec.input_tensor_specs.append(string_spec(_OUTPUT))
    _route(lowered, secure, spec, router)
    if tflite:
        # The data token comes first, as in the reference's models.
        fed = [TOKEN, *([_INPUT] if lowered.broadcast else []), *([_OUTPUT] if saves else [])]
        plain, _ = client_graph(lowered, lowered.plain_client, selectors, secure)
        plan.tflite_graph = convert(plain, fed, [_SAVE] if saves else [], list(router.aggregations))
    return plan


def client_graph(
    lowered: Lowered,
    client: LocalGraph,
    selectors: list[plan_pb2.ExampleSelector],
    secure: Collection[str] = (),
) -> tuple[Any, bool]:
    """Return the graph that a device runs, and whether it saves anything.

    :param client: what it works by, optimised or not.
    :param secure: the names of the tensors that are routed.
    """
    data = [port for port in client.inputs if port.leaf.is_sequence]
    graph = tf.Graph()
    with graph.as_default():
        token = tf.compat.v1.placeholder(tf.string, (), TOKEN)
        inputs = _restore(lowered, client) if lowered.broadcast else {}
        for index, port in enumerate(data):
            inputs[port.tensor_name] = tf.compat.v1.placeholder(tf.variant, (), f"data_{index}")
        if client.token:
            inputs[client.token] = token
        outputs = client.add_to_graph(inputs, "work")
        saves = _save(lowered, client, outputs, secure)
    graph_def = graph.as_graph_def()
    ends = [TOKEN, *sorted(secure), *(f"data_{index}" for index in range(len(data)))]
    ends += [_SAVE] if saves else []
    if lowered.broadcast:
        ends.append(_INPUT)  # it is fed even if nothing reads it
    graph_def = only(graph_def, ancestors(graph_def, ends))
    add_datasets(graph_def, selectors)
    put_device_ops(graph_def, TOKEN)
    return graph_def, saves


def _secure_names(lowered: Lowered) -> frozenset[str]:
    """Return the names of the tensors that are aggregated securely, which become nodes."""
    names = frozenset(
        argument.input_tensor.name
        for config in lowered.aggregations.configs
        if config.intrinsic_uri in intrinsics.SECURE
        for argument in config.intrinsic_args
        if argument.HasField("input_tensor")
    )
    for name in names:
        if not _NODE.fullmatch(name):
            raise TypeError(f"{name!r} cannot be routed: no node can have that name; rename it")
    return names


def _route(lowered: Lowered, secure: Collection[str], spec: Any, router: Any) -> None:
    """Name the tensors that are routed; the vectors are called so, to the letter."""
    for port in lowered.client.outputs:
        name = port.leaf.name
        if name not in secure:
            continue
        form = lowered.aggregations.updates[name]
        proto = tensorflow_struct_pb2.TensorSpecProto(name=name, dtype=form.wire.as_datatype_enum)
        proto.shape.SetInParent()
        for size in (*port.leaf.type.shape, *form.suffix):
            proto.shape.dim.add(size=size)
        spec.output_tensor_specs.append(proto.SerializeToString())
        router.aggregations[name].secure_aggregation.SetInParent()


def _restore(lowered: Lowered, client: LocalGraph) -> dict[str, Any]:
    """Add the restoring of what is broadcast; return the tensors by the name they stand for."""
    path = tf.compat.v1.placeholder(tf.string, (), _INPUT)
    forms = {leaf: encoding.stored(leaf.name, leaf.dtype) for leaf in lowered.broadcast}
    restored = tf.raw_ops.RestoreV2(
        prefix=path,
        tensor_names=[leaf.name for leaf in forms],
        shape_and_slices=[""] * len(forms),
        dtypes=[form.wire for form in forms.values()],
        name="restore_broadcast",
    )
    tensors = {}
    for (leaf, form), tensor in zip(forms.items(), restored, strict=True):
        value = form.decode(tensor)
        value.set_shape(leaf.type.shape)
        tensors[leaf.name] = value
    return {
        port.tensor_name: tensors[port.leaf.name]
        for port in client.inputs
        if not port.leaf.is_sequence
    }


def _save(
    lowered: Lowered, client: LocalGraph, outputs: list[Any], secure: Collection[str]
) -> bool:
    """Add the saving of an update, but for what is routed; return whether anything is saved."""
    tensors: dict[str, Any] = {
        port.leaf.name: lowered.aggregations.updates[port.leaf.name].encode(tensor)
        for port, tensor in zip(client.outputs, outputs, strict=True)
        if port.leaf.name in lowered.aggregations.updates
    }
    for name in secure:
        tf.identity(tensors.pop(name), name=name)
    if not tensors:
        return False
    tf.raw_ops.SaveSlices(
        filename=tf.compat.v1.placeholder(tf.string, (), _OUTPUT),
        tensor_names=list(tensors),
        shapes_and_slices=[""] * len(tensors),
        data=list(tensors.values()),
        name=_SAVE,
    )
    return True


def add_datasets(graph_def: Any, selectors: list[plan_pb2.ExampleSelector]) -> None:
    """Turn the placeholders of the data into the op that stock TensorFlow does not have.

    :param graph_def: changed in place; it has a placeholder ``data_0``, ``data_1``, ... for each
        selector, and one called :data:`TOKEN`.
    """
    nodes = {node.name: node for node in graph_def.node}
    for index, selector in enumerate(selectors):
        constant = graph_def.node.add(name=f"data_{index}/selector", op="Const")
        constant.attr["dtype"].type = tf.string.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(
            tf.make_tensor_proto(selector.SerializeToString(), tf.string, ())
        )
        dataset = nodes[f"data_{index}"]
        dataset.Clear()
        dataset.name = f"data_{index}"
        dataset.op = _DATASET_OP
        dataset.input.extend([TOKEN, constant.name])


def string_spec(name: str) -> bytes:
    """Return the serialized specification of a scalar string, the node's only output."""
    spec = tensorflow_struct_pb2.TensorSpecProto(name=f"{name}:0", dtype=tf.string.as_datatype_enum)
    spec.shape.SetInParent()
    return bytes(spec.SerializeToString())
