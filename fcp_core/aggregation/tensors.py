"""The aggregation core's tensor messages and the tensors in memory, both ways."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fcp_core.aggregation.spec import DataType, Tensor, TensorSpec
from fcp_core.protocol.protos import aggregation_tensor_pb2 as tensor_pb2
from fcp_core.protocol.status import Code, StatusError

_BY_NUMPY = {dtype.numpy: dtype for dtype in DataType}

#: The typed field of each dtype; a uint64 tensor can be written as content only.
_VALUE_FIELDS = {
    "float_val": DataType.FLOAT,
    "double_val": DataType.DOUBLE,
    "int_val": DataType.INT32,
    "int64_val": DataType.INT64,
    "string_val": DataType.STRING,
}


def data_type(number: int, what: str) -> DataType:
    """Return the dtype of a wire number.

    :param what: what carries it, for the message.
    :raises StatusError: INVALID_ARGUMENT if the aggregation core has no such dtype.
    """
    try:
        return DataType(number)
    except ValueError:
        known = ", ".join(f"{dtype.name} ({dtype.value})" for dtype in DataType)
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{what} has dtype number {number}; the dtypes are {known}"
        ) from None


def data_type_of(tensor: Tensor) -> DataType:
    """Return the dtype of a tensor in memory.

    :raises StatusError: INVALID_ARGUMENT if the aggregation core has no such dtype.
    """
    try:
        return _BY_NUMPY[tensor.dtype]
    except KeyError:
        known = ", ".join(str(dtype) for dtype in _BY_NUMPY)
        raise StatusError(
            Code.INVALID_ARGUMENT, f"a tensor of dtype {tensor.dtype}; the dtypes are {known}"
        ) from None


def tensor_nbytes(tensor: Tensor) -> int:
    """Return how many bytes of memory the elements of a tensor take, strings included."""
    if tensor.dtype != object:
        return int(tensor.nbytes)
    return int(tensor.nbytes) + sum(len(element) for element in tensor.flat)


def spec_from_proto(proto: tensor_pb2.TensorSpecProto) -> TensorSpec:
    """Read a specification.

    :raises StatusError: INVALID_ARGUMENT for an unknown dtype or a dimension below -1.
    """
    what = f"tensor {proto.name!r}"
    shape = tuple(proto.shape.dim_sizes)
    if any(size < -1 for size in shape):
        raise StatusError(Code.INVALID_ARGUMENT, f"{what} has a dimension below -1: {shape}")
    return TensorSpec(proto.name, data_type(proto.dtype, what), shape)


def spec_to_proto(spec: TensorSpec) -> tensor_pb2.TensorSpecProto:
    """Write a specification."""
    proto = tensor_pb2.TensorSpecProto(name=spec.name, dtype=int(spec.dtype))  # type: ignore[arg-type]
    proto.shape.dim_sizes.extend(spec.shape)
    return proto


def tensor_from_proto(proto: tensor_pb2.TensorProto) -> Tensor:
    """Read a tensor, from its content or from its typed values; numeric content is not copied.

    :raises StatusError: INVALID_ARGUMENT for an unknown dtype, a negative dimension, values that do
        not fit the dtype or the shape, or more than one representation; FAILED_PRECONDITION for
        content whose length is not that of the shape.
    """
    what = f"tensor {proto.name!r}" if proto.name else "a tensor"
    dtype = data_type(proto.dtype, what)
    shape = tuple(proto.shape.dim_sizes)
    if any(size < 0 for size in shape):
        raise StatusError(Code.INVALID_ARGUMENT, f"{what} has a negative dimension: {shape}")
    count = math.prod(shape)
    present = [field for field in _VALUE_FIELDS if len(getattr(proto, field))]
    if len(present) + bool(proto.content) > 1:
        found = ", ".join(present + ["content"] * bool(proto.content))
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{what} has its values in more than one field: {found}"
        )
    if present:
        return _from_values(proto, present[0], dtype, shape, what)
    if not proto.content and count:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{what} has no values, where its shape {shape} needs {count}"
        )
    if dtype is DataType.STRING:
        return _strings(_split_strings(proto.content, count, what), shape)
    if len(proto.content) != count * dtype.numpy.itemsize:
        raise StatusError(
            Code.FAILED_PRECONDITION,
            f"{what} has {len(proto.content)} bytes of content, where {dtype.name.lower()}{shape} "
            f"needs {count * dtype.numpy.itemsize}",
        )
    return np.frombuffer(proto.content, dtype.numpy).reshape(shape)


def tensor_to_proto(tensor: Tensor, name: str = "") -> tensor_pb2.TensorProto:
    """Write a tensor, with its values as content."""
    dtype = data_type_of(tensor)
    proto = tensor_pb2.TensorProto(name=name, dtype=int(dtype))  # type: ignore[arg-type]
    proto.shape.dim_sizes.extend(tensor.shape)
    if dtype is DataType.STRING:
        elements = list(tensor.flat)
        lengths = b"".join(_varint(len(element)) for element in elements)
        proto.content = lengths + b"".join(elements)
    else:
        proto.content = tensor.tobytes()
    return proto


def bytes_field(number: int, pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return a protobuf field of bytes in pieces, without a copy of what is in it.

    :param number: the field's, below 16.
    :param pieces: what it holds; a view has items of one byte.
    """
    return [bytes([number << 3 | 2]) + _varint(sum(map(len, pieces))), *pieces]


def bytes_of(array: Tensor) -> memoryview:
    """Return a view on the bytes of an array of numbers that is in one piece."""
    return array.reshape(-1).view(np.uint8).data


def _from_values(
    proto: tensor_pb2.TensorProto, field: str, dtype: DataType, shape: tuple[int, ...], what: str
) -> Tensor:
    values = getattr(proto, field)
    if _VALUE_FIELDS[field] is not dtype:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"{what} is of dtype {dtype.name.lower()} and has its values in {field}",
        )
    if len(values) != math.prod(shape):
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"{what} has {len(values)} values, where its shape {shape} needs {math.prod(shape)}",
        )
    if dtype is DataType.STRING:
        return _strings((text.encode() for text in values), shape)
    return np.array(values, dtype.numpy).reshape(shape)


def _strings(elements: Iterable[bytes], shape: tuple[int, ...]) -> Tensor:
    tensor: np.ndarray[Any, Any] = np.empty(math.prod(shape), object)
    tensor[:] = list(elements)
    return tensor.reshape(shape)


def _split_strings(content: bytes, count: int, what: str) -> list[bytes]:
    # Each length takes a byte at least, so a count beyond that is refused before the loop.
    lengths, position = [], 0
    too_short = StatusError(
        Code.INVALID_ARGUMENT, f"{what} has too little content for {count} strings"
    )
    if count > len(content):
        raise too_short
    for _ in range(count):
        value = shift = 0
        while True:
            if position >= len(content) or shift > 63:
                raise too_short
            byte = content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(value)
    if position + sum(lengths) > len(content):
        raise too_short
    elements = []
    for length in lengths:
        elements.append(content[position : position + length])
        position += length
    return elements


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tensor_of(checkpoint: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor of a checkpoint.

    :raises StatusError: NOT_FOUND if there is none of that name.
    """
    try:
        return checkpoint[name]
    except KeyError:
        names = ", ".join(map(repr, itertools.islice(checkpoint, 5))) or "none"
        more = " and more" if len(checkpoint) > 5 else ""
        raise StatusError(
            Code.NOT_FOUND, f"the checkpoint has no tensor {name!r}; it has {names}{more}"
        ) from None
