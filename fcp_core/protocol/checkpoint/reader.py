"""Opening a checkpoint of either format."""

from __future__ import annotations

from fcp_core.protocol.checkpoint.base import invalid
from fcp_core.protocol.checkpoint.federated_compute import (
    is_federated_compute,
    read_federated_compute,
)
from fcp_core.protocol.checkpoint.layout import Checkpoint
from fcp_core.protocol.checkpoint.tf_v1 import is_appended, is_table, read_appended, read_tf_v1


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
