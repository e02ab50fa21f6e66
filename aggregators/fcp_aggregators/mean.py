"""Means: of equal weights, weighted by the clients, or with the clients' weights ignored.

The state is upstream's ``FederatedMeanAggregatorState``: the sum of value times weight in the
value's dtype and the sum of the weights in theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import Self

from fcp_aggregators.checks import (
    bad,
    check_counts,
    check_length,
    check_same,
    parse_state,
    same_configuration,
)
from fcp_core.aggregation.aggregator import (
    Accumulator,
    Addition,
    AggregatorFactory,
    Options,
    Total,
)
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code, StatusError

MEAN_URI = "federated_mean"
WEIGHTED_MEAN_URI = "federated_weighted_mean"

#: Elements multiplied at a time: the products stay in the processor's cache.
_CHUNK = 1 << 16


def check_mean(intrinsic: Intrinsic) -> None:
    """Check the configuration of a mean or of what stands in for one.

    TensorFlow Federated averages floating-point values only (an integer value is refused when the
    computation is written), so nothing else is accepted here.

    :raises StatusError: INVALID_ARGUMENT.
    """
    weighted = intrinsic.uri == WEIGHTED_MEAN_URI
    check_counts(intrinsic, inputs=1 + weighted, outputs=1)
    value = intrinsic.inputs[0]
    if value.dtype not in (DataType.FLOAT, DataType.DOUBLE):
        raise bad(intrinsic, f"value {value} must be of dtype float or double")
    check_same(intrinsic, value, intrinsic.outputs[0])
    if weighted:
        weight = intrinsic.inputs[1]
        if weight.dtype is DataType.STRING or weight.shape not in ((), (1,)):
            raise bad(intrinsic, f"weight {weight} must be one number: a scalar or a vector of one")


class MeanAccumulator(Accumulator):
    """The mean of the values; NaN if there was no input.

    :param intrinsic: a ``federated_mean``, or a ``federated_weighted_mean``, whose second input is
        one weight above zero.
    :param use_weights: whether the weights count; without them each client counts once.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit.
    """

    def __init__(self, intrinsic: Intrinsic, use_weights: bool) -> None:
        check_mean(intrinsic)
        self._intrinsic = intrinsic
        self._weighted = use_weights and intrinsic.uri == WEIGHTED_MEAN_URI
        value = intrinsic.inputs[0]
        weight_dtype = intrinsic.inputs[1].dtype if self._weighted else DataType.INT32
        self._num_inputs = 0
        self._sums = Total(np.zeros(value.shape, value.dtype.numpy))
        # With equal weights it stays 0, as upstream, and the number of inputs divides.
        self._weight_sums = Total(np.zeros((), weight_dtype.numpy))

    @classmethod
    def load(cls, intrinsic: Intrinsic, use_weights: bool, data: bytes) -> Self:
        """Rebuild an accumulator from :meth:`dump`."""
        state = parse_state(intrinsic, state_pb2.FederatedMeanAggregatorState, data)
        self = cls(intrinsic, use_weights)
        for what, array, raw in (
            ("bytes of values", self._sum, state.weighted_values_sum),
            ("bytes of weights", self._weights, state.weights_sum),
        ):
            check_length(intrinsic, what, len(raw), array.nbytes)
            array[...] = np.frombuffer(raw, array.dtype).reshape(array.shape)
        self._num_inputs = state.num_inputs
        return self

    @property
    def _sum(self) -> Tensor:
        return self._sums.array

    @property
    def _weights(self) -> Tensor:
        return self._weight_sums.array

    @property
    def num_inputs(self) -> int:
        """How many contributions it holds."""
        return self._num_inputs

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse a weight that is not above zero."""
        if self._weighted:
            weight = inputs[1].reshape(())[()]
            # Comparing with a signalling NaN raises a flag that says nothing here.
            with np.errstate(invalid="ignore"):
                positive = weight > 0
            if not positive:
                name = self._intrinsic.inputs[1].name
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"weight {name!r} must be above zero, not {weight}"
                )

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
        self._num_inputs += 1

    def additions(self) -> Sequence[Addition] | None:
        """Return that the value is added, times its weight, and the weight; not of a subclass."""
        if type(self) is not MeanAccumulator:
            return None
        if not self._weighted:
            return (Addition(self._sums, 0),)
        return Addition(self._sums, 0, weight=1), Addition(self._weight_sums, 1)

    def added(self, count: int) -> None:
        """Count contributions that were added."""
        self._num_inputs += count

    def merge(self, other: Self) -> None:
        """Add both sums."""
        if (
            type(other) is not type(self)
            or not same_configuration(other._intrinsic, self._intrinsic)
            or other._weighted != self._weighted
        ):
            raise bad(self._intrinsic, "only states of one configuration can be merged")
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(self._sum, other._sum, out=self._sum)
            np.add(self._weights, other._weights, out=self._weights)
        self._num_inputs += other._num_inputs

    def report(self) -> list[Tensor]:
        """Return the mean."""
        divisor = self._weights[()] if self._weights > 0 else self._num_inputs
        with np.errstate(all="ignore"):
            np.divide(self._sum, self._sum.dtype.type(divisor), out=self._sum)
        return [self._sum]

    def dump(self) -> bytes:
        """Return the state as a ``FederatedMeanAggregatorState``."""
        return state_pb2.FederatedMeanAggregatorState(
            num_inputs=self._num_inputs,
            weights_sum=self._weights.tobytes(),
            weighted_values_sum=self._sum.tobytes(),
        ).SerializeToString()


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
    return MeanAccumulator(intrinsic, use_weights=True)


def load_mean(intrinsic: Intrinsic, options: Options, data: bytes) -> MeanAccumulator:
    """Rebuild a mean."""
    return MeanAccumulator.load(intrinsic, True, data)


def make_unweighted(intrinsic: Intrinsic, options: Options) -> MeanAccumulator:
    """Make an empty mean that ignores weights."""
    return MeanAccumulator(intrinsic, use_weights=False)


def load_unweighted(intrinsic: Intrinsic, options: Options, data: bytes) -> MeanAccumulator:
    """Rebuild a mean that ignores weights."""
    return MeanAccumulator.load(intrinsic, False, data)


FACTORIES = (
    AggregatorFactory(
        MEAN_URI,
        frozenset({MEAN_URI}),
        "mean in which every client counts once",
        make_mean,
        load_mean,
    ),
    AggregatorFactory(
        WEIGHTED_MEAN_URI,
        frozenset({WEIGHTED_MEAN_URI}),
        "mean weighted by the clients' own weights",
        make_mean,
        load_mean,
    ),
    AggregatorFactory(
        "unweighted_mean",
        frozenset({MEAN_URI, WEIGHTED_MEAN_URI}),
        "mean that ignores the clients' weights: every client counts once",
        make_unweighted,
        load_unweighted,
    ),
)
