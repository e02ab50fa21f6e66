"""The intrinsics of secure aggregation as plain sums, where the operator allows that by name.

Nothing is hidden from the server here: an aggregation protocol that hides the contributions brings
its own aggregators. What stays the same is the arithmetic: values must lie in the promised range,
a modular sum is reduced modulo its modulus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import Self

from fcp_aggregators.vector import SumAccumulator
from fcp_core.aggregation.aggregator import NO_OPTIONS, AggregatorFactory, Options
from fcp_core.aggregation.checks import bad, check_counts, check_mergeable, integer_parameter
from fcp_core.aggregation.small_groups import SmallGroups
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor
from fcp_core.protocol.status import Code, StatusError

SECURE_SUM_URI = "federated_secure_sum"
BITWIDTH_URI = "federated_secure_sum_bitwidth"
MODULAR_URI = "federated_secure_modular_sum"

#: The option, of each of the three, without which none of them is served.
OPTION = "allow_unprotected"


class BoundedSumAccumulator(SumAccumulator):
    """A sum of integers from 0 to a bound: ``federated_secure_sum[_bitwidth]`` in the clear.

    :param intrinsic: one integer input and output; the optional parameter is the greatest value
        that may appear, or for the bitwidth form its number of bits.
    :raises StatusError: INVALID_ARGUMENT if it does not fit.
    """

    parameters = (0, 1)

    def __init__(self, intrinsic: Intrinsic, options: Options = NO_OPTIONS) -> None:
        super().__init__(intrinsic, options)
        self._limit = _bound(intrinsic)

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse values outside the promised range."""
        super().validate(inputs)
        value = inputs[0]
        if self._limit is None or not value.size:
            return
        low, high = int(value.min()), int(value.max())
        if low < 0 or high > self._limit:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"tensor {self._intrinsic.inputs[0].name!r} has values from {low} to {high}; "
                f"the task allows 0 to {self._limit}",
            )


class ModularSumAccumulator(SumAccumulator):
    """A sum modulo the parameter: ``federated_secure_modular_sum`` in the clear.

    :param intrinsic: one integer input and output; the first parameter, if any, is the modulus,
        from 1 to the greatest number of the dtype. Two more leave small groups out
        (``fcp_core.aggregation.small_groups``).
    :raises StatusError: INVALID_ARGUMENT if it does not fit.
    """

    parameters = (0, 1, 3)

    def __init__(self, intrinsic: Intrinsic, options: Options = NO_OPTIONS) -> None:
        super().__init__(intrinsic, options)
        self._modulus: Any = None
        if intrinsic.parameters:
            dtype = intrinsic.inputs[0].dtype.numpy
            value = intrinsic.parameters[0].value
            modulus = integer_parameter(intrinsic, value, "the modulus", 1)
            if modulus > np.iinfo(dtype).max:
                raise bad(intrinsic, f"the modulus {modulus} does not fit the dtype {dtype}")
            self._modulus = dtype.type(modulus)
        self._small = SmallGroups.of(intrinsic)

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Accept every value; without a modulus, what the dtype has room for."""
        if self._modulus is None:
            super().validate(inputs)

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration; without a modulus, one that is too large."""
        if self._modulus is None:
            super().validate_merge(other)
        else:
            check_mergeable(self, other)

    def report(self) -> list[Tensor]:
        """Return the sum, without small groups if there are to be none."""
        (total,) = super().report()
        return [total if self._small is None else self._small.left_out(total)]

    def combine(self, vector: Tensor, value: Tensor) -> None:
        """Add modulo the modulus."""
        if self._modulus is None:
            super().combine(vector, value)
            return
        # Both are below the modulus, so neither difference nor sum can leave the dtype.
        room = np.subtract(self._modulus, np.mod(value, self._modulus))
        wraps = vector >= room
        np.subtract(vector, room, out=vector)
        np.add(vector, self._modulus, out=vector, where=~wraps)


def _bound(intrinsic: Intrinsic) -> int | None:
    if not intrinsic.parameters:
        return None
    value = intrinsic.parameters[0].value
    if intrinsic.uri == SECURE_SUM_URI:
        return integer_parameter(intrinsic, value, "the greatest input", 0)
    bits = integer_parameter(intrinsic, value, "the bitwidth", 0)
    if bits > 64:
        raise bad(intrinsic, f"the bitwidth must be at most 64, not {bits}")
    return (1 << bits) - 1


def make_secure_sum(intrinsic: Intrinsic, options: Options) -> SumAccumulator:
    """Make an empty sum, if the operator allows it."""
    _check(intrinsic, options)
    return _kind(intrinsic)(intrinsic, options)


def load_secure_sum(intrinsic: Intrinsic, options: Options, data: bytes) -> SumAccumulator:
    """Rebuild a sum, if the operator allows it."""
    _check(intrinsic, options)
    return _kind(intrinsic).load(intrinsic, options, data)


def _kind(intrinsic: Intrinsic) -> type[SumAccumulator]:
    return ModularSumAccumulator if intrinsic.uri == MODULAR_URI else BoundedSumAccumulator


def _check(intrinsic: Intrinsic, options: Options) -> None:
    if options.get(OPTION) is not True:
        raise StatusError(
            Code.FAILED_PRECONDITION,
            f"intrinsic {intrinsic.uri!r} asks for secure aggregation, which this aggregator does "
            "not give: the server would see every contribution. To sum it in the clear all the "
            f"same, set {OPTION} = true in [fcp:aggregator.{intrinsic.uri}]",
        )
    more = (3,) if intrinsic.uri == MODULAR_URI else ()
    check_counts(intrinsic, inputs=1, outputs=1, parameters=(0, 1, *more))
    spec = intrinsic.inputs[0]
    if spec.dtype not in (DataType.INT32, DataType.INT64, DataType.UINT64):
        raise bad(intrinsic, f"input {spec} must be of an integer dtype")


FACTORIES = tuple(
    AggregatorFactory(
        uri,
        frozenset({uri}),
        f"{what} in the clear; only with {OPTION}",
        make_secure_sum,
        load_secure_sum,
    )
    for uri, what in (
        (SECURE_SUM_URI, "secure sum"),
        (BITWIDTH_URI, "secure sum of a bit width"),
        (MODULAR_URI, "secure modular sum"),
    )
)
