"""Tensor specifications and intrinsics: what an aggregation session is configured with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A tensor in memory. String tensors are object arrays whose elements are ``bytes``.
Tensor = NDArray[Any]


class DataType(IntEnum):
    """The dtypes of the aggregation core; the numbers equal TensorFlow's."""

    FLOAT = 1
    DOUBLE = 2
    INT32 = 3
    STRING = 7
    INT64 = 9
    UINT64 = 23

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype, little endian; ``object`` for strings."""
        return _NUMPY[self]


_NUMPY: dict[DataType, np.dtype[Any]] = {
    DataType.FLOAT: np.dtype("<f4"),
    DataType.DOUBLE: np.dtype("<f8"),
    DataType.INT32: np.dtype("<i4"),
    DataType.STRING: np.dtype(object),
    DataType.INT64: np.dtype("<i8"),
    DataType.UINT64: np.dtype("<u8"),
}


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor; -1 is a dimension of unknown size."""

    name: str
    dtype: DataType
    shape: tuple[int, ...] = ()

    @property
    def is_fully_defined(self) -> bool:
        """Whether every dimension is known."""
        return all(size >= 0 for size in self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes a tensor takes; 0 if that is open, as of strings."""
        if not self.is_fully_defined or self.dtype is DataType.STRING:
            return 0
        return math.prod(self.shape) * self.dtype.numpy.itemsize

    def matches(self, tensor: Tensor) -> bool:
        """Whether *tensor* has this dtype, this rank and each known dimension."""
        return self.fits(tensor.dtype, tensor.shape)

    def fits(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
        """Whether a tensor of *dtype* and *shape* would match."""
        return (
            dtype == self.dtype.numpy
            and len(shape) == len(self.shape)
            and all(want in (-1, got) for want, got in zip(self.shape, shape, strict=True))
        )

    def __str__(self) -> str:
        """Return the form that error messages use: ``update/0: float[10,?]``."""
        dims = ",".join("?" if size < 0 else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype.name.lower()}[{dims}]"


@dataclass(frozen=True)
class Parameter:
    """A constant of an intrinsic, such as a clipping bound; unnamed ones have an empty name."""

    name: str
    value: Tensor = field(compare=False)


@dataclass(frozen=True)
class Intrinsic:
    """One aggregation: a URI, the tensors it reads and writes, its constants, what it nests."""

    uri: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    nested: tuple[Intrinsic, ...] = ()
