"""TensorFlow plans, run with stock TensorFlow: what they read, work out and write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fcp_core.client import CollectionStore, EmptyExamplesStore, PlanRun
from fcp_core.client.executors import run_plan
from fcp_core.client.graph_guard import GraphGuard, OperationRules
from fcp_core.client.interruption import Interruption
from fcp_core.client.tensorflow_graph import GraphCache
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError
from tests.client.graphs import (
    START,
    changed,
    constant,
    data,
    external,
    make_plan,
    run,
    save,
    selector,
    spec,
    store_of,
    tf,
    v1,
)

pytestmark = [pytest.mark.tff, pytest.mark.slow]


def test_reads_works_and_saves(executor, counting_plan):
    for examples in ((b"a", b"\0bc"), (), (b"xyz",) * 1000):
        expected = 100 + 2 * sum(map(len, examples))
        # Twice: the second run finds fresh variables in a graph that is already imported.
        for _ in range(2):
            checkpoint = run(executor, counting_plan, store_of(*examples), checkpoint=START)
            assert checkpoint["total"] == expected


def test_tensors_that_are_to_be_masked_come_beside_the_checkpoint(executor):
    """Under the names of the router, to the letter; the rest is saved as ever."""
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.string, (), "data_token")
        tf.identity(tf.constant([3, 4], tf.int64), name="update/0")
        tf.identity(tf.constant(5, tf.int32), name="update/1")
        save(plain=tf.constant(6.5))
    plan = make_plan(graph.as_graph_def())
    work, router = plan.phase.tensorflow_spec, plan.phase.federated_compute
    for name in ("update/0", "update/1:0"):
        work.output_tensor_specs.append(spec(name))
        router.aggregations[name].secure_aggregation.SetInParent()
    found = run_plan({"tensorflow_spec": executor}, PlanRun(plan, b"", None, None, Interruption()))
    assert {name: value.tolist() for name, value in found.secure.items()} == {
        "update/0": [3, 4],
        "update/1:0": 5,
    }
    assert open_checkpoint(found.checkpoint)["plain"] == 6.5
    # A plan may have nothing else.
    router.ClearField("output_filepath_tensor_name")
    del work.input_tensor_specs[:], work.target_node_names[:]
    found = run_plan({"tensorflow_spec": executor}, PlanRun(plan, b"", None, None, Interruption()))
    assert found.checkpoint == b""
    assert found.secure["update/0"].tolist() == [3, 4]


def test_names_without_the_number_of_the_output(executor, counting_plan):
    """A router and the specifications may leave out ":0", each by itself."""
    plan = plan_pb2.ClientOnlyPlan.FromString(counting_plan.SerializeToString())
    work, router = plan.phase.tensorflow_spec, plan.phase.federated_compute
    router.input_filepath_tensor_name = "input_filepath"
    router.output_filepath_tensor_name = "output_filepath"
    work.dataset_token_tensor_name = "data_token"
    assert run(executor, plan, store_of(b"abc"), checkpoint=START)["total"] == 106
    del work.input_tensor_specs[:]
    work.input_tensor_specs.extend([spec("input_filepath"), spec("output_filepath:0")])
    assert run(executor, plan, store_of(b"abc"), checkpoint=START)["total"] == 106
    assert run(executor, counting_plan, store_of(b"abc"), checkpoint=START)["total"] == 106


def test_many_devices_at_once(executor, counting_plan):
    def one(number):
        store = store_of(*[b"x"] * number)
        return int(run(executor, counting_plan, store, checkpoint=START)["total"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(24))) == [100 + 2 * n for n in range(24)]


def test_selector_from_a_constant_input(executor):
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.string, (), "data_token")
        v1.placeholder(tf.string, (), "example_selector")
        factor = v1.placeholder(tf.int64, (2,), "factor")
        save(n=data("data_0").reduce(np.int64(0), lambda n, _: n + 1) * factor)
    graph_def = graph.as_graph_def()
    external(graph_def, "data_0", "example_selector")
    plan = make_plan(graph_def)
    constants = plan.phase.tensorflow_spec.constant_inputs
    constants["example_selector"] = tf.make_tensor_proto(selector("app:/y")).SerializeToString()
    constants["factor:0"] = tf.make_tensor_proto([1, 10], tf.int64).SerializeToString()
    store = store_of(b"", b"", uri="app:/y")
    assert run(executor, plan, store)["n"].tolist() == [2, 20]


def test_two_datasets_and_nodes_in_odd_order(executor):
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.string, (), "data_token")
        counts = [
            data(name).reduce(np.int64(0), lambda n, _: n + 1) for name in ("data_0", "data_1")
        ]
        save(a=counts[0], b=counts[1])
    graph_def = graph.as_graph_def()
    for index in range(2):
        constant(graph_def, f"selector_{index}", selector(f"app:/{index}"))
        external(graph_def, f"data_{index}", f"selector_{index}:0")
    nodes = list(graph_def.node)
    del graph_def.node[:]
    graph_def.node.extend(reversed(nodes))
    store = CollectionStore({f"app:/{n}": EmptyExamplesStore(n + 3) for n in range(2)})
    checkpoint = run(executor, make_plan(graph_def), store)
    assert (int(checkpoint["a"]), int(checkpoint["b"])) == (3, 4)


class Slices:
    """Serves checkpoints of one number each."""

    def __init__(self):
        self.asked = []

    def slices(self, selector):
        self.asked.append((selector.served_at_id, list(selector.keys)))
        for key in selector.keys:
            yield write_checkpoint({"s": np.array(key * key, np.int32)}, "tf_v1")


def test_federated_select_with_computed_keys(executor):
    """The keys come from the device's own data; the selector is made in the graph."""
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.string, (), "data_token")
        v1.placeholder(tf.string, (), "later")  # becomes the operation that makes the selector
        lengths = data("data_0").map(tf.strings.length).batch(100).take(1)
        keys = tf.data.experimental.get_single_element(lengths)
        tf.identity(keys, name="keys")
        tf.constant("here", name="served_at")

        def read(path):
            return tf.raw_ops.RestoreV2(
                prefix=path, tensor_names=["s"], shape_and_slices=[""], dtypes=[tf.int32]
            )[0]

        slices = data("slices").map(read).reduce(0, lambda a, b: a + tf.reshape(b, ()))
        save(total=slices)
    graph_def = graph.as_graph_def()
    constant(graph_def, "selector", selector("app:/x"))
    external(graph_def, "data_0", "selector")
    make = next(node for node in graph_def.node if node.name == "later")
    make.Clear()
    make.name, make.op = "later", "MakeSlicesSelectorExampleSelector"
    make.input.extend(["served_at", "keys"])
    external(graph_def, "slices", "later")
    source = Slices()
    store = store_of(b"a", b"abc")
    assert run(executor, make_plan(graph_def), store, slices=source)["total"] == 1 + 9
    assert source.asked == [("here", [1, 3])]


