"""TensorFlow plans, run with stock TensorFlow: hand-made graphs with the custom operations."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fcp_core.client import CallableStore, CollectionStore, EmptyExamplesStore, PlanRun
from fcp_core.client.executors import run_plan
from fcp_core.client.graph_guard import GraphGuard, OperationRules
from fcp_core.client.interruption import Interruption
from fcp_core.client.tensorflow_graph import GraphCache
from fcp_core.client.tensorflow_plan import TensorFlowExecutor
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import plan_pb2, tensorflow_struct_pb2
from fcp_core.protocol.status import Code, StatusError

tf = pytest.importorskip("tensorflow")
v1 = tf.compat.v1

pytestmark = [pytest.mark.tff, pytest.mark.slow]


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


@pytest.fixture(scope="module")
def executor():
    return TensorFlowExecutor()


def run(executor, plan, store, *, checkpoint=b"", slices=None, interruption=None):
    work = PlanRun(plan, checkpoint, store, slices, interruption or Interruption())
    return open_checkpoint(run_plan({"tensorflow_spec": executor}, work))


@pytest.fixture(scope="module")
def counting_plan():
    graph_def = counting_graph()
    constant(graph_def, "selector", selector("app:/x"))
    external(graph_def, "data_0", "selector")
    return make_plan(graph_def, restores=True)


def store_of(*examples, uri="app:/x"):
    return CollectionStore({uri: CallableStore(lambda selector: examples)})


START = write_checkpoint({"start": np.array(100, np.int32)}, "tf_v1")


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


# --- sessions -----------------------------------------------------------------------------------


@pytest.fixture
def sessions_made(monkeypatch):
    """Counts the sessions that are made."""
    made = []
    make = v1.Session
    monkeypatch.setattr(v1, "Session", lambda **given: made.append(given) or make(**given))
    return made


def plan_of(value):
    """Return a plan that saves the number that *value* computes from the data's size."""
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.string, (), "data_token")
        save(x=value(data("data_0").reduce(np.int64(0), lambda n, _: n + 1)))
    graph_def = graph.as_graph_def()
    constant(graph_def, "selector", selector("app:/x"))
    external(graph_def, "data_0", "selector")
    return make_plan(graph_def)


def test_a_session_with_variables_alone_is_used_again(counting_plan, sessions_made):
    executor = TensorFlowExecutor()
    for number in range(3):
        store = store_of(*[b"x"] * number)
        total = run(executor, counting_plan, store, checkpoint=START)["total"]
        assert total == 100 + 2 * number
    assert len(sessions_made) == 1
    # Not after a failure.
    with pytest.raises(StatusError):
        run(executor, counting_plan, CollectionStore({}), checkpoint=START)
    assert run(executor, counting_plan, store_of(b"x"), checkpoint=START)["total"] == 102
    assert len(sessions_made) == 2
    # Nor with another configuration.
    config = v1.ConfigProto(allow_soft_placement=True).SerializeToString()
    plan = changed(
        counting_plan, lambda p, s, r: setattr(p.tensorflow_config_proto, "value", config)
    )
    assert run(executor, plan, store_of(b"x"), checkpoint=START)["total"] == 102
    assert len(sessions_made) == 3


def count_in_a_table(n):
    """Insert into a table with a name, which outlives a run; return its size before."""
    table = tf.raw_ops.MutableHashTableV2(
        key_dtype=tf.int64, value_dtype=tf.int64, shared_name="table"
    )
    size = tf.raw_ops.LookupTableSizeV2(table_handle=table)
    with tf.control_dependencies([size]):
        insert = tf.raw_ops.LookupTableInsertV2(table_handle=table, keys=n, values=n)
    with tf.control_dependencies([insert]):
        return tf.identity(size)


