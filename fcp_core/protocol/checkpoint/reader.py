"""Opening checkpoints, one by one or many of a kind."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TypeVar

from fcp_core.protocol.checkpoint.base import Checkpoint, invalid
from fcp_core.protocol.checkpoint.federated_compute import (
    is_federated_compute,
    read_federated_compute,
)
from fcp_core.protocol.checkpoint.layout import Layout
from fcp_core.protocol.checkpoint.tf_v1 import is_appended, is_table, read_appended, read_tf_v1
from fcp_core.protocol.kernels import Kernels, default_kernels

T = TypeVar("T")

#: How many sizes of checkpoints a reader remembers.
_SIZES = 16


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


class CheckpointReader:
    """Opens checkpoints as :func:`open_checkpoint` does, faster where they are alike. Thread-safe.

    It remembers the structure of the last checkpoints. One of the same structure is not parsed
    again: its bytes are compared, its checksums computed, and its ``layout`` is that of the others.

    :param verify: check the checksums that a TF V1 checkpoint has; the structure is always checked.
    :param kernels: what compares bytes and computes checksums; None: the fastest installed.
    """

    def __init__(self, *, verify: bool = True, kernels: Kernels | None = None) -> None:
        self._verify = verify
        #: What compares bytes and computes checksums.
        self.kernels = kernels or default_kernels()
        self._lock = threading.Lock()
        # The last layout of each size of file. A size is worth a layout once it comes again: with
        # strings or packed integers in it, nearly every file has another one.
        self._layouts: OrderedDict[int, Layout] = OrderedDict()
        self._sizes: OrderedDict[int, None] = OrderedDict()

    def open(self, data: bytes | bytearray | memoryview) -> Checkpoint:
        """Open a checkpoint without copying it.

        :param data: the whole file; it must not change while the checkpoint or its arrays are in
            use.
        :raises StatusError: INVALID_ARGUMENT if *data* is empty, of neither format, truncated or
            corrupt.
        """
        view = memoryview(data).toreadonly().cast("B")
        size = len(view)
        layout = self._layouts.get(size)
        if layout is not None:
            checkpoint = layout.open(view, verify=self._verify)
            if checkpoint is not None:
                return checkpoint
        checkpoint = open_checkpoint(view, verify=self._verify)
        with self._lock:
            again = size in self._sizes
            _remember(self._sizes, size, None)
        if again:
            try:
                checkpoint.layout = Layout(checkpoint, self.kernels)
            except ValueError:
                return checkpoint
            with self._lock:
                _remember(self._layouts, size, checkpoint.layout)
        return checkpoint


def _remember(memory: OrderedDict[int, T], size: int, value: T) -> None:
    memory[size] = value
    memory.move_to_end(size)
    if len(memory) > _SIZES:
        memory.popitem(last=False)
