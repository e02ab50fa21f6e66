"""Tensors for property tests of aggregators."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcp_core.aggregation.spec import DataType, Tensor, TensorSpec
from fcp_core.errors import MissingExtraError

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy
except ImportError as error:
    raise MissingExtraError("the conformance kit", "testing") from error


def tensors(spec: TensorSpec, unknown: int = 3) -> SearchStrategy[Tensor]:
    """Draw tensors of a specification, whose numbers are small integers.

    Small integers are added without rounding in every dtype, so that sums can be compared exactly.

    :param unknown: the size of dimensions that the specification leaves open.
    """
    shape = tuple(unknown if size < 0 else size for size in spec.shape)
    size = int(np.prod(shape, dtype=np.int64))
    elements: SearchStrategy[Any]
    if spec.dtype is DataType.STRING:
        elements = st.binary(max_size=3)
    else:
        low = 0 if spec.dtype is DataType.UINT64 else -100
        elements = st.integers(low, 100)

    def build(values: list[Any]) -> Tensor:
        tensor: Tensor = np.empty(size, spec.dtype.numpy)
        tensor[:] = values
        return tensor.reshape(shape)

    return st.lists(elements, min_size=size, max_size=size).map(build)


def unaligned(tensor: Tensor) -> Tensor:
    """Return a read-only copy at an odd address, as a view into received bytes is."""
    if tensor.dtype == object:
        return tensor
    buffer = bytearray(tensor.nbytes + 1)
    view: Tensor = np.frombuffer(buffer, tensor.dtype, tensor.size, offset=1)
    view = view.reshape(tensor.shape)
    view[...] = tensor
    return view


def resized(tensor: Tensor, size: int) -> Tensor:
    """Return a tensor with tiny (-1), small (0) or huge (1) numbers in place of small ones.

    Floats are multiplied by a power of two, so that their sums stay as exact as they were; their
    squares have no room. Integers are huge only, and then have no room in a double.
    """
    dtype = tensor.dtype
    if dtype.hasobject or not size:
        return tensor
    if dtype.kind == "f":
        return np.asarray(tensor * dtype.type(2.0 ** (size * (60 if dtype.itemsize == 4 else 500))))
    if size < 0:
        return tensor
    factor = 2 ** (21 if dtype.itemsize == 4 else 50) + 1
    limit = int(np.iinfo(dtype).max) // factor
    small = tensor <= limit
    if dtype.kind == "i":
        small &= tensor >= -limit
    return np.asarray(np.where(small, tensor * dtype.type(factor), tensor), dtype)
