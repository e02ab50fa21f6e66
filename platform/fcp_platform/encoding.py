"""How a dtype travels when the checkpoint format or an aggregator has no place for it.

A V1 checkpoint cannot hold uint32, uint64 and bfloat16; the aggregation core knows float, double,
int32, int64, uint64 and string alone. A tensor of another dtype is converted on one side and back
on the other: small integers and booleans to int32, uint32 to int64, uint64 to the int64 of the same
bits (additions wrap alike; where they are compared the highest bit is flipped, so that the order is
the same), half precision to float, a complex number to a pair of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

_STORED = {tf.uint32: tf.int64, tf.bfloat16: tf.float32}

_AGGREGATED = {
    tf.bool: tf.int32,
    tf.int8: tf.int32,
    tf.int16: tf.int32,
    tf.uint8: tf.int32,
    tf.uint16: tf.int32,
    tf.uint32: tf.int64,
    tf.half: tf.float32,
    tf.bfloat16: tf.float32,
}

_PLAIN = (tf.float32, tf.float64, tf.int32, tf.int64, tf.string)
_HIGHEST_BIT = np.int64(-(2**63))
_COMPLEX = {tf.complex64: tf.float32, tf.complex128: tf.float64}


@dataclass(frozen=True)
class Encoding:
    """A pair of conversions: how a tensor is written, and how it is read back.

    :param dtype: the dtype of the tensor itself.
    :param wire: the dtype that is written.
    :param suffix: the dimensions that writing appends to the shape.
    :param ordered: whether the written numbers, of the same bits, are to be in the same order.
    """

    dtype: Any
    wire: Any
    suffix: tuple[int, ...] = ()
    ordered: bool = False

    def encode(self, tensor: Any) -> Any:
        """Convert a TensorFlow tensor to its written form."""
        converted = _convert(tensor, self.dtype, self.wire)
        return tf.bitwise.bitwise_xor(converted, _HIGHEST_BIT) if self.ordered else converted

    def decode(self, tensor: Any) -> Any:
        """Convert a TensorFlow tensor back from its written form."""
        if self.ordered:
            tensor = tf.bitwise.bitwise_xor(tensor, _HIGHEST_BIT)
        return _convert(tensor, self.wire, self.dtype)

    def encode_array(self, array: Any) -> Array:
        """Convert a NumPy array to its written form."""
        if self.dtype == tf.string:
            return _strings(array)
        return self._convert_array(np.asarray(array, self.dtype.as_numpy_dtype), self.wire)

    def decode_array(self, array: Array) -> Array:
        """Convert a NumPy array back from its written form."""
        return self._convert_array(array, self.dtype)

    def _convert_array(self, array: Array, target: Any) -> Array:
        if self.dtype == self.wire:
            return array
        if self.suffix:
            # A complex number's parts lie next to each other, as the pair of floats does.
            shape = (*array.shape, 2) if target == self.wire else array.shape[:-1]
            array = np.ascontiguousarray(array).reshape(-1).view(target.as_numpy_dtype)
            return array.reshape(shape)
        if self.dtype == tf.uint64:
            flipped = np.uint64(1 << 63) if self.ordered else np.uint64(0)
            if target == tf.int64:
                return np.asarray(array ^ flipped).astype(np.int64)
            return np.asarray(array.astype(np.uint64) ^ flipped)
        return array.astype(target.as_numpy_dtype)


def stored(name: str, dtype: Any) -> Encoding:
    """Return how a tensor is kept in a V1 checkpoint.

    :raises TypeError: naming the tensor, if there is no way.
    """
    dtype = tf.as_dtype(dtype)
    if dtype == tf.uint64:
        return Encoding(dtype, tf.int64)
    if dtype in _STORED:
        return Encoding(dtype, _STORED[dtype])
    if dtype in _AGGREGATED or dtype in _PLAIN or dtype in _COMPLEX:
        return Encoding(dtype, dtype)
    raise TypeError(f"tensor {name!r} has the dtype {dtype.name}, which no checkpoint can hold")


def aggregated(name: str, uri: str, dtype: Any) -> Encoding:
    """Return how a tensor is handed to the aggregator of an intrinsic, and taken back.

    :raises TypeError: naming the tensor and the intrinsic, if the aggregator would compute
        something else with the converted values.
    """
    dtype = tf.as_dtype(dtype)
    if dtype in _PLAIN:
        return Encoding(dtype, dtype)
    if dtype == tf.uint64:
        return Encoding(dtype, tf.int64, ordered=uri in ("federated_min", "federated_max"))
    if dtype in _COMPLEX:
        return Encoding(dtype, _COMPLEX[dtype], (2,))
    if dtype in _AGGREGATED:
        return Encoding(dtype, _AGGREGATED[dtype])
    raise TypeError(
        f"{uri} cannot aggregate tensor {name!r} of dtype {dtype.name}; cast it on the client"
    )


def _convert(tensor: Any, source: Any, target: Any) -> Any:
    if source == target:
        return tensor
    same_bits = {source, target} == {tf.uint64, tf.int64} or source.is_complex or target.is_complex
    convert: Callable[[Any, Any], Any] = tf.bitcast if same_bits else tf.cast
    return convert(tensor, target)


def _strings(array: Any) -> Array:
    """Return an object array of bytes; text becomes UTF-8."""
    values = np.asarray(array, dtype=object)
    flat = [v.encode() if isinstance(v, str) else bytes(v) for v in values.reshape(-1).tolist()]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(values.shape)
