"""Folds that add in one go, by both kinds of loops."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import CheckpointReader, write_checkpoint
from fcp_core.protocol.checkpoint.kernels import NumpyKernels, compiled_kernels
from fcp_core.protocol.status import StatusError

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}
LOOPS = [NumpyKernels(), *filter(None, [compiled_kernels()])]
EVERY = pytest.mark.parametrize("kernels", LOOPS, ids=lambda kernels: kernels.name)
FORMATS = pytest.mark.parametrize("format", ["tf_v1", "federated_compute"])

FLOATS = [DataType.FLOAT, DataType.DOUBLE]


def total(name, value, weight=None, uri="federated_sum"):
    inputs = (value,) if weight is None else (value, weight)
    return Intrinsic(uri, inputs, (replace(value, name=name),))


def vector(name, dtype=DataType.FLOAT, shape=(3,)):
    return TensorSpec(name, dtype, shape)


def attempt(function, *args):
    """Return the refusal of a contribution, or None."""
    try:
        function(*args)
    except StatusError as error:
        return error.code, error.message
    return None


def take(aggregator, open_, blob):
    aggregator.accumulate(open_(blob))


def fold(bound, tensors, format, kernels, times=5):
    aggregator = CheckpointAggregator(bound, kernels=kernels)
    reader = CheckpointReader(kernels=kernels)
    for _ in range(times):
        aggregator.accumulate(reader.open(write_checkpoint(tensors, format)))
    return aggregator
