"""How a dtype travels when the checkpoint format or an aggregator has no place for it.

A V1 checkpoint cannot hold uint32, uint64 and bfloat16; the aggregation core knows float, double,
int32, int64, uint64 and string alone. A tensor of another dtype is converted on one side and back
on the other: small integers and booleans to int32, uint32 to int64, uint64 to the int64 of the same
bits (where they are compared the highest bit is flipped, so that the order is the same; a sum takes
its two halves, which leave the sums room), half precision to float, a complex number to a pair of
floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fcp_core.protocol.status import Code, StatusError

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
    :param halves: whether a uint64 is written as its higher and its lower 32 bits.
    """

    dtype: Any
    wire: Any
    suffix: tuple[int, ...] = ()
    ordered: bool = False
    halves: bool = False

    def encode(self, tensor: Any) -> Any:
        """Convert a TensorFlow tensor to its written form."""
        if self.halves:
            tensor = tf.convert_to_tensor(tensor)
            high = tf.bitwise.right_shift(tensor, tf.constant(32, tf.uint64))
            low = tf.bitwise.bitwise_and(tensor, tf.constant(2**32 - 1, tf.uint64))
            return tf.stack([tf.cast(high, tf.int64), tf.cast(low, tf.int64)], axis=-1)
        converted = _convert(tensor, self.dtype, self.wire)
        return tf.bitwise.bitwise_xor(converted, _HIGHEST_BIT) if self.ordered else converted

    def decode(self, tensor: Any) -> Any:
        """Convert a TensorFlow tensor back from its written form."""
        if self.halves:
            return tf.bitcast((tensor[..., 0] * 2**32) + tensor[..., 1], tf.uint64)
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

    def check(self, name: str, array: Array) -> None:
        """Check that what was written has a place in the dtype itself, as a sum may not have.

        :param name: the tensor's, for the message.
        :raises StatusError: OUT_OF_RANGE.
        """
        if self.halves:
            high, low = np.moveaxis(array, -1, 0)
            beyond = (high + (low >> 32)) >> 32 != 0
        elif self.dtype in (tf.half, tf.bfloat16):
            with np.errstate(over="ignore"):
                beyond = np.isinf(self.decode_array(array)) & np.isfinite(array)
        elif self.dtype in _AGGREGATED and self.dtype.is_integer:
            beyond = (array < self.dtype.min) | (array > self.dtype.max)
        else:
            return
        if beyond.any():
            count, kind = np.count_nonzero(beyond), self.dtype.name
            wide = "float32" if self.dtype.is_floating else "int64"
            raise StatusError(
                Code.OUT_OF_RANGE,
                f"the aggregate {name!r} has {count} numbers out of the range of {kind}; "
                f"have the client cast to {wide} what may become so large",
            )

    def _convert_array(self, array: Array, target: Any) -> Array:
        if self.dtype == self.wire:
            return array
        if self.halves:
            if target == self.wire:
                halves = [array >> np.uint64(32), array & np.uint64(2**32 - 1)]
                return np.asarray(np.stack(halves, axis=-1), np.int64)
            high, low = np.moveaxis(np.asarray(array).astype(np.uint64), -1, 0)
            return np.asarray((high << np.uint64(32)) + low)
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
        if uri == "federated_sum":
            return Encoding(dtype, tf.int64, (2,), halves=True)
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
