"""TensorFlow plans, graphs and stores that do not do."""

from __future__ import annotations

import numpy as np
import pytest

from fcp_core.client import CallableStore, CollectionStore
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError
from tests.client.graphs import START, changed, run, spec, store_of, v1

pytestmark = [pytest.mark.tff, pytest.mark.slow]


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
