"""Example query plans, run without TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest

from fcp_core.client import CallableStore, InsufficientDataError, PlanRun, SliceSource
from fcp_core.client.example_query import ExampleQueryExecutor
from fcp_core.client.executors import run_plan
from fcp_core.client.interruption import Interruption
from fcp_core.client.stores import make_query_result
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import data_type_pb2, plan_pb2
from fcp_core.protocol.status import Code, StatusError

FCV1 = "federated_compute_checkpoint_aggregation"
TF_V1 = "tf_v1_checkpoint_aggregation"
VECTORS = {
    "ints": np.array([1, -2, 3], np.int32),
    "longs": [2**40, 0, -1],
    "floats": np.array([0.5, 1.5, -2], np.float32),
    "doubles": [0.1, 0.2, 0.3],
    "flags": [True, False, True],
    "texts": ["a", "é", ""],
    "bytes": [b"a", b"\xff\0", b""],
}
TYPES = {
    "ints": data_type_pb2.INT32,
    "longs": data_type_pb2.INT64,
    "floats": data_type_pb2.FLOAT,
    "doubles": data_type_pb2.DOUBLE,
    "flags": data_type_pb2.BOOL,
    "texts": data_type_pb2.STRING,
    "bytes": data_type_pb2.BYTES,
}


def make_plan(names, kind=FCV1):
    plan = plan_pb2.ClientOnlyPlan()
    query = plan.phase.example_query_spec.example_queries.add()
    query.example_selector.collection_uri = "app:/x"
    for name in names:
        query.output_vector_specs[f"out/{name}"].vector_name = name
        query.output_vector_specs[f"out/{name}"].data_type = TYPES[name]
        aggregation = plan.phase.federated_example_query.aggregations[f"out/{name}"]
        getattr(aggregation, kind).SetInParent()
    return plan


@pytest.fixture
def run():
    """Runs a plan against a store and returns the opened checkpoint."""
    interruption = Interruption()

    def run(plan, vectors=None, examples=(), executor=None):
        result = make_query_result(VECTORS if vectors is None else vectors)
        store = CallableStore(lambda selector: examples, query=lambda query: result)
        work = PlanRun(plan, b"", store, SliceSource(None, ""), interruption)
        executors = {"example_query_spec": executor or ExampleQueryExecutor()}
        return open_checkpoint(run_plan(executors, work))

    return run


def check(checkpoint, names):
    assert set(checkpoint) == {f"out/{name}" for name in names}
    for name in names:
        tensor = checkpoint[f"out/{name}"]
        assert tensor.shape == (3,)
        expected = [v.encode() if isinstance(v, str) else v for v in VECTORS[name]]
        assert tensor.tolist() == np.array(expected, tensor.dtype).tolist()


def test_router_names_with_the_number_of_the_output(run):
    plan = make_plan(["ints"])
    aggregations = plan.phase.federated_example_query.aggregations
    aggregations["out/ints:0"].CopyFrom(aggregations.pop("out/ints"))
    check(run(plan), ["ints"])


def test_every_type_in_tf_v1(run):
    checkpoint = run(make_plan(VECTORS, TF_V1))
    assert checkpoint.format == "tf_v1"
    check(checkpoint, VECTORS)


def test_every_type_in_federated_compute_format(run):
    names = set(VECTORS) - {"flags"}
    checkpoint = run(make_plan(names))
    assert checkpoint.format == "federated_compute"
    check(checkpoint, names)
    dtypes = {name: checkpoint[f"out/{name}"].dtype for name in names}
    assert dtypes["ints"] == np.int32
    assert dtypes["floats"] == np.float32


def test_the_client_may_choose_the_format(run):
    executor = ExampleQueryExecutor(lightweight_wire_format=True)
    assert run(make_plan(["ints"], TF_V1), executor=executor).format == "federated_compute"


def test_examples_as_they_are(run):
    plan = make_plan([])
    query = plan.phase.example_query_spec.example_queries[0]
    query.direct_output_tensor_name = "raw"
    aggregations = plan.phase.federated_example_query.aggregations
    aggregations["raw"].federated_compute_checkpoint_aggregation.SetInParent()
    assert run(plan, examples=[b"1", b"\0"])["raw"].tolist() == [b"1", b"\0"]
    query.min_output_row_count = 3
    with pytest.raises(InsufficientDataError):
        run(plan, examples=[b"1", b"2"])


def test_too_few_rows(run):
    plan = make_plan(["ints"])
    plan.phase.example_query_spec.example_queries[0].min_output_row_count = 4
    with pytest.raises(InsufficientDataError, match="3 rows"):
        run(plan)


def spoiled(change, names=("ints",)):
    plan = make_plan(names)
    change(plan)
    return plan


def _query(plan):
    return plan.phase.example_query_spec.example_queries[0]


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (spoiled(lambda p: p.phase.ClearField("federated_example_query")), "router"),
        (spoiled(lambda p: p.phase.federated_example_query.aggregations.clear()), "out/ints"),
        (
            spoiled(
                lambda p: p.phase.federated_example_query.aggregations[
                    "out/ints"
                ].secure_aggregation.SetInParent()
            ),
            "secure_aggregation",
        ),
        (
            spoiled(lambda p: setattr(_query(p).output_vector_specs["out/ints"], "data_type", 3)),
            "bool_values",
        ),
        (
            spoiled(lambda p: setattr(_query(p).output_vector_specs["out/ints"], "data_type", 0)),
            "data type",
        ),
        (
            spoiled(
                lambda p: setattr(_query(p).output_vector_specs["out/ints"], "vector_name", "")
            ),
            "no vector",
        ),
        (
            spoiled(lambda p: p.phase.example_query_spec.example_queries.add().CopyFrom(_query(p))),
            "two queries",
        ),
    ],
)
def test_plans_that_do_not_fit(run, plan, match):
    with pytest.raises(StatusError, match=match) as caught:
        run(plan)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_vectors_of_different_lengths(run):
    result = make_query_result({"ints": np.array([1], np.int32)})
    result.vector_data.vectors["longs"].int64_values.value.extend([1, 2])
    store = CallableStore(lambda selector: [result.SerializeToString()])
    work = PlanRun(make_plan(["ints", "longs"]), b"", store, None, Interruption())
    with pytest.raises(StatusError, match="different lengths"):
        ExampleQueryExecutor().run(work)


def test_what_is_masked_is_no_number():
    assert make_query_result({"v": np.ma.array([1, 2])}).stats.output_rows_count == 2
    with pytest.raises(ValueError, match="'v' is an array of which a part is masked"):
        make_query_result({"v": np.ma.array([1, 2], mask=[False, True])})


def test_plans_of_other_kinds(run):
    with pytest.raises(StatusError) as caught:
        run(plan_pb2.ClientOnlyPlan())
    assert caught.value.code is Code.INVALID_ARGUMENT
    plan = plan_pb2.ClientOnlyPlan()
    plan.phase.tensorflow_spec.SetInParent()
    with pytest.raises(StatusError) as caught:
        run(plan)
    assert caught.value.code is Code.UNIMPLEMENTED


def test_plans_by_privacy_id(run):
    plan = make_plan(["ints"])
    plan.phase.example_query_spec.privacy_id_config.SetInParent()
    with pytest.raises(StatusError) as caught:
        run(plan)
    assert caught.value.code is Code.UNIMPLEMENTED
