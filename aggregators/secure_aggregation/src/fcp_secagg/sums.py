"""The aggregator that adds the sums of cohorts; each of its inputs is the sum of many devices."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory, Options
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.protocol.status import Code, StatusError
from fcp_secagg.aggregands import URIS, aggregand_of

NAME = "secagg_sum"


class _State(msgspec.Struct, array_like=True):
    num_inputs: int
    data: bytes


class CohortSum(Accumulator):
    """Adds sums, modulo the modulus if the intrinsic has one.

    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit.
    """

    def __init__(self, intrinsic: Intrinsic) -> None:
        self._aggregand = aggregand_of(intrinsic)
        spec = self._aggregand.tensor
        self._total: Tensor = np.zeros(spec.shape, spec.dtype.numpy)
        self._num_inputs = 0

    @classmethod
    def load(cls, intrinsic: Intrinsic, data: bytes) -> Self:
        """Rebuild a sum from :meth:`dump`."""
        self = cls(intrinsic)
        try:
            state = msgspec.msgpack.decode(data, type=_State)
            loaded = np.frombuffer(state.data, self._total.dtype).reshape(self._total.shape)
        except (msgspec.DecodeError, ValueError) as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"not the state of a sum: {error}") from None
        self._num_inputs, self._total = state.num_inputs, loaded.copy()
        return self

    @property
    def num_inputs(self) -> int:
        """How many sums it holds."""
        return self._num_inputs

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse a sum that is negative, or with which the total would leave its dtype."""
        value = inputs[0]
        if int(value.min()) < 0:
            raise StatusError(Code.INVALID_ARGUMENT, "a sum of a cohort is negative")
        if self._aggregand.modulus is None:
            self._check_room(value)

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Add a cohort's sum."""
        self._add(inputs[0])
        self._num_inputs += 1

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration, or one that is too large."""
        if type(other) is not type(self) or other._aggregand != self._aggregand:
            raise StatusError(Code.INVALID_ARGUMENT, "only sums of one configuration can be merged")
        if self._aggregand.modulus is None:
            self._check_room(other._total)

    def merge(self, other: Self) -> None:
        """Add what another one holds."""
        self.validate_merge(other)
        self._add(other._total)
        self._num_inputs += other._num_inputs

    def report(self) -> list[Tensor]:
        """Return the total."""
        return [self._total]

    def dump(self) -> bytes:
        """Return the state as msgpack."""
        return msgspec.msgpack.encode(_State(self._num_inputs, self._total.tobytes()))

    def _check_room(self, value: Tensor) -> None:
        room = np.iinfo(self._total.dtype).max - self._total
        if np.any(value > room):
            raise StatusError(
                Code.OUT_OF_RANGE,
                f"the sum of tensor {self._aggregand.tensor.name!r} would leave the range of "
                f"{self._total.dtype}",
            )

    def _add(self, value: Tensor) -> None:
        modulus = self._aggregand.modulus
        if modulus is None:
            self._total += value
            return
        both = self._total.astype(np.uint64) + value.astype(np.uint64)  # below 2**63
        self._total = (both % np.uint64(modulus)).astype(self._total.dtype)


def _make(intrinsic: Intrinsic, options: Options) -> CohortSum:
    return CohortSum(intrinsic)


def _load(intrinsic: Intrinsic, options: Options, data: bytes) -> CohortSum:
    return CohortSum.load(intrinsic, data)


FACTORY = AggregatorFactory(
    NAME, frozenset(URIS), "adds the sums of cohorts, for the protocol secagg", _make, _load
)
