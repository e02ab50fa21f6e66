"""Computations and selections for programs with mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow_federated as tff

from fcp_core.protocol.protos import plan_pb2

SELECTOR = plan_pb2.ExampleSelector(collection_uri="app:/x")
STATE = tff.FederatedType(np.int32, tff.SERVER)
DATA = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def count(examples: Any) -> Any:
    return examples.reduce(np.int32(0), lambda n, _: n + 1)


@tff.federated_computation(STATE, DATA)
def good(state: Any, data: Any) -> Any:
    return state, tff.federated_sum(tff.federated_map(count, data))
