"""Configurations: what is read, what is refused, and what a plan's aggregations become."""

from __future__ import annotations

import numpy as np
import pytest

from fcp_core.aggregation.configuration import (
    configuration_from_server_aggregations,
    configuration_to_proto,
    parse_configuration,
)
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.protocol.protos import aggregation_configuration_pb2 as configuration_pb2
from fcp_core.protocol.protos import aggregation_tensor_pb2 as tensor_pb2
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError

SCALAR = TensorSpec("x", DataType.INT32)


def config(uri, args=(), outputs=(), inner=()):
    return configuration_pb2.Configuration.IntrinsicConfig(
        intrinsic_uri=uri, intrinsic_args=args, output_tensors=outputs, inner_intrinsics=inner
    )


def arg(name="x", dtype=DataType.INT32, shape=()):
    spec = tensor_pb2.TensorSpecProto(name=name, dtype=int(dtype))
    spec.shape.dim_sizes.extend(shape)
    return configuration_pb2.Configuration.IntrinsicConfig.IntrinsicArg(input_tensor=spec)


def parameter(**fields):
    return configuration_pb2.Configuration.IntrinsicConfig.IntrinsicArg(
        parameter=tensor_pb2.TensorProto(**fields)
    )


UNSET = configuration_pb2.Configuration.IntrinsicConfig.IntrinsicArg()
UNNAMED = parameter(dtype=3, int_val=[1])
NAMED = parameter(name="p", dtype=3, int_val=[1])


def whole(*configs):
    return configuration_pb2.Configuration(intrinsic_configs=configs)


def refusal(function, *args):
    with pytest.raises(StatusError) as caught:
        function(*args)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


def test_a_configuration_survives_the_wire():
    value = np.array([b"a", b"bc\xff"], object)
    intrinsics = (
        Intrinsic(
            "federated_sum",
            (TensorSpec("update/0", DataType.FLOAT, (2, -1)),),
            (TensorSpec("out", DataType.FLOAT, (2, -1)),),
            (Parameter("p", value), Parameter("q", np.array(3, np.uint64))),
            (Intrinsic("inner", (SCALAR,)),),
        ),
    )
    data = configuration_to_proto(intrinsics).SerializeToString()
    parsed = parse_configuration(data)
    assert parsed == intrinsics
    assert parsed[0].parameters[0].value.tolist() == [b"a", b"bc\xff"]
    assert parsed[0].parameters[1].value == 3
    assert parse_configuration(b"") == ()


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (
            config("federated_sum", [UNSET]),
            "argument 0 is neither an input nor a parameter",
        ),
        (config("nonsense"), "intrinsic 0 ('nonsense'): no installed aggregator"),
        (config("federated_sum", [arg(dtype=10)]), "'x' has dtype number 10"),
        (config("federated_sum", [arg(dtype=0)]), "'x' has dtype number 0"),
        (config("federated_sum", [arg(shape=(-2,))]), "dimension below -1"),
        (
            config("federated_sum", [NAMED, UNNAMED]),
            "all named or all unnamed, 1 are named",
        ),
        (
            config("federated_sum", inner=[config("federated_sum", [arg(dtype=10)])]),
            "intrinsic 0 ('federated_sum'), nested 0 ('federated_sum')",
        ),
        (config("GoogleSQL:$differential_privacy_sum"), "only usable inside"),
        (config("GoogleSQL:$differential_privacy_percentile_cont"), "only usable inside"),
    ],
)
def test_what_is_refused(broken, expected):
    known = {
        "federated_sum",
        "GoogleSQL:$differential_privacy_sum",
        "GoogleSQL:$differential_privacy_percentile_cont",
    }
    assert expected in refusal(parse_configuration, whole(broken), known)


def test_bytes_that_are_no_configuration():
    assert "not a Configuration" in refusal(parse_configuration, b"\xff\xff\xff")


