"""Means: of equal weights, weighted by the clients, or with the clients' weights ignored.

The state is upstream's ``FederatedMeanAggregatorState``: the sum of value times weight in the
value's dtype and the sum of the weights in theirs, but of int32 weights in int64, where upstream's
wraps around.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import (
    Accumulator,
    Addition,
    AggregatorFactory,
    Options,
    Total,
)
from fcp_core.aggregation.checks import (
    MEAN_URI,
    WEIGHTED_MEAN_URI,
    bad,
    check_length,
    check_mean,
    check_mergeable,
    parse_in_place,
)
from fcp_core.aggregation.numbers import (
    ALLOW_NON_FINITE,
    check_norm,
    check_sum,
    check_weight,
)
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor
from fcp_core.aggregation.tensors import bytes_field, bytes_of
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code

#: Elements multiplied at a time: the products stay in the processor's cache.
_CHUNK = 1 << 16


class MeanAccumulator(Accumulator):
    """The mean of the values; NaN if there was no input.

    :param intrinsic: a ``federated_mean``, or a ``federated_weighted_mean``, whose second input is
        one weight. A weight of zero counts the client and adds nothing; if all are zero the mean
        is NaN.
    :param use_weights: whether the weights count; without them each client counts once.
    :param options: ``allow_non_finite``, ``max_norm`` and ``max_weight``.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit.
    """

    num_inputs = 0

    def __init__(self, intrinsic: Intrinsic, use_weights: bool, options: Options) -> None:
        check_mean(intrinsic)
        self._intrinsic = intrinsic
        self._weighted = use_weights and intrinsic.uri == WEIGHTED_MEAN_URI
        value = intrinsic.inputs[0]
        weight_dtype = intrinsic.inputs[1].dtype if self._weighted else DataType.INT32
        if self._weighted and weight_dtype is DataType.INT32:
            weight_dtype = DataType.INT64
        self._non_finite = options.get(ALLOW_NON_FINITE) is True
        self._max_norm = float(options.get("max_norm", 0))
        self._max_weight = float(options.get("max_weight", 0)) if self._weighted else 0.0
        self._sums = Total(np.zeros(value.shape, value.dtype.numpy))
        # With equal weights it stays 0, as upstream, and the number of inputs divides.
        self._weight_sums = Total(np.zeros((), weight_dtype.numpy))

    @classmethod
    def load(
        cls,
        intrinsic: Intrinsic,
        use_weights: bool,
        options: Options,
        data: bytes | memoryview,
    ) -> Self:
        """Rebuild an accumulator from :meth:`dump`."""
        state, large = parse_in_place(intrinsic, state_pb2.FederatedMeanAggregatorState, data)
        values = large.get(state.WEIGHTED_VALUES_SUM_FIELD_NUMBER) or state.weighted_values_sum
        self = cls(intrinsic, use_weights, options)
        for what, array, raw in (
            ("bytes of values", self._sum, values),
            ("bytes of weights", self._weights, state.weights_sum),
        ):
            dtype = array.dtype
            if dtype == DataType.INT64.numpy and len(raw) == 4 == array.nbytes // 2:
                # Upstream's, or one of an older version.
                dtype = DataType.INT32.numpy
            check_length(intrinsic, what, len(raw), array.size * dtype.itemsize)
            array[...] = np.frombuffer(raw, dtype).reshape(array.shape)
        self.num_inputs = state.num_inputs
        return self

    @property
    def _sum(self) -> Tensor:
        return self._sums.array

    @property
    def _weights(self) -> Tensor:
        return self._weight_sums.array

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse numbers that are not finite, weights below zero, and what is above a limit."""
        spec, factor = self._intrinsic.inputs[0], None
        if self._weighted:
            weight, name = inputs[1].reshape(()), self._intrinsic.inputs[1].name
            check_weight(name, weight[()], self._max_weight)
            check_sum(name, self._weights, weight)
            with np.errstate(over="ignore", under="ignore"):
                factor = self._sum.dtype.type(weight[()])
        if not self._non_finite:
            check_sum(spec.name, self._sum, inputs[0], factor)
        check_norm(spec.name, inputs[0], self._max_norm)

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Add the value times its weight, in place."""
        value = inputs[0]
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            if self._weighted:
                weight = inputs[1].reshape(())
                _add_product(self._sum, value, self._sum.dtype.type(weight[()]))
                np.add(self._weights, weight, out=self._weights)
            else:
                np.add(self._sum, value, out=self._sum)
        self.num_inputs += 1

    def additions(self) -> Sequence[Addition] | None:
        """Return that the value is added, times its weight, and the weight; not of a subclass."""
        if type(self) is not MeanAccumulator or self._max_norm or self._max_weight:
            return None
        weight = 1 if self._weighted else None
        value = Addition(self._sums, 0, weight, allow_non_finite=self._non_finite)
        return (value, Addition(self._weight_sums, 1)) if self._weighted else (value,)

    def added(self, count: int) -> None:
        """Count contributions that were added."""
        self.num_inputs += count

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration, or one that is too large together."""
        check_mergeable(self, other)
        if other._weighted != self._weighted:
            raise bad(self._intrinsic, "only states of one configuration can be merged")
        if self._weighted:
            name = self._intrinsic.inputs[1].name
            check_sum(name, self._weights, other._weights, code=Code.OUT_OF_RANGE)
        if not self._non_finite:
            name = self._intrinsic.inputs[0].name
            check_sum(name, self._sum, other._sum, code=Code.OUT_OF_RANGE)

    def merge(self, other: Self) -> None:
        """Add both sums."""
        self.validate_merge(other)
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(self._sum, other._sum, out=self._sum)
            np.add(self._weights, other._weights, out=self._weights)
        self.num_inputs += other.num_inputs

    def report(self) -> list[Tensor]:
        """Return the mean."""
        divisor = self._weights[()] if self._weighted else self.num_inputs
        with np.errstate(all="ignore"):
            np.divide(self._sum, self._sum.dtype.type(divisor), out=self._sum)
        return [self._sum]

    def dump(self) -> bytes:
        """Return the state as a ``FederatedMeanAggregatorState``."""
        return b"".join(self.pieces())

    def pieces(self) -> Sequence[bytes | memoryview]:
        """Return the state with a view on the sum."""
        if type(self).dump is not MeanAccumulator.dump:
            return super().pieces()
        head = state_pb2.FederatedMeanAggregatorState(
            num_inputs=self.num_inputs, weights_sum=self._weights.tobytes()
        )
        number = head.WEIGHTED_VALUES_SUM_FIELD_NUMBER
        return [head.SerializeToString(), *bytes_field(number, [bytes_of(self._sum)])]


