"""A TensorFlow plan with broadcast, examples and federated select against the real server."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import CallableStore, Client, Outcome, write_tfrecord
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import plan_pb2, tensorflow_struct_pb2
from fcp_core.protocol.status import Code
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server import Server, ServerThread

tf = pytest.importorskip("tensorflow")
v1 = tf.compat.v1

pytestmark = [pytest.mark.tff, pytest.mark.slow]


def make_plan(selectors):
    """Add the broadcast number, the number of examples and the sum of the selected slices.

    :param selectors: of the examples and of the slices.
    """
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.string, (), "data_token")

        def restore(path, name):
            (tensor,) = tf.raw_ops.RestoreV2(
                prefix=path, tensor_names=[name], shape_and_slices=[""], dtypes=[tf.float32]
            )
            return tf.reshape(tensor, ())

        def data(index):
            variant = v1.placeholder(tf.variant, (), f"data_{index}")
            return tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string))

        total = restore(v1.placeholder(tf.string, (), "input_filepath"), "start")
        total = data(0).reduce(total, lambda n, _: n + 1)
        total = data(1).reduce(total, lambda n, path: n + restore(path, "slice"))
        tf.raw_ops.SaveSlices(
            filename=v1.placeholder(tf.string, (), "output_filepath"),
            tensor_names=["update"],
            shapes_and_slices=[""],
            data=[total],
            name="save",
        )
    graph_def = graph.as_graph_def()
    for index, selector in enumerate(selectors):
        constant = graph_def.node.add(name=f"selector_{index}", op="Const")
        constant.attr["dtype"].type = tf.string.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(selector, tf.string, ()))
        node = next(node for node in graph_def.node if node.name == f"data_{index}")
        node.Clear()
        node.name, node.op = f"data_{index}", "ExternalDataset"
        node.input.extend(["data_token", constant.name])
    plan = plan_pb2.ClientOnlyPlan(graph=graph_def.SerializeToString())
    work, router = plan.phase.tensorflow_spec, plan.phase.federated_compute
    work.dataset_token_tensor_name = "data_token:0"
    work.target_node_names.append("save")
    router.input_filepath_tensor_name = "input_filepath:0"
    router.output_filepath_tensor_name = "output_filepath:0"
    for name in (router.input_filepath_tensor_name, router.output_filepath_tensor_name):
        spec = tensorflow_struct_pb2.TensorSpecProto(name=name, dtype=7)
        work.input_tensor_specs.append(spec.SerializeToString())
    return plan.SerializeToString()


def one_number(name, value):
    return write_checkpoint({name: np.array(value, np.float32)}, "tf_v1")


def selecting(keys):
    """A task whose devices ask for the slices of some keys; there are those of 0, 1 and 2."""
    examples = plan_pb2.ExampleSelector(collection_uri="app:/records")
    slices = plan_pb2.ExampleSelector(collection_uri="internal:/federated_select")
    slices.criteria.Pack(plan_pb2.SlicesSelector(served_at_id="served", keys=keys))
    intrinsic = Intrinsic(
        "federated_sum",
        (TensorSpec("update", DataType.FLOAT),),
        (TensorSpec("total", DataType.FLOAT),),
    )
    return TaskSpec(
        population="people",
        name="select",
        plan=make_plan([examples.SerializeToString(), slices.SerializeToString()]),
        checkpoint=one_number("start", 0.5),
        aggregation=configuration_to_proto([intrinsic]).SerializeToString(),
        goal_count=3,
        slices={"served": {key: one_number("slice", 10.0 ** (key + 1)) for key in range(3)}},
    )


@pytest.mark.parametrize("keys", [[0, 3], [-1]])
def test_a_key_out_of_range_is_not_asked_for_again(tmp_path, keys):
    plugins = Plugins.load(environ={}, working_folder=tmp_path)
    with ServerThread(Server(plugins, populations=["people"])) as thread:
        thread.run(thread.server.services.tasks.submit(selecting(keys))).result(60)
        store = CallableStore(lambda selector: [b"example"])
        with Client(thread.server.url, "people", stores=store) as client:
            (result,) = client.run_once().tasks
    assert result.error.code is Code.OUT_OF_RANGE
    assert "no slice of one of the keys" in result.error.message


def test_broadcast_examples_and_slices(tmp_path):
    plugins = Plugins.load(environ={}, working_folder=tmp_path)
    with ServerThread(Server(plugins, populations=["people"])) as thread:
        tasks, url = thread.server.services.tasks, thread.server.url
        task_id = thread.run(tasks.submit(selecting([2, 0]))).result(60)
        # Two devices in this process, one of its own with its examples in a file.
        for count in (3, 4):
            store = CallableStore(lambda selector, count=count: [b"example"] * count)
            with Client(url, "people", stores=store) as client:
                assert client.run_once().outcome is Outcome.CONTRIBUTED
        write_tfrecord(tmp_path / "records", [b"x"] * 5)
        command = [sys.executable, "-m", "fcp_core", "client", f"--server={url}"]
        command += ["--population=people", f"--tfrecord=app:/records={tmp_path / 'records'}"]
        subprocess.run(command, check=True)
        total = open_checkpoint(thread.run(tasks.wait(task_id)).result(60))["total"]
    assert total == 3 * (0.5 + 1000 + 10) + 3 + 4 + 5
