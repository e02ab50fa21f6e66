"""The two checkpoint formats of the protocol, in NumPy alone.

``open_checkpoint`` tells them apart by itself; ``write_checkpoint`` is told which one to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fcp_core.protocol.checkpoint.base import Checkpoint, Tensor, invalid
from fcp_core.protocol.checkpoint.federated_compute import (
    is_federated_compute,
    read_federated_compute,
    write_federated_compute,
)
from fcp_core.protocol.checkpoint.tf_v1 import (
    is_appended,
    is_table,
    read_appended,
    read_tf_v1,
    write_tf_v1,
)

#: The names of the formats.
Format = Literal["tf_v1", "federated_compute"]


def open_checkpoint(data: bytes | bytearray | memoryview, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint of either format without copying it.

    :param data: the whole file; it must not change while the checkpoint or its arrays are in use.
    :param verify: check the checksums that a TF V1 checkpoint has; the structure is always checked.
    :raises StatusError: INVALID_ARGUMENT if *data* is empty, of neither format, truncated or
        corrupt.
    """
    view = memoryview(data).toreadonly().cast("B")
    if not len(view):
        raise invalid("the checkpoint is empty: it has no bytes at all")
    if is_federated_compute(view):
        return read_federated_compute(view)
    if is_table(view):
        return read_tf_v1(view, verify=verify)
    if is_appended(view):
        return read_appended(view, verify=verify)
    raise invalid(
        f"{len(view)} bytes that are not a checkpoint: they neither begin with 'FCv1' nor end like "
        "a TF V1 checkpoint; the file may be truncated, or still compressed"
    )


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
    "Format",
    "Tensor",
    "open_checkpoint",
    "write_checkpoint",
    "write_federated_compute",
    "write_tf_v1",
]
