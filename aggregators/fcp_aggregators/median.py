"""The coordinate-wise median: a mean's replacement that a few bad clients cannot move far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory, Options
from fcp_core.aggregation.checks import (
    MEAN_URI,
    WEIGHTED_MEAN_URI,
    check_length,
    check_mean,
    check_mergeable,
    parse_state,
)
from fcp_core.aggregation.numbers import ALLOW_NON_FINITE, check_finite
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2

#: Elements of all inputs together that are sorted at a time.
_CHUNK = 1 << 20


class MedianAccumulator(Accumulator):
    """Keeps every value and reports the median of each element; NaN if there was no input.

    A weight, if the intrinsic has one, is ignored. The state is an ``AggVectorAggregatorState``
    whose vector holds the values one after another.

    :param intrinsic: a ``federated_mean`` or a ``federated_weighted_mean``.
    :param options: ``allow_non_finite``.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit.
    """

    def __init__(self, intrinsic: Intrinsic, options: Options) -> None:
        check_mean(intrinsic)
        self._non_finite = options.get(ALLOW_NON_FINITE) is True
        self._intrinsic = intrinsic
        self._values: list[Tensor] = []

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes) -> Self:
        """Rebuild an accumulator from :meth:`dump`."""
        state = parse_state(intrinsic, state_pb2.AggVectorAggregatorState, data)
        self = cls(intrinsic, options)
        spec = intrinsic.inputs[0]
        size = int(np.prod(spec.shape)) * spec.dtype.numpy.itemsize
        check_length(
            intrinsic, "bytes of vector data", len(state.vector_data), size * state.num_inputs
        )
        values = np.frombuffer(state.vector_data, spec.dtype.numpy)
        self._values = list(values.reshape(state.num_inputs, *spec.shape))
        return self

    @property
    def num_inputs(self) -> int:
        """How many contributions it holds."""
        return len(self._values)

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse NaN and infinities, unless they are allowed."""
        if not self._non_finite:
            check_finite(self._intrinsic.inputs[0].name, inputs[0])

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Keep a copy of the value."""
        self._values.append(np.array(inputs[0]))

    def merge(self, other: Self) -> None:
        """Keep the other's values too; kept values never change, so both may hold them."""
        check_mergeable(self, other)
        self._values.extend(other._values)

    def report(self) -> list[Tensor]:
        """Return the medians."""
        spec = self._intrinsic.inputs[0]
        result: Tensor = np.full(spec.shape, np.nan, spec.dtype.numpy)
        if self._values:
            flat = [np.reshape(value, -1) for value in self._values]
            target = result.reshape(-1)
            step = max(1, _CHUNK // len(flat))
            with np.errstate(over="ignore", invalid="ignore"):
                for start in range(0, target.size, step):
                    rows = np.stack([value[start : start + step] for value in flat])
                    target[start : start + step] = self._median(rows)
        return [result]

    def _median(self, rows: Tensor) -> Tensor:
        result: Tensor = np.median(rows, axis=0, overwrite_input=True)
        if not self._non_finite:
            # The mean of the two in the middle, whose sum may be too large.
            wide = np.flatnonzero(~np.isfinite(result))
            if wide.size:
                half = np.sort(rows[:, wide], axis=0) * 0.5
                result[wide] = half[(len(rows) - 1) // 2] + half[len(rows) // 2]
        return result

    def dump(self) -> bytes:
        """Return the state as an ``AggVectorAggregatorState``."""
        return state_pb2.AggVectorAggregatorState(
            num_inputs=len(self._values),
            vector_data=b"".join(value.tobytes() for value in self._values),
        ).SerializeToString()


FACTORIES = (
    AggregatorFactory(
        "median",
        frozenset({MEAN_URI, WEIGHTED_MEAN_URI}),
        "median of each element instead of a mean; ignores weights and keeps every contribution",
        MedianAccumulator,
        MedianAccumulator.load,
        needs_all_inputs=True,
    ),
)