def _add_product(total: Tensor, value: Tensor, weight: Any) -> None:
    """Add ``value * weight`` to *total*, in place and without an array of that size."""
    flat_total, flat_value = total.reshape(-1), value.reshape(-1)
    scratch = np.empty(min(_CHUNK, flat_total.size), total.dtype)
    for start in range(0, flat_total.size, _CHUNK):
        part = flat_total[start : start + _CHUNK]
        product = scratch[: part.size]
        np.multiply(flat_value[start : start + _CHUNK], weight, out=product)
        np.add(part, product, out=part)


def make_mean(intrinsic: Intrinsic, options: Options) -> MeanAccumulator:
    """Make an empty mean, weighted if the intrinsic is."""
    return MeanAccumulator(intrinsic, True, options)


def load_mean(intrinsic: Intrinsic, options: Options, data: bytes | memoryview) -> MeanAccumulator:
    """Rebuild a mean."""
    return MeanAccumulator.load(intrinsic, True, options, data)


def make_unweighted(intrinsic: Intrinsic, options: Options) -> MeanAccumulator:
    """Make an empty mean that ignores weights."""
    return MeanAccumulator(intrinsic, False, options)


def load_unweighted(
    intrinsic: Intrinsic, options: Options, data: bytes | memoryview
) -> MeanAccumulator:
    """Rebuild a mean that ignores weights."""
    return MeanAccumulator.load(intrinsic, False, options, data)


FACTORIES = (
    AggregatorFactory(
        MEAN_URI,
        frozenset({MEAN_URI}),
        "mean in which every client counts once",
        make_mean,
        load_mean,
        loads_views=True,
    ),
    AggregatorFactory(
        WEIGHTED_MEAN_URI,
        frozenset({WEIGHTED_MEAN_URI}),
        "mean weighted by the clients' own weights",
        make_mean,
        load_mean,
        loads_views=True,
    ),
    AggregatorFactory(
        "unweighted_mean",
        frozenset({MEAN_URI, WEIGHTED_MEAN_URI}),
        "mean that ignores the clients' weights: every client counts once",
        make_unweighted,
        load_unweighted,
        loads_views=True,
    ),
)
