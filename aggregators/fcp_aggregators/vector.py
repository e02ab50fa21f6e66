"""Element-wise aggregators with one vector of state: sum, minimum and maximum.

The state is upstream's ``AggVectorAggregatorState``. Floats are added in their own dtype. Unlike
upstream's, no sum wraps around or becomes infinite: the contribution that would do that is refused,
and so are NaN and infinities, unless they are allowed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import (
    NO_OPTIONS,
    Accumulator,
    Addition,
    AggregatorFactory,
    Options,
    Total,
)
from fcp_core.aggregation.checks import (
    check_counts,
    check_length,
    check_mergeable,
    check_numeric,
    check_same,
    in_order,
    parse_in_place,
)
from fcp_core.aggregation.numbers import ALLOW_NON_FINITE, check_finite, check_norm, check_sum
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.aggregation.tensors import bytes_field, bytes_of
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code


class VectorAccumulator(Accumulator):
    """Combines each element of the input with the same element of the state.

    :param intrinsic: one input and one output of one numeric dtype and one fully known shape.
    :param options: ``allow_non_finite``.
    :raises StatusError: INVALID_ARGUMENT if it is not.
    """

    #: The allowed numbers of parameters.
    parameters: ClassVar[tuple[int, ...]] = (0,)

    num_inputs = 0

    def __init__(self, intrinsic: Intrinsic, options: Options = NO_OPTIONS) -> None:
        check_counts(intrinsic, inputs=1, outputs=1, parameters=self.parameters)
        (spec,), (output,) = intrinsic.inputs, intrinsic.outputs
        check_numeric(intrinsic, spec)
        check_same(intrinsic, spec, output)
        self._intrinsic = intrinsic
        self._non_finite = options.get(ALLOW_NON_FINITE) is True
        self._total = Total(self.identity(spec.shape, spec.dtype.numpy))

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes | memoryview = b"") -> Self:
        """Rebuild an accumulator from :meth:`dump`."""
        options, data = in_order(options, data)
        state, large = parse_in_place(intrinsic, state_pb2.AggVectorAggregatorState, data)
        raw = large.get(state.VECTOR_DATA_FIELD_NUMBER) or state.vector_data
        self = cls(intrinsic, options)
        check_length(intrinsic, "bytes of vector data", len(raw), self._vector.nbytes)
        self.num_inputs = state.num_inputs
        loaded = np.frombuffer(raw, self._vector.dtype)
        self._vector[...] = loaded.reshape(self._vector.shape)
        return self

    @property
    def _vector(self) -> Tensor:
        return self._total.array

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse NaN and infinities, unless they are allowed."""
        if not self._non_finite:
            check_finite(self._intrinsic.inputs[0].name, inputs[0])

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Combine the input with the state, in place."""
        self.combine(self._vector, inputs[0])
        self.num_inputs += 1

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration."""
        check_mergeable(self, other)

    def merge(self, other: Self) -> None:
        """Combine both states, in place."""
        self.validate_merge(other)
        self.combine(self._vector, other._vector)
        self.num_inputs += other.num_inputs

    def report(self) -> list[Tensor]:
        """Return the state."""
        return [self._vector]

    def dump(self) -> bytes:
        """Return the state as an ``AggVectorAggregatorState``."""
        return b"".join(self.pieces())

    def pieces(self) -> Sequence[bytes | memoryview]:
        """Return the state with a view on the vector."""
        if type(self).dump is not VectorAccumulator.dump:
            return super().pieces()
        head = state_pb2.AggVectorAggregatorState(num_inputs=self.num_inputs)
        number = head.VECTOR_DATA_FIELD_NUMBER
        return [head.SerializeToString(), *bytes_field(number, [bytes_of(self._vector)])]

    @abstractmethod
    def identity(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Return the state before the first input."""

    @abstractmethod
    def combine(self, vector: Tensor, value: Tensor) -> None:
        """Combine *value* into *vector*, in place."""


class SumAccumulator(VectorAccumulator):
    """The sum; zeros if there was no input."""

    def __init__(self, intrinsic: Intrinsic, options: Options = NO_OPTIONS) -> None:
        super().__init__(intrinsic, options)
        self._non_finite &= self._vector.dtype.kind == "f"
        self._max_norm = float(options.get("max_norm", 0))

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse what is not finite, out of the range of the sum, or above the largest norm."""
        name = self._intrinsic.inputs[0].name
        if not self._non_finite:
            check_sum(name, self._vector, inputs[0])
        check_norm(name, inputs[0], self._max_norm)

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration, or one that is too large together."""
        super().validate_merge(other)
        if not self._non_finite:
            name = self._intrinsic.inputs[0].name
            check_sum(name, self._vector, other._vector, code=Code.OUT_OF_RANGE)

    def additions(self) -> Sequence[Addition] | None:
        """Return that the input is added; a subclass may do something else."""
        if type(self) is not SumAccumulator or self._max_norm:
            return None
        return (Addition(self._total, 0, allow_non_finite=self._non_finite),)

    def added(self, count: int) -> None:
        """Count inputs that were added."""
        self.num_inputs += count

    def identity(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Return zeros."""
        return np.zeros(shape, dtype)

    def combine(self, vector: Tensor, value: Tensor) -> None:
        """Add."""
        # Where infinities are allowed, one is no reason to warn.
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(vector, value, out=vector)


class ExtremumAccumulator(VectorAccumulator):
    """The minimum or maximum of each element; one NaN, if it is allowed, makes an element NaN.

    Without input the report is what TensorFlow Federated gives: the greatest finite number of the
    dtype for a minimum, the least for a maximum. While it accumulates, the identity of a float is
    the infinity, so that an infinite input counts.
    """

    smallest: ClassVar[bool]

    def identity(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """Return infinities, or the extreme integers."""
        if dtype.kind == "f":
            return np.full(shape, np.inf if self.smallest else -np.inf, dtype)
        return np.full(shape, self._extreme(dtype), dtype)

    def combine(self, vector: Tensor, value: Tensor) -> None:
        """Take the lesser or the greater."""
        # Comparing with a signalling NaN raises a flag that says nothing here.
        with np.errstate(invalid="ignore"):
            (np.minimum if self.smallest else np.maximum)(vector, value, out=vector)

    def report(self) -> list[Tensor]:
        """Return the extrema."""
        if not self.num_inputs:
            self._vector[...] = self._extreme(self._vector.dtype)
        return [self._vector]

    def _extreme(self, dtype: np.dtype[Any]) -> Any:
        info = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        return info.max if self.smallest else info.min


class MinAccumulator(ExtremumAccumulator):
    """The minimum of each element."""

    smallest = True


class MaxAccumulator(ExtremumAccumulator):
    """The maximum of each element."""

    smallest = False


FACTORIES = tuple(
    AggregatorFactory(
        name, frozenset({name}), f"element-wise {what}", kind, kind.load, loads_views=True
    )
    for name, what, kind in (
        ("federated_sum", "sum", SumAccumulator),
        ("federated_min", "minimum", MinAccumulator),
        ("federated_max", "maximum", MaxAccumulator),
    )
)