@pytest.mark.parametrize(
    "value",
    [
        count_in_a_table,
        lambda n: v1.random_uniform((), seed=7) + tf.cast(n, tf.float32) * 0,
    ],
)
def test_state_that_cannot_be_reset_takes_a_new_session(value, sessions_made):
    executor, plan = TensorFlowExecutor(), plan_of(value)
    results = {run(executor, plan, store_of())["x"].tolist() for _ in range(3)}
    assert len(results) == 1  # as if each run were the first one
    assert len(sessions_made) == 3


def test_unseeded_randomness_goes_on(sessions_made):
    executor = TensorFlowExecutor()
    plan = plan_of(lambda n: v1.random_uniform(()) + tf.cast(n, tf.float32) * 0)
    assert len({run(executor, plan, store_of())["x"].tolist() for _ in range(3)}) == 3
    assert len(sessions_made) == 1


# --- failures -----------------------------------------------------------------------------------


def test_an_unknown_collection_says_which(executor, counting_plan):
    with pytest.raises(StatusError, match="app:/x") as caught:
        run(executor, counting_plan, CollectionStore({}), checkpoint=START)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_faulty_store_is_named(executor, counting_plan):
    def fail(selector):
        yield b"one"
        raise ZeroDivisionError("in the store")

    with pytest.raises(ZeroDivisionError, match="in the store"):
        run(executor, counting_plan, CallableStore(fail), checkpoint=START)


def test_a_graph_that_fails(executor, counting_plan):
    other = write_checkpoint({"other": np.array(1, np.int32)}, "tf_v1")
    with pytest.raises(StatusError, match="start") as caught:
        run(executor, counting_plan, store_of(), checkpoint=other)
    assert caught.value.code is Code.NOT_FOUND


def changed(plan, change):
    copy = plan_pb2.ClientOnlyPlan()
    copy.CopyFrom(plan)
    change(copy, copy.phase.tensorflow_spec, copy.phase.federated_compute)
    return copy


@pytest.mark.parametrize(
    ("change", "code", "match"),
    [
        (lambda p, s, r: s.input_tensor_specs.pop(), Code.INVALID_ARGUMENT, "declares the inputs"),
        (
            lambda p, s, r: s.input_tensor_specs.append(spec("other:0")),
            Code.INVALID_ARGUMENT,
            "declares the inputs",
        ),
        (
            lambda p, s, r: s.input_tensor_specs.append(b"\xff"),
            Code.INVALID_ARGUMENT,
            "malformed",
        ),
        (
            lambda p, s, r: s.output_tensor_specs.append(spec("x:0")),
            Code.INVALID_ARGUMENT,
            "declares the outputs",
        ),
        (
            lambda p, s, r: (
                s.output_tensor_specs.append(spec("x:0")),
                r.aggregations["x:0"].tf_v1_checkpoint_aggregation.SetInParent(),
            ),
            Code.INVALID_ARGUMENT,
            "not securely",
        ),
        (
            lambda p, s, r: (
                s.output_tensor_specs.append(spec("x:0")),
                r.aggregations["x:0"].secure_aggregation.SetInParent(),
            ),
            Code.INVALID_ARGUMENT,
            "'x:0'",
        ),
        (
            lambda p, s, r: (
                r.ClearField("output_filepath_tensor_name"),
                s.input_tensor_specs.pop(),
            ),
            Code.INVALID_ARGUMENT,
            "output_filepath",
        ),
        (
            lambda p, s, r: p.phase.ClearField("federated_compute"),
            Code.INVALID_ARGUMENT,
            "router",
        ),
        (lambda p, s, r: p.ClearField("graph"), Code.UNIMPLEMENTED, "no graph"),
        (
            lambda p, s, r: (p.ClearField("graph"), setattr(p, "tflite_graph", b"x")),
            Code.UNIMPLEMENTED,
            "TFLite",
        ),
        (lambda p, s, r: setattr(p, "graph", b"\xff"), Code.INVALID_ARGUMENT, "GraphDef"),
        (
            lambda p, s, r: s.target_node_names.append("nowhere"),
            Code.INVALID_ARGUMENT,
            "nowhere",
        ),
        (
            lambda p, s, r: s.constant_inputs.update({"data_token": b"\xff"}),
            Code.INVALID_ARGUMENT,
            "data_token",
        ),
        (
            lambda p, s, r: s.constant_inputs.update({"unfilled": b""}),
            Code.INVALID_ARGUMENT,
            "unfilled",
        ),
    ],
)
def test_plans_that_do_not_fit(executor, counting_plan, change, code, match):
    plan = changed(counting_plan, change)
    with pytest.raises(StatusError, match=match) as caught:
        run(executor, plan, store_of(), checkpoint=START)
    assert caught.value.code is code


