"""References to the values of a round that may still be running."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fcp_core.protocol.checkpoint import Checkpoint, open_checkpoint
from fcp_core.protocol.status import StatusError
from fcp_platform import encoding

# The references of one round share a checkpoint; it is checked and indexed once.
_opened: weakref.WeakKeyDictionary[asyncio.Future[bytes], Checkpoint] = weakref.WeakKeyDictionary()


class CheckpointTensorReference(tff.program.MaterializableValueReference):  # type: ignore[misc]
    """A tensor of a checkpoint that will be there when its round has ended.

    :param tensor_name: the tensor's name in the checkpoint.
    :param dtype: its dtype, NumPy's or TensorFlow's.
    :param shape: its shape; None for unknown dimensions, or for an unknown rank.
    :param checkpoint_future: gives the checkpoint's bytes, or the error of the round.
    """

    def __init__(
        self,
        tensor_name: str,
        dtype: Any,
        shape: Sequence[int | None] | None,
        checkpoint_future: asyncio.Future[bytes],
    ) -> None:
        self._tensor_name = tensor_name
        if isinstance(dtype, tf.DType):
            dtype = np.str_ if dtype == tf.string else dtype.as_numpy_dtype
        self._type_signature = tff.TensorType(dtype, shape)
        self._future = checkpoint_future
        self._value: Any = None

    @property
    def type_signature(self) -> Any:
        """The ``tff.TensorType`` of the value."""
        return self._type_signature

    async def get_value(self) -> Any:
        """Wait for the round and return the value: an array, a NumPy scalar or bytes.

        Cancelling this leaves the round as it is: others may wait for it. A round ends when the
        context or the event loop does.

        :raises tf.errors.NotFoundError: if the checkpoint has no such tensor.
        :raises tf.errors.DataLossError: if the checkpoint is broken.
        :raises tf.errors.InvalidArgumentError: if the tensor has another dtype.
        :raises ValueError: outside of eager mode, and if the round failed.
        """
        if not tf.executing_eagerly():
            raise ValueError("get_value is only supported in eager mode.")
        if self._value is None:
            self._value = self._read(await asyncio.shield(self._future))
        return self._value

    def _read(self, data: bytes) -> Any:
        name = self._tensor_name
        checkpoint = _opened.get(self._future)
        try:
            if checkpoint is None:
                checkpoint = _opened[self._future] = open_checkpoint(data)
            if name not in checkpoint:
                raise tf.errors.NotFoundError(
                    None, None, f"Key {name} not found in the round's checkpoint"
                )
            array = checkpoint.get_tensor(name)
        except StatusError as error:
            raise tf.errors.DataLossError(None, None, error.message) from error
        form = encoding.stored(name, self._type_signature.dtype)
        found = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
        if found != form.wire:
            raise tf.errors.InvalidArgumentError(
                None, None, f"tensor {name} has dtype {found.name}, expected {form.wire.name}"
            )
        # A copy: the array is a view on the checkpoint, which would live as long as the value.
        return form.decode_array(array).copy()[()]

    def __eq__(self, other: object) -> bool:
        """Whether both are the same tensor of the same round."""
        if self is other:
            return True
        if not isinstance(other, CheckpointTensorReference):
            return NotImplemented
        return (
            self._tensor_name == other._tensor_name
            and self._type_signature == other._type_signature
            and self._future is other._future
        )

    def __hash__(self) -> int:
        """Return a hash that equal references share."""
        return hash((self._tensor_name, id(self._future)))
