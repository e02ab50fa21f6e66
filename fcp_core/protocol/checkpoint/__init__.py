"""The two checkpoint formats of the protocol, in NumPy alone.

``open_checkpoint`` recognises the format; ``write_checkpoint`` takes it as an argument. Who
reads many checkpoints of one task uses a ``CheckpointReader``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fcp_core.protocol.checkpoint.base import Tensor
from fcp_core.protocol.checkpoint.federated_compute import write_federated_compute
from fcp_core.protocol.checkpoint.kernels import CheckpointReader
from fcp_core.protocol.checkpoint.layout import Checkpoint, Layout
from fcp_core.protocol.checkpoint.reader import open_checkpoint
from fcp_core.protocol.checkpoint.tf_v1 import write_tf_v1

#: The names of the formats.
Format = Literal["tf_v1", "federated_compute"]


def write_checkpoint(tensors: Mapping[str, Tensor], format: Format) -> bytes:
    """Write a checkpoint.

    :param tensors: by name; arrays of text or bytes become string tensors.
    :param format: ``tf_v1`` (what TensorFlow reads) or ``federated_compute``.
    :raises StatusError: INVALID_ARGUMENT for a tensor that the format cannot hold.
    :raises ValueError: for an unknown format.
    """
    if format == "tf_v1":
        return write_tf_v1(tensors)
    if format == "federated_compute":
        return write_federated_compute(tensors)
    raise ValueError(f"unknown checkpoint format {format!r}: use 'tf_v1' or 'federated_compute'")


__all__ = [
    "Checkpoint",
    "CheckpointReader",
    "Format",
    "Layout",
    "Tensor",
    "open_checkpoint",
    "write_checkpoint",
    "write_federated_compute",
    "write_tf_v1",
]
