"""The aggregator that adds the sums of cohorts; each of its inputs is the sum of many devices."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory, Options
from fcp_core.aggregation.small_groups import SmallGroups
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.protocol.status import Code, StatusError
from fcp_secagg.aggregands import BITWIDTH_URI, SUM_URI, URIS, aggregand_of

NAME, MEDIAN, TRIMMED = "secagg_sum", "secagg_median", "secagg_trimmed_mean"


class _State(msgspec.Struct, array_like=True):
    num_inputs: int
    data: bytes


class CohortSum(Accumulator):
    """Adds sums, modulo the modulus if the intrinsic has one.

    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit.
    """

    num_inputs = 0

    def __init__(self, intrinsic: Intrinsic, options: Options) -> None:
        self._aggregand = aggregand_of(intrinsic)
        self._small = SmallGroups.of(intrinsic)
        spec = self._aggregand.tensor
        self._total: Tensor = np.zeros(spec.shape, spec.dtype.numpy)

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes) -> Self:
        """Rebuild a sum from :meth:`dump`."""
        self = cls(intrinsic, options)
        try:
            state = msgspec.msgpack.decode(data, type=_State)
            loaded = np.frombuffer(state.data, self._total.dtype).reshape(self._total.shape)
        except (msgspec.DecodeError, ValueError) as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"not the state of a sum: {error}") from None
        self.num_inputs, self._total = state.num_inputs, loaded.copy()
        return self

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
        self.num_inputs += 1

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration, or one that is too large."""
        mine, theirs = (self._aggregand, self._small), (other._aggregand, other._small)
        if type(other) is not type(self) or mine != theirs:
            raise StatusError(Code.INVALID_ARGUMENT, "only sums of one configuration can be merged")
        if self._aggregand.modulus is None:
            self._check_room(other._total)

    def merge(self, other: Self) -> None:
        """Add what another one holds."""
        self.validate_merge(other)
        self._add(other._total)
        self.num_inputs += other.num_inputs

    def report(self) -> list[Tensor]:
        """Return the total, without small groups if there are to be none."""
        return [self._total if self._small is None else self._small.left_out(self._total)]

    def dump(self) -> bytes:
        """Return the state as msgpack."""
        return msgspec.msgpack.encode(_State(self.num_inputs, self._total.tobytes()))

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


class RobustCohortSum(CohortSum):
    """A rule over the cohorts' sums, element by element, times the number of cohorts.

    Cohorts have about the same size, so that it stands for the sum; but devices that poison theirs
    reach it only through the cohorts that they are in.

    :raises StatusError: INVALID_ARGUMENT for a modular sum, of which there is no order.
    """

    def __init__(self, intrinsic: Intrinsic, options: Options) -> None:
        super().__init__(intrinsic, options)
        if self._aggregand.modulus is not None:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"a robust rule cannot serve {intrinsic.uri}: sums go round there",
            )
        self._kept: list[Tensor] = []

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes) -> Self:
        """Rebuild it from :meth:`dump`."""
        self = cls(intrinsic, options)
        try:
            state = msgspec.msgpack.decode(data, type=_State)
            loaded = np.frombuffer(state.data, self._total.dtype)
            kept = loaded.reshape(state.num_inputs, *self._total.shape)
        except (msgspec.DecodeError, ValueError) as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"not the state of sums: {error}") from None
        for value in kept:
            self.accumulate([value])
        return self

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Keep a cohort's sum."""
        super().accumulate(inputs)
        self._kept.append(inputs[0].copy())

    def merge(self, other: Self) -> None:
        """Keep what another one does."""
        super().merge(other)
        self._kept += other._kept

    def report(self) -> list[Tensor]:
        """Return the rule's value, times the number of sums; zeros if there is none.

        :raises StatusError: OUT_OF_RANGE if it is beyond the dtype.
        """
        if not self._kept:
            return [self._total]
        total, of = self._rule(np.sort(np.stack(self._kept), axis=0))
        count = len(self._kept)
        whole, rest = np.divmod(total, of)
        # 2 * 2**62 is the most that a rule makes of sums whose total was checked.
        if np.any(whole > (np.iinfo(self._total.dtype).max - count) // count):
            raise StatusError(
                Code.OUT_OF_RANGE,
                f"what stands for the sum of tensor {self._aggregand.tensor.name!r} is beyond the "
                f"range of {self._total.dtype}",
            )
        return [np.asarray(whole * count + rest * count // of, self._total.dtype)]

    def dump(self) -> bytes:
        """Return the state as msgpack."""
        data = b"".join(value.tobytes() for value in self._kept)
        return msgspec.msgpack.encode(_State(self.num_inputs, data))

    def _rule(self, ordered: Tensor) -> tuple[Tensor, int]:
        """Return the sum of the elements that count, and of how many it is.

        :param ordered: the sums, in ascending order element by element.
        """
        raise NotImplementedError


class CohortMedian(RobustCohortSum):
    """The median of the cohorts' sums: hostile devices must be in half of the cohorts."""

    def _rule(self, ordered: Tensor) -> tuple[Tensor, int]:
        low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
        # With two in the middle both are below half of the total, which was checked.
        return (low, 1) if len(ordered) % 2 else (low + high, 2)


class CohortTrimmedMean(RobustCohortSum):
    """The mean of the cohorts' sums without the smallest and the largest ones.

    :param options: ``fraction``, which is left out at each end, below 0.5.
    """

    def __init__(self, intrinsic: Intrinsic, options: Options) -> None:
        super().__init__(intrinsic, options)
        fraction = options.get("fraction", 0.1)
        assert isinstance(fraction, float)
        if not 0 <= fraction < 0.5:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"{TRIMMED}: fraction = {fraction:g} is not from 0 to below 0.5; that would leave "
                "nothing to average",
            )
        self._fraction = fraction

    def _rule(self, ordered: Tensor) -> tuple[Tensor, int]:
        out = int(self._fraction * len(ordered) + 1e-9)
        kept = ordered[out : len(ordered) - out]
        return kept.sum(axis=0, dtype=self._total.dtype), len(kept)

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration."""
        super().validate_merge(other)
        if other._fraction != self._fraction:
            raise StatusError(Code.INVALID_ARGUMENT, "only sums of one configuration can be merged")


FACTORY = AggregatorFactory(
    NAME,
    frozenset(URIS),
    "adds the sums of cohorts, for the protocol secagg",
    CohortSum,
    CohortSum.load,
    protocol="secagg",
)
MEDIAN_FACTORY = AggregatorFactory(
    MEDIAN,
    frozenset({SUM_URI, BITWIDTH_URI}),
    "the median of the sums of cohorts times their number, for the protocol secagg",
    CohortMedian,
    CohortMedian.load,
    needs_all_inputs=True,
    protocol="secagg",
)
TRIMMED_FACTORY = AggregatorFactory(
    TRIMMED,
    frozenset({SUM_URI, BITWIDTH_URI}),
    "the trimmed mean of the sums of cohorts times their number, for the protocol secagg",
    CohortTrimmedMean,
    CohortTrimmedMean.load,
    needs_all_inputs=True,
    protocol="secagg",
)
