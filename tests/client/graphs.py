"""Plans of hand-made graphs with the custom operations, and what runs them."""

from __future__ import annotations

import numpy as np
import pytest

from fcp_core.client import CallableStore, CollectionStore, PlanRun
from fcp_core.client.executors import run_plan
from fcp_core.client.interruption import Interruption
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import plan_pb2, tensorflow_struct_pb2

tf = pytest.importorskip("tensorflow")
v1 = tf.compat.v1


def external(graph_def, name, selector):
    """Turn the variant placeholder *name* into an ExternalDataset that reads *selector*."""
    node = next(node for node in graph_def.node if node.name == name)
    node.Clear()
    node.name, node.op = name, "ExternalDataset"
    node.input.extend(["data_token", selector])


def constant(graph_def, name, value):
    node = graph_def.node.add(name=name, op="Const")
    node.attr["dtype"].type = tf.string.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.string, ()))


def selector(uri):
    return plan_pb2.ExampleSelector(collection_uri=uri).SerializeToString()


def spec(name):
    message = tensorflow_struct_pb2.TensorSpecProto(name=name, dtype=7)
    message.shape.SetInParent()
    return message.SerializeToString()


def data(name):
    return tf.data.experimental.from_variant(
        v1.placeholder(tf.variant, (), name), tf.TensorSpec((), tf.string)
    )


def save(**tensors):
    path = v1.placeholder(tf.string, (), "output_filepath")
    tf.raw_ops.SaveSlices(
        filename=path,
        tensor_names=list(tensors),
        shapes_and_slices=[""] * len(tensors),
        data=list(tensors.values()),
        name="save",
    )


def make_plan(graph_def, *, restores=False):
    plan = plan_pb2.ClientOnlyPlan(graph=graph_def.SerializeToString())
    work = plan.phase.tensorflow_spec
    work.dataset_token_tensor_name = "data_token:0"
    work.target_node_names.append("save")
    router = plan.phase.federated_compute
    if restores:
        router.input_filepath_tensor_name = "input_filepath:0"
        work.input_tensor_specs.append(spec("input_filepath:0"))
    router.output_filepath_tensor_name = "output_filepath:0"
    work.input_tensor_specs.append(spec("output_filepath:0"))
    return plan


def counting_graph():
    """Add up the lengths of the examples, twice over, onto a variable and what was broadcast."""
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.string, (), "data_token")
        lengths = data("data_0").repeat(2).map(lambda x: tf.strings.length(x))
        path = v1.placeholder(tf.string, (), "input_filepath")
        (start,) = tf.raw_ops.RestoreV2(
            prefix=path, tensor_names=["start"], shape_and_slices=[""], dtypes=[tf.int32]
        )
        start.set_shape(())
        variable = v1.get_variable("v", (), tf.int32, v1.zeros_initializer(), use_resource=True)
        # A run has no initialiser of its own; a second run must not find the first one's value.
        initialise = v1.cond(
            v1.is_variable_initialized(variable), tf.no_op, lambda: variable.initializer
        )
        with tf.control_dependencies([initialise]):
            total = lengths.reduce(start, lambda a, b: a + b)
            with tf.control_dependencies([variable.assign_add(total)]):
                save(total=tf.identity(variable.read_value()))
    return graph.as_graph_def()


def run(executor, plan, store, *, checkpoint=b"", slices=None, interruption=None):
    work = PlanRun(plan, checkpoint, store, slices, interruption or Interruption())
    return open_checkpoint(run_plan({"tensorflow_spec": executor}, work))


def store_of(*examples, uri="app:/x"):
    return CollectionStore({uri: CallableStore(lambda selector: examples)})


START = write_checkpoint({"start": np.array(100, np.int32)}, "tf_v1")


def changed(plan, change):
    copy = plan_pb2.ClientOnlyPlan()
    copy.CopyFrom(plan)
    change(copy, copy.phase.tensorflow_spec, copy.phase.federated_compute)
    return copy
