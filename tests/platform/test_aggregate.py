"""The aggregator of federated_aggregate obeys the laws of aggregators."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

from fcp_core.aggregation.configuration import parse_configuration
from fcp_core.aggregation.spec import Intrinsic, Parameter
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing.aggregators import AggregatorConformance, tensors
from fcp_platform import FederatedComputation, aggregate, rounds

pytestmark = [pytest.mark.tff, pytest.mark.slow]

_ACC = (np.int64, tff.TensorType(np.float32, [None]), np.uint64)
_VALUE = (tff.TensorType(np.float32, [None]), np.int32)


@functools.cache
def make_intrinsic() -> Intrinsic:
    """An element-wise sum of vectors whose length the first contribution sets, and a maximum."""

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def work(examples: Any) -> Any:
        n = examples.reduce(np.int32(0), lambda n, _: n + 1)
        return tf.fill([n], 1.0), n

    def plus(vector: Any, other: Any) -> Any:
        empty = tf.equal(tf.size(vector), 0)
        return tf.cond(empty, lambda: other, lambda: tf.ensure_shape(vector + other, [None]))

    @tff.tensorflow.computation(_ACC, _VALUE)
    def accumulate(acc: Any, value: Any) -> Any:
        some = tf.debugging.assert_greater(tf.size(value[0]), 0)
        # A variable, to see that nothing stays from one call to the next.
        one = tf.Variable(np.int64(0))
        with tf.control_dependencies([some, one.assign_add(1)]):
            count = acc[0] + one.read_value()
        number = tf.cast(tf.cast(value[1], tf.int64) + 1000, tf.uint64)
        return count, plus(acc[1], value[0]), tf.bitwise.bitwise_or(acc[2], number)

    @tff.tensorflow.computation(_ACC, _ACC)
    def merge(a: Any, b: Any) -> Any:
        return a[0] + b[0], plus(a[1], b[1]), tf.bitwise.bitwise_or(a[2], b[2])

    @tff.tensorflow.computation(_ACC)
    def report(acc: Any) -> Any:
        return acc[0], tf.reduce_sum(acc[1]), acc[2]

    @tff.tensorflow.computation
    def zero() -> Any:
        return np.int64(0), tf.zeros([0]), tf.constant(0, tf.uint64)

    @tff.federated_computation(
        tff.FederatedType(np.int32, tff.SERVER),
        tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS),
    )
    def comp(state: Any, data: Any) -> Any:
        value = tff.federated_map(work, data)
        return state, tff.federated_aggregate(value, zero(), accumulate, merge, report)

    lowered = FederatedComputation(comp, name="a").lowered
    prepared = rounds.prepare(lowered, {"server": np.array(0, np.int32)})
    (intrinsic,) = parse_configuration(prepared.aggregation)
    return intrinsic


class TestFunctions(AggregatorConformance):
    factory = aggregate.FACTORY

    @property
    def intrinsic(self) -> Intrinsic:  # type: ignore[override]
        return make_intrinsic()

    def contributions(self) -> Any:
        specs = self.intrinsic.inputs
        return st.tuples(*(tensors(spec, 3) for spec in specs)).map(list)

    def refused(self) -> Any:
        specs = self.intrinsic.inputs
        return st.tuples(*(tensors(spec, 0) for spec in specs)).map(list)

    def reference(self, contributions: Sequence[Any]) -> Any:
        bits = functools.reduce(np.bitwise_or, [1000 + np.int64(c[1]) for c in contributions], 0)
        return [
            np.array(len(contributions), np.int64),
            np.array(sum(c[0].sum() for c in contributions), np.float32),
            np.array(bits, np.int64),
        ]


@pytest.mark.parametrize(
    "parameters",
    [
        (),
        (np.array(1.0, np.float32),),
        (np.array([b"", b"", b""], object),),
        (np.array([b"no graph"] * 3, object),),
        (np.array([1, 2, 3], object),),
    ],
)
def test_parameters_that_are_no_functions(parameters: Any) -> None:
    intrinsic = make_intrinsic()
    broken = Intrinsic(
        intrinsic.uri,
        intrinsic.inputs,
        intrinsic.outputs,
        tuple(Parameter(str(i), value) for i, value in enumerate(parameters)),
    )
    with pytest.raises(StatusError, match="federated_aggregate") as error:
        aggregate.FACTORY.make(broken, {})
    assert error.value.code is Code.INVALID_ARGUMENT
