"""What both checkpoint formats share: entries, and checks of shapes and strings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcp_core.protocol.status import Code, StatusError

#: A tensor in memory. String tensors are object arrays whose elements are ``bytes``.
Tensor = NDArray[Any]

#: One tensor or its serialized form must fit the 2 GiB that a protobuf message may have.
MAX_MESSAGE_BYTES = 2**31 - 1

#: The most tensors that one checkpoint may have. A model has thousands; a file of a gigabyte could
#: name so many tiny ones that the table of their names would need many times that.
MAX_TENSORS = 100_000

# NumPy 1 has no more dimensions than this; no model comes near it.
_MAX_RANK = 32


def invalid(message: str) -> StatusError:
    """Return the error for a checkpoint, or a tensor, that cannot be read or written."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def check_tensors(count: int) -> None:
    """Refuse a checkpoint with too many tensors.

    :raises StatusError: INVALID_ARGUMENT if *count* is over :data:`MAX_TENSORS`.
    """
    if count > MAX_TENSORS:
        raise invalid(f"the checkpoint has more than {MAX_TENSORS} tensors, or parts of tensors")


#: Where some bytes of a checkpoint begin and end.
Span = tuple[int, int]


class Entry(ABC):
    """One tensor of an opened checkpoint, not decoded yet: what it is, and where its bytes lie.

    It does not hold the checkpoint's bytes, so that it serves every checkpoint in which the same
    things lie in the same places.
    """

    @abstractmethod
    def spec(self) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Return dtype and shape without decoding.

        :raises StatusError: INVALID_ARGUMENT if either cannot be represented.
        """

    @abstractmethod
    def tensor(self, data: memoryview) -> Tensor:
        """Decode; numeric tensors that are stored as such are views on *data*.

        :raises StatusError: INVALID_ARGUMENT if the stored data do not fit dtype and shape.
        """

    @abstractmethod
    def values(self) -> Sequence[Span]:
        """Return the spans that opening a checkpoint does not look into."""

    @abstractmethod
    def elements(self, data: memoryview) -> Span | None:
        """Return the span of the elements, if they lie in one piece and as they are in memory.

        None if they do not, or if :meth:`tensor` would refuse them.
        """


def check_shape(name: str, dims: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return *dims* as a shape that NumPy can hold.

    :param itemsize: bytes of one element in memory.
    :raises StatusError: INVALID_ARGUMENT for negative sizes, too many dimensions or more bytes than
        can be addressed.
    """
    if len(dims) > _MAX_RANK:
        raise invalid(
            f"tensor {name!r} has {len(dims)} dimensions; the most that can be read is {_MAX_RANK}"
        )
    if any(size < 0 for size in dims):
        raise invalid(f"tensor {name!r} has a negative dimension in its shape {list(dims)}")
    # NumPy leaves zeros out of this product too, so an empty tensor may be refused.
    if math.prod(size for size in dims if size) * itemsize > np.iinfo(np.int64).max:
        raise invalid(f"tensor {name!r} has a shape too large to address: {list(dims)}")
    return tuple(dims)


def check_count(name: str, shape: tuple[int, ...], values: int) -> None:
    """Check that *values* elements fill *shape*.

    :raises StatusError: INVALID_ARGUMENT if not.
    """
    wanted = math.prod(shape)
    if values != wanted:
        raise invalid(
            f"tensor {name!r} has the shape {list(shape)}, so {wanted} values, but {values} stored"
        )


def string_tensor(values: list[bytes], shape: tuple[int, ...]) -> Tensor:
    """Return an object array of *values*, which must fill *shape*."""
    flat = np.empty(len(values), dtype=object)
    flat[:] = values
    return flat.reshape(shape)


def string_values(name: str, tensor: Tensor) -> list[bytes]:
    """Return the elements of a string tensor in row-major order; text becomes UTF-8.

    NumPy itself strips trailing NULs from elements of ``S`` and ``U`` arrays; use object arrays
    where they matter.

    :raises StatusError: INVALID_ARGUMENT for an element that is neither bytes nor text.
    """
    values = []
    for value in tensor.reshape(-1).tolist():
        if isinstance(value, bytes):
            values.append(value)
        elif isinstance(value, str):
            values.append(encode_text(f"an element of tensor {name!r}", value))
        else:
            raise invalid(
                f"tensor {name!r} has an element of type {type(value).__name__}; elements of an "
                "object array must be bytes or str"
            )
    return values


def check_unmasked(name: str, value: Any) -> None:
    """Refuse a masked array of which something is masked: a tensor has no mask.

    :raises StatusError: INVALID_ARGUMENT.
    """
    if isinstance(value, np.ma.MaskedArray) and np.any(value.mask):
        raise invalid(
            f"tensor {name!r} is an array of which a part is masked, which a checkpoint cannot "
            "say: what is behind the mask would count. Fill it first"
        )


def encode_text(what: str, text: str, errors: str = "strict") -> bytes:
    """Return *text* in UTF-8.

    :raises StatusError: INVALID_ARGUMENT if it holds surrogates that *errors* does not allow.
    """
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise invalid(f"{what} cannot be written as UTF-8: {error.reason}") from None


def little_endian_bytes(tensor: Tensor, dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    """Return the elements in row-major order as bytes, without a copy if they lie so already."""
    return np.ascontiguousarray(tensor, dtype=dtype).reshape(-1).view(np.uint8)