def test_two_outputs_of_one_name():
    out = [arg("out").input_tensor]
    assert "named 'out'" in refusal(
        parse_configuration, whole(config("a", [arg()], out), config("b", [arg()], out))
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dtype": 1, "float_val": [1, 2], "shape": [2]}, np.array([1, 2], "f4")),
        ({"dtype": 2, "double_val": [1.5]}, np.array(1.5)),
        ({"dtype": 3, "int_val": [-1], "shape": [1, 1]}, np.array([[-1]], "i4")),
        ({"dtype": 9, "int64_val": [1 << 40]}, np.array(1 << 40)),
        (
            {"dtype": 7, "string_val": ["é", ""], "shape": [2]},
            np.array(["é".encode(), b""], object),
        ),
        ({"dtype": 23, "content": b"\1\0\0\0\0\0\0\0"}, np.array(1, "u8")),
        ({"dtype": 7, "content": b"\1\2abcd", "shape": [2]}, np.array([b"a", b"bc"], object)),
        ({"dtype": 1, "shape": [0, 3]}, np.zeros((0, 3), "f4")),
        ({"dtype": 7, "shape": [0]}, np.zeros(0, object)),
    ],
)
def test_parameters_in_each_form(fields, expected):
    shape = tensor_pb2.TensorShapeProto(dim_sizes=fields.pop("shape", ()))
    argument = parameter(**fields, shape=shape)
    ((read,),) = (i.parameters for i in parse_configuration(whole(config("u", [argument]))))
    assert read.value.dtype == expected.dtype
    assert read.value.shape == expected.shape
    assert read.value.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dtype": 1, "double_val": [1]}, "values in double_val"),
        ({"dtype": 23, "int64_val": [1]}, "values in int64_val"),
        ({"dtype": 1, "float_val": [1], "content": b"1234"}, "more than one field"),
        ({"dtype": 1, "float_val": [1], "double_val": [1]}, "more than one field"),
        ({"dtype": 3}, "no values"),
        ({"dtype": 7}, "no values"),
        ({"dtype": 3, "int_val": [1], "shape": [2]}, "1 values, where its shape (2,) needs 2"),
        ({"dtype": 3, "content": b"123"}, "3 bytes of content"),
        ({"dtype": 3, "content": b"1234", "shape": [-1]}, "negative dimension"),
        ({"dtype": 3, "content": b"1234", "shape": [1 << 40, 1 << 40]}, "4 bytes of content"),
        ({"dtype": 7, "content": b"\5abc"}, "too little content"),
        ({"dtype": 7, "content": b"\xff\xff"}, "too little content"),
        ({"dtype": 7, "content": b"\xff" * 20 + b"\0"}, "too little content"),
        ({"dtype": 7, "content": b"\0", "shape": [1 << 60]}, "too little content"),
        ({"dtype": 10, "content": b"1"}, "dtype number 10"),
    ],
)
def test_parameters_that_are_refused(fields, expected):
    shape = tensor_pb2.TensorShapeProto(dim_sizes=fields.pop("shape", ()))
    broken = whole(config("u", [parameter(**fields, shape=shape)]))
    assert expected in refusal(parse_configuration, broken)


def test_lone_fedsql_intrinsics_are_collected_in_a_group_by_that_comes_last():
    out = [arg("out").input_tensor]
    parsed = parse_configuration(
        whole(
            config("GoogleSQL:sum", [arg("a")], [arg("sa").input_tensor]),
            config("federated_sum", [arg("x")], out),
            config("GoogleSQL:sum", [arg("b", shape=(-1,))], [arg("sb").input_tensor]),
            config("fedsql_group_by", inner=[config("GoogleSQL:sum", [arg("c")])]),
        )
    )
    assert [intrinsic.uri for intrinsic in parsed] == [
        "federated_sum",
        "fedsql_group_by",
        "fedsql_group_by",
    ]
    assert parsed[0].inputs[0].shape == ()
    assert parsed[1].nested[0].inputs[0] == TensorSpec("c", DataType.INT32, (-1,))
    assert parsed[2].inputs == parsed[2].outputs == ()
    assert [nested.outputs[0] for nested in parsed[2].nested] == [
        TensorSpec("sa", DataType.INT32, (-1,)),
        TensorSpec("sb", DataType.INT32, (-1,)),
    ]


def test_the_dp_quantile_keeps_its_scalar_output():
    quantile = config(
        "GoogleSQL:$differential_privacy_percentile_cont", [arg("x")], [arg("q").input_tensor]
    )
    (bundle,) = parse_configuration(
        whole(config("differential_privacy_tensor_aggregator_bundle", inner=[quantile]))
    )
    assert bundle.nested[0].inputs[0].shape == (-1,)
    assert bundle.nested[0].outputs[0].shape == ()