def test_graphs_that_cannot_be_imported(executor, counting_plan):
    def with_graph(change):
        graph_def = v1.GraphDef.FromString(counting_plan.graph)
        change(graph_def)
        plan = plan_pb2.ClientOnlyPlan()
        plan.CopyFrom(counting_plan)
        plan.graph = graph_def.SerializeToString()
        return plan

    def node(graph_def, name):
        return next(node for node in graph_def.node if node.name == name)

    plans = {
        "nowhere": with_graph(lambda g: node(g, "save").input.append("^nowhere")),
        "NoSuchOp": with_graph(lambda g: setattr(node(g, "save"), "op", "NoSuchOp")),
        "inputs instead of 2": with_graph(lambda g: node(g, "data_0").input.pop()),
        "depend on each other": with_graph(
            lambda g: (
                node(g, "data_0").input.__setitem__(1, "save")
                or node(g, "save").input.__setitem__(0, "data_0")
            )
        ),
    }
    del plans["depend on each other"]
    for match, plan in plans.items():
        with pytest.raises(StatusError, match=match) as caught:
            run(executor, plan, store_of(), checkpoint=START)
        unknown = Code.PERMISSION_DENIED if match == "NoSuchOp" else Code.INVALID_ARGUMENT
        assert caught.value.code is unknown


def test_a_plan_that_writes_nothing(executor, counting_plan):
    plan = changed(counting_plan, lambda p, s, r: s.target_node_names.__setitem__(0, "selector"))
    with pytest.raises(StatusError, match="wrote no file"):
        run(executor, plan, store_of(), checkpoint=START)


def test_interruption_ends_a_running_plan(executor, counting_plan):
    reading = threading.Event()
    interruption = Interruption()

    def endless(selector):
        while True:
            reading.set()
            yield b"x" * 1000

    def stop():
        reading.wait(60)
        interruption.request()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(StatusError) as caught:
        run(
            executor,
            counting_plan,
            CallableStore(endless),
            checkpoint=START,
            interruption=interruption,
        )
    stopper.join()
    assert caught.value.code is Code.CANCELLED


def test_only_so_many_plans_run_at_once(counting_plan, sessions_made):
    executor = TensorFlowExecutor(at_once=1)
    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(run, executor, counting_plan, store_of(b"x" * n), checkpoint=START)
            for n in range(8)
        ]
        assert [future.result()["total"] for future in runs] == [100 + 2 * n for n in range(8)]
    assert len(sessions_made) == 1


def test_interruption_of_a_plan_that_waits_for_its_turn(counting_plan):
    executor = TensorFlowExecutor(at_once=1)
    reading = threading.Event()
    first, second = Interruption(), Interruption()

    def endless(selector):
        while True:
            reading.set()
            yield b"x" * 1000

    def work(store, interruption):
        run(executor, counting_plan, store, checkpoint=START, interruption=interruption)

    with ThreadPoolExecutor(2) as pool:
        holding = pool.submit(work, CallableStore(endless), first)
        assert reading.wait(60)
        waiting = pool.submit(work, store_of(b"x"), second)
        second.request()
        assert waiting.exception(60).code is Code.CANCELLED
        first.request()
        assert holding.exception(60).code is Code.CANCELLED
    assert run(executor, counting_plan, store_of(b"x"), checkpoint=START)["total"] == 102


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
