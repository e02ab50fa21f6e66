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
