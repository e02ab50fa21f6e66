"""Checkpoints put together by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import aggregation_tensor_pb2
from fcp_core.protocol.protos import tensorflow_saved_tensor_slice_pb2 as slice_pb2
from fcp_core.protocol.status import Code, StatusError


def refused(data: bytes, **options: bool) -> str:
    """Return the message of the refusal to open, or to read, some tensor of *data*."""
    with pytest.raises(StatusError) as caught:
        dict(open_checkpoint(data, **options))
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


def contents(data: bytes, *, verify: bool = True) -> dict[str, Any] | None:
    """Return all tensors, or None if the file, or one of them, is refused as it should be."""
    try:
        return {k: (v.dtype, v.tolist()) for k, v in open_checkpoint(data, verify=verify).items()}
    except StatusError as error:
        if error.code is not Code.INVALID_ARGUMENT:
            raise
        return None


def listed(
    number: int, *dims: int, name: str = "a", more: bytes = b"", **fields: Any
) -> slice_pb2.SavedTensorSlices:
    """Return the entry that lists one tensor."""
    meta = slice_pb2.SavedTensorSlices()
    tensor = meta.meta.tensor.add(name=name, type=number)
    for size in dims:
        tensor.shape.dim.add(size=size)
    return meta


def stored(rank: int, name: str = "a", **fields: Any) -> slice_pb2.SavedTensorSlices:
    """Return the entry that holds one whole tensor."""
    value = slice_pb2.SavedTensorSlices()
    value.data.name = name
    for _ in range(rank):
        value.data.slice.extent.add()
    for key, values in fields.items():
        getattr(value.data.data, key).extend(values)
    return value


HUGE = 2**62


def message(**fields: Any) -> bytes:
    proto = aggregation_tensor_pb2.TensorProto(**fields)
    return proto.SerializeToString()  # type: ignore[no-any-return]
