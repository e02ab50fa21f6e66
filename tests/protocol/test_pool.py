"""Messages of other descriptor pools."""

from __future__ import annotations

import pytest

from fcp_core.protocol.pool import adopted
from fcp_core.protocol.protos import plan_pb2


@pytest.mark.slow
def test_tensorflows_own_specification_of_a_tensor_is_adopted() -> None:
    struct_pb2 = pytest.importorskip("tensorflow.core.protobuf.struct_pb2")
    theirs = struct_pb2.TensorSpecProto(name="x:0", dtype=1)
    theirs.shape.dim.add(size=3)
    argument = plan_pb2.ServerAggregationConfig.IntrinsicArg(input_tensor=adopted(theirs))
    assert argument.input_tensor.SerializeToString() == theirs.SerializeToString()
    config = plan_pb2.ServerAggregationConfig(output_tensors=[adopted(theirs)])
    assert config.output_tensors[0].name == "x:0"


def test_a_message_that_nobody_here_knows_is_not() -> None:
    struct_pb2 = pytest.importorskip("google.protobuf.struct_pb2")
    with pytest.raises(KeyError):
        adopted(struct_pb2.Struct())