def test_unnamed_parameters_of_a_dp_group_by_are_named_by_position():
    numbers = [parameter(dtype=2, double_val=[number]) for number in (1.0, 0.1, 5.0)]
    (plain,) = parse_configuration(whole(config("fedsql_dp_group_by", numbers)))
    assert [p.name for p in plain.parameters] == ["epsilon", "delta", "max_groups_contributed"]

    shape = tensor_pb2.TensorShapeProto(dim_sizes=[2])
    names = parameter(dtype=7, string_val=["k", "l"], shape=shape)
    domain = parameter(dtype=3, int_val=[1, 2], shape=shape)
    closed = whole(config("fedsql_dp_group_by", [*numbers, names, domain, domain]))
    (intrinsic,) = parse_configuration(closed)
    assert [p.name for p in intrinsic.parameters][3:] == ["key_names", "k", "l"]

    for count in (1, 2):
        assert "unnamed parameters" in refusal(
            parse_configuration, whole(config("fedsql_dp_group_by", numbers[:count]))
        )
    for tail in ([names], [names, domain], [names, domain, domain, domain]):
        assert "unnamed parameters" in refusal(
            parse_configuration, whole(config("fedsql_dp_group_by", [*numbers, *tail]))
        )
    assert "vector of strings" in refusal(
        parse_configuration, whole(config("fedsql_dp_group_by", [*numbers, domain]))
    )


def plan_spec(name, dtype, shape=()):
    spec = {"name": name, "dtype": dtype, "shape": {"dim": [{"size": size} for size in shape]}}
    return spec


def test_a_plans_aggregations_become_a_configuration():
    aggregation = plan_pb2.ServerAggregationConfig(
        intrinsic_uri="federated_secure_sum",
        intrinsic_args=[
            {"input_tensor": plan_spec("update/0", 3, (2, -1))},
            {"state_tensor": plan_spec("intermediate_state/0", 9)},
        ],
        output_tensors=[plan_spec("intermediate_update/0/0", 3, (2, -1))],
        inner_aggregations=[
            {"intrinsic_uri": "inner", "intrinsic_args": [{"input_tensor": plan_spec("y", 7)}]}
        ],
    )
    state = {"intermediate_state/0": np.array(41), "other": np.array(1.0)}
    (intrinsic,) = parse_configuration(configuration_from_server_aggregations([aggregation], state))
    assert intrinsic == Intrinsic(
        "federated_secure_sum",
        (TensorSpec("update/0", DataType.INT32, (2, -1)),),
        (TensorSpec("intermediate_update/0/0", DataType.INT32, (2, -1)),),
        (Parameter("intermediate_state/0", np.array(41)),),
        (Intrinsic("inner", (TensorSpec("y", DataType.STRING),)),),
    )
    assert intrinsic.parameters[0].value == 41


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ({"input_tensor": plan_spec("update/0", 10)}, "'update/0' has dtype DT_BOOL"),
        ({"input_tensor": plan_spec("update/0", 999)}, "'update/0' has dtype 999"),
        (
            {"input_tensor": {"name": "x", "dtype": 1, "shape": {"unknown_rank": True}}},
            "unknown rank",
        ),
        ({}, "argument 0 is neither"),
        ({"state_tensor": plan_spec("s", 3)}, "the plan wants s: int32[]"),
        ({"state_tensor": plan_spec("s", 9, (1,))}, "the intermediate state has int64[]"),
        ({"state_tensor": plan_spec("lost", 9)}, "no tensor 'lost'"),
    ],
)
def test_plans_that_cannot_be_served(argument, expected):
    aggregation = plan_pb2.ServerAggregationConfig(
        intrinsic_uri="federated_sum", intrinsic_args=[argument]
    )
    with pytest.raises(StatusError, match="aggregation 'federated_sum'") as caught:
        configuration_from_server_aggregations([aggregation], {"s": np.array(1)})
    assert expected in caught.value.message
    assert caught.value.code is (Code.NOT_FOUND if "lost" in expected else Code.INVALID_ARGUMENT)
