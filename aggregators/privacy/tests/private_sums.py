"""Sums and means with noise, and what is contributed to them."""

import hashlib
import math

import numpy as np

from fcp_core.aggregation.aggregator import JOINT_URI
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec

SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("a", DataType.FLOAT, (2,)),),
    (TensorSpec("A", DataType.FLOAT, (2,)),),
)

MEAN = Intrinsic(
    "federated_mean",
    (TensorSpec("b", DataType.DOUBLE, (3, 1)),),
    (TensorSpec("B", DataType.DOUBLE, (3, 1)),),
)

COUNT = Intrinsic(
    "federated_sum", (TensorSpec("n", DataType.INT64),), (TensorSpec("N", DataType.INT64),)
)

BOTH = Intrinsic(JOINT_URI, nested=(SUM, MEAN))

OPTIONS = {"clip": 5.0, "noise_multiplier": 1.0}

ADAPTIVE_OPTIONS = {
    "initial_clip": 0.1,
    "quantile": 0.5,
    "clip_learning_rate": 0.2,
    "noise_multiplier": 1.0,
    "clients": 100,
}

MATRIX_OPTIONS = {**OPTIONS, "rounds": 8, "buffers": 3}


def seeded(seed):
    """Return entropy that follows from a seed."""
    count = 0

    def entropy(size):
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{seed}/{count}".encode()).digest(size)

    return entropy


def contribution(size, value, intrinsic=BOTH):
    """Return a contribution of a norm."""
    ones = [np.full(spec.shape, value, spec.dtype.numpy) for spec in inputs(intrinsic)]
    norm = math.sqrt(sum(float(np.sum(np.square(one))) for one in ones))
    return [(one * (size / norm)).astype(one.dtype) for one in ones]


def inputs(intrinsic):
    return [part.inputs[0] for part in intrinsic.nested or (intrinsic,)]
