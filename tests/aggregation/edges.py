"""Intrinsics and aggregators, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.protocol.status import StatusError

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}


def spec(name="x", dtype=DataType.FLOAT, shape=(2,)):
    return TensorSpec(name, dtype, shape)


def intrinsic(uri, *inputs, outputs=None, parameters=(), nested=()):
    return Intrinsic(uri, inputs, inputs[:1] if outputs is None else outputs, parameters, nested)


def parameter(value, name=""):
    return Parameter(name, np.asarray(value))


def make(uri, *inputs, options=None, name=None, **others):
    return FACTORIES[name or uri].make(intrinsic(uri, *inputs, **others), options or {})


def feed(accumulator, *contributions):
    for contribution in contributions:
        tensors = [np.asarray(tensor) for tensor in contribution]
        accumulator.validate(tensors)
        accumulator.accumulate(tensors)
    return accumulator


def refusal(code, function, *args, **kwargs):
    with pytest.raises(StatusError) as caught:
        function(*args, **kwargs)
    assert caught.value.code is code
    return caught.value.message