def calling_graph():
    """Return a graph that calls a function, whose node carries settings of its own."""
    with tf.Graph().as_default() as graph:
        tf.function(lambda x: x + 1)(v1.placeholder(tf.int32, (), "x"))
    return graph.as_graph_def()


def settings_of(graph_def):
    (call,) = (node for node in graph_def.node if "config_proto" in node.attr)
    return v1.ConfigProto.FromString(call.attr["config_proto"].s)


@pytest.mark.parametrize("rewritten", [True, False])
def test_functions_are_rewritten_only_for_a_plan_with_settings_of_its_own(rewritten):
    graph_def = calling_graph()
    cache = GraphCache(lambda token, selector: (), GraphGuard(OperationRules(), "none"))
    given = graph_def.SerializeToString()
    imported = cache.get(given, rewritten=rewritten).graph.as_graph_def()
    expected = settings_of(graph_def)
    if not rewritten:
        expected.graph_options.rewrite_options.disable_meta_optimizer = True
    assert settings_of(imported) == expected
    assert cache.get(given, rewritten=rewritten) is not cache.get(given, rewritten=not rewritten)


def test_a_function_whose_settings_are_malformed():
    graph_def = calling_graph()
    (call,) = (node for node in graph_def.node if "config_proto" in node.attr)
    call.attr["config_proto"].s = b"\xff"
    with pytest.raises(StatusError, match="has no ConfigProto") as caught:
        GraphCache(lambda *_: (), GraphGuard(OperationRules(), "none")).get(
            graph_def.SerializeToString(), rewritten=False
        )
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_session_configuration_of_the_plan(executor, counting_plan):
    config = v1.ConfigProto(device_count={"CPU": 1}, allow_soft_placement=True)
    plan = changed(
        counting_plan,
        lambda p, s, r: setattr(p.tensorflow_config_proto, "value", config.SerializeToString()),
    )
    assert run(executor, plan, store_of(b"a"), checkpoint=START)["total"] == 102
