"""Jobs for the local engine, with checkpoints of their devices."""

from __future__ import annotations

import numpy as np

from fcp_aggregators.plugin import fcp_register_aggregators, fcp_register_engines
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import StatusError

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}
(LOCAL,) = fcp_register_engines()
VALUE = TensorSpec("v", DataType.INT64, (2,))
SUM = Intrinsic("federated_sum", (VALUE,), (TensorSpec("sum", DataType.INT64, (2,)),))
X = TensorSpec("x", DataType.FLOAT, ())
MEAN = Intrinsic("federated_mean", (X,), (TensorSpec("mean", DataType.FLOAT, ()),))
JOB = FoldJob(configuration_to_proto([SUM, MEAN]).SerializeToString())
MEDIAN = FoldJob(JOB.configuration, {"federated_mean": "median"}, max_kept_bytes=12)
MODES = [{"workers": 0}, {"workers": 2, "inline_bytes": 0, "inline_added_bytes": 0}, {"workers": 3}]


def blob(number, checkpoint_format="tf_v1"):
    """Every contribution's digit is its own, so that the sum tells which ones are in it."""
    tensors = {"v": np.array([10**number, 1]), "x": np.array(number, "f4")}
    return write_checkpoint(tensors, checkpoint_format)


def code_of(future):
    error = future.exception(timeout=60)
    assert isinstance(error, StatusError)
    return error.code


def result(data):
    return {name: tensor.tolist() for name, tensor in open_checkpoint(data).items()}
