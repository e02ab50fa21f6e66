"""Computations, lowered and run, and the same in TFF's own runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fcp_platform.runtime import LocalRuntime

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

from fcp_platform import encoding, naming, values

DATA = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)
CLIENTS = [[b"1", b"2"], [b"40"], [b"3", b"3", b"5"]]


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[LocalRuntime]:
    with LocalRuntime() as running:
        yield running


def at_server(type_spec: Any) -> Any:
    return tff.FederatedType(type_spec, tff.SERVER)


def tf_map(function: Callable[..., Any], *values: Any) -> Any:
    """Map a Python function of tensors over federated values."""
    traced = tff.tensorflow.computation(function)
    return tff.federated_map(traced, values[0] if len(values) == 1 else values)


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def total(examples: Any) -> Any:
    return examples.reduce(np.float32(0), lambda sum_, x: sum_ + tf.strings.to_number(x))


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def count(examples: Any) -> Any:
    return examples.reduce(np.int32(0), lambda sum_, _: sum_ + 1)


def check(run_round: Callable[..., Any], comp: Any, state: Any, clients: Any = CLIENTS) -> None:
    """Compare a round with TFF's own; floats may differ by rounding."""
    expected = comp(state, clients)
    wanted_by_leaf: dict[naming.Leaf, Any] = {}
    for prefix, value, type_spec in zip(
        (naming.STATE, naming.METRICS), expected, comp.type_signature.result, strict=True
    ):
        leaves = values.flatten(value, type_spec, prefix)
        wanted_by_leaf.update((leaf, values.as_array(leaf, each)) for leaf, each in leaves)
    found = run_round(comp, state, clients)
    assert list(found) == [leaf.name for leaf in wanted_by_leaf]
    for leaf, wanted in wanted_by_leaf.items():
        got = encoding.stored(leaf.name, leaf.type.dtype).decode_array(found[leaf.name])
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        if got.dtype == object:
            assert got.tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(got, np.asarray(wanted), rtol=1e-6, err_msg=leaf.name)
