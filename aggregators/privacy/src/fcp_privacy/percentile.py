"""Quantiles of one number a device, with noise: the aggregation core's bundle and what it nests.

The numbers are counted in buckets, from below; the answer is the first bucket at which the noisy
count exceeds a noisy threshold. That costs epsilon, once, however many buckets there are: the
technique is "above threshold" for counts that only grow, see Lyu, Su and Li, "Understanding the
sparse vector technique" (2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from fcp_core.aggregation.aggregator import NO_OPTIONS, AggregatorFactory, Options
from fcp_core.aggregation.checks import (
    bad,
    check_counts,
    check_length,
    check_mergeable,
    parse_state,
)
from fcp_core.aggregation.configuration import DP_BUNDLE_URI, DP_QUANTILE_URI
from fcp_core.aggregation.release import Promise, Randomised, Release, ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_privacy.events import EpsilonDelta, to_cost
from fcp_privacy.group_by_device import sample_of
from fcp_privacy.group_by_noise import choose_mechanism
from fcp_privacy.group_by_plan import ALLOW_NO_NOISE, NO_NOISE
from fcp_privacy.randomness import Randomness

#: How many numbers are kept; of more, as many are kept at random.
MAX_KEPT = 50_000
#: Buckets are so wide up to :data:`_LINEAR`, and then wider by a constant factor.
_WIDTH, _LINEAR, _FACTOR = 0.1, 100.0, 1.01
#: The largest answer.
_LARGEST = 1e20


def buckets(values: Tensor) -> NDArray[np.int64]:
    """Return the bucket of each number; what is below 0 is in that of 0."""
    numbers = np.maximum(values.astype(np.float64), 0.0)
    steps = round(_LINEAR / _WIDTH)
    large = np.log(np.maximum(numbers, _LINEAR) / _LINEAR) / math.log(_FACTOR)
    linear = np.ceil(np.minimum(numbers, _LINEAR) / _WIDTH)
    return np.where(numbers < _LINEAR, linear, steps + np.ceil(large)).astype(np.int64)


#: The bucket of the largest answer.
LAST = int(buckets(np.array([_LARGEST]))[0])


def upper_bound(bucket: int) -> float:
    """Return the largest number of a bucket."""
    steps = round(_LINEAR / _WIDTH)
    if bucket >= LAST:
        return _LARGEST
    return bucket * _WIDTH if bucket <= steps else _LINEAR * _FACTOR ** (bucket - steps)


class Quantile:
    """The numbers of devices, of which a quantile is wanted.

    :param intrinsic: a ``GoogleSQL:$differential_privacy_percentile_cont``.
    :raises StatusError: INVALID_ARGUMENT if it does not fit.
    """

    def __init__(self, intrinsic: Intrinsic) -> None:
        if intrinsic.uri != DP_QUANTILE_URI:
            raise bad(intrinsic, f"only {DP_QUANTILE_URI!r} can be in a bundle")
        check_counts(intrinsic, inputs=1, outputs=1, parameters=(1,))
        self._spec, output = intrinsic.inputs[0], intrinsic.outputs[0]
        if self._spec.dtype is DataType.STRING or self._spec.shape not in ((), (1,), (-1,)):
            raise bad(intrinsic, f"input {self._spec} must be one number")
        if output.dtype is not DataType.DOUBLE or output.shape != ():
            raise bad(intrinsic, f"output {output} must be one number of dtype double")
        value = intrinsic.parameters[0].value
        if value.dtype.kind != "f" or value.size != 1 or not 0 < float(value.reshape(())[()]) < 1:
            raise bad(intrinsic, "its parameter must be a quantile, above 0 and below 1")
        self._intrinsic = intrinsic
        self._quantile = float(value.reshape(())[()])
        self._kept: Tensor = np.zeros(16, self._spec.dtype.numpy)
        self._count = 0
        self._replaced = 0
        self.num_inputs = 0

    @property
    def kept(self) -> Tensor:
        """The numbers that are kept."""
        return self._kept[: self._count]

    def load(self, data: bytes) -> None:
        """Take a state into an empty one."""
        state = parse_state(self._intrinsic, state_pb2.DPQuantileAggregatorState, data)
        size = self._spec.dtype.numpy.itemsize
        wanted = min(state.num_inputs, MAX_KEPT)
        check_length(self._intrinsic, "bytes of numbers", len(state.buffer), wanted * size)
        kept = np.frombuffer(state.buffer, self._spec.dtype.numpy)
        if kept.dtype.kind == "f" and not np.isfinite(kept).all():
            raise bad(self._intrinsic, "a number of the state is not finite")
        self._keep(kept)
        self._replaced = state.reservoir_sampling_count
        self.num_inputs = state.num_inputs

    def dump(self) -> bytes:
        """Return the state as a ``DPQuantileAggregatorState``."""
        return state_pb2.DPQuantileAggregatorState(
            num_inputs=self.num_inputs,
            reservoir_sampling_count=self._replaced,
            buffer=self.kept.tobytes(),
        ).SerializeToString()

    def check(self, value: Tensor) -> None:
        """Refuse what is not one finite number."""
        name = self._spec.name
        if value.size != 1:
            problem = f"{name!r} has {value.size} numbers; a device contributes one"
            raise StatusError(Code.INVALID_ARGUMENT, problem)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise StatusError(Code.INVALID_ARGUMENT, f"{name!r} has a number that is not finite")

    def add(self, value: Tensor) -> None:
        """Take a device's number."""
        self.num_inputs += 1
        if self._count < MAX_KEPT:
            self._keep(value.reshape(1))
            return
        self._replaced += 1
        # 64 bits more than the number has: as even as can be noticed.
        drawn = Randomness().bits(64 + self.num_inputs.bit_length())
        place = drawn * self.num_inputs >> (64 + self.num_inputs.bit_length())
        if place < MAX_KEPT:
            self._kept[place] = value.reshape(1)[0]

    def merge(self, other: Quantile) -> None:
        """Take another one's numbers, or as many of both at random as there were devices."""
        together = self.num_inputs + other.num_inputs
        if together <= MAX_KEPT:
            self._keep(other.kept)
        else:
            randomness = Randomness()
            # Which of the first MAX_KEPT of all devices, in random order, are ours.
            ours = int((sample_of(together, MAX_KEPT, randomness) < self.num_inputs).sum())
            parts = [
                numbers[sample_of(numbers.size, size, randomness)]
                for numbers, size in ((self.kept, ours), (other.kept, MAX_KEPT - ours))
            ]
            kept = np.concatenate(parts)
            self._count = 0
            self._keep(kept[sample_of(kept.size, kept.size, randomness)])
            self._replaced = together - MAX_KEPT
        self.num_inputs = together

    def exact(self) -> float:
        """Return the quantile without noise; NaN of nothing."""
        if not self._count:
            return math.nan
        rank = min(int(self._quantile * self._count), self._count - 1)
        return float(np.sort(self.kept)[rank])

    def noisy(self, epsilon: float, randomness: Randomness) -> float:
        """Return the upper bound of the bucket in which the quantile seems to be."""
        mechanism = choose_mechanism(epsilon / 2, 0.0, 1.0, math.inf)
        noise = mechanism.draw(LAST + 2, randomness).astype(np.float64) * mechanism.grid
        numbers = np.minimum(buckets(self.kept), LAST + 1)
        counts = np.cumsum(np.bincount(numbers, minlength=LAST + 2)[: LAST + 1])
        above = counts + noise[1:] > self._quantile * self._count + noise[0]
        return upper_bound(int(np.argmax(above)) if above.any() else LAST)

    def _keep(self, numbers: Tensor) -> None:
        count = self._count + numbers.size
        if count > self._kept.size:
            longer: Tensor = np.zeros(min(MAX_KEPT, max(count, 2 * self._kept.size)), numbers.dtype)
            longer[: self._count] = self.kept
            self._kept = longer
        self._kept[self._count : count] = numbers
        self._count = count


class BundleAccumulator(Randomised):
    """Quantiles that share one budget equally.

    :param intrinsic: a ``differential_privacy_tensor_aggregator_bundle``.
    :param options: ``allow_no_noise``.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit; FAILED_PRECONDITION if it
        asks for no noise and the operator does not allow that.
    """

    def __init__(self, intrinsic: Intrinsic, options: Options = NO_OPTIONS) -> None:
        if intrinsic.inputs or intrinsic.outputs or not intrinsic.nested:
            raise bad(intrinsic, "it has nothing but two parameters and what it nests")
        self._epsilon, delta = _budget(intrinsic)
        if not (self._epsilon > 0 and 0 <= delta < 1):
            raise bad(intrinsic, f"({self._epsilon}, {delta}) is no epsilon and delta")
        if self._epsilon >= NO_NOISE and options.get(ALLOW_NO_NOISE) is not True:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"intrinsic {intrinsic.uri!r}: an epsilon of {self._epsilon:g} asks for no noise "
                f"at all; the operator does not allow it ({ALLOW_NO_NOISE})",
            )
        self._intrinsic = intrinsic
        self._quantiles = [Quantile(nested) for nested in intrinsic.nested]

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes) -> Self:
        """Rebuild an accumulator from :meth:`dump`."""
        self = cls(intrinsic, options)
        state = parse_state(intrinsic, state_pb2.DPTensorAggregatorBundleState, data)
        parts = state.nested_serialized_states
        check_length(intrinsic, "quantiles", len(parts), len(self._quantiles))
        for quantile, part in zip(self._quantiles, parts, strict=True):
            quantile.load(part)
            check_length(intrinsic, "inputs", quantile.num_inputs, state.num_inputs)
        return self

    @property
    def num_inputs(self) -> int:
        """How many contributions it holds."""
        return self._quantiles[0].num_inputs

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse what is not one finite number for each quantile."""
        for quantile, value in zip(self._quantiles, inputs, strict=True):
            quantile.check(value)

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Keep the numbers."""
        for quantile, value in zip(self._quantiles, inputs, strict=True):
            quantile.add(value)

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration."""
        check_mergeable(self, other)

    def merge(self, other: Self) -> None:
        """Keep the other's numbers, too."""
        self.validate_merge(other)
        for mine, theirs in zip(self._quantiles, other._quantiles, strict=True):
            mine.merge(theirs)

    def promise(self, context: ReleaseContext) -> Promise:
        """Return the epsilon; delta is not needed. The noise is in the ranks, not in the result."""
        delta = _budget(self._intrinsic)[1] if self._epsilon >= NO_NOISE else 0.0
        event = EpsilonDelta(epsilon=self._epsilon, delta=delta, relation="replace_one")
        return Promise(to_cost(event))

    def release(self, context: ReleaseContext) -> Release:
        """Draw the quantiles."""
        if self._epsilon >= NO_NOISE:
            if not self.num_inputs:
                raise StatusError(Code.FAILED_PRECONDITION, "a quantile of nothing, without noise")
            return Release(self.report(), self.promise(context))
        randomness = Randomness(entropy=context.entropy)
        own = self._epsilon / len(self._quantiles)
        drawn = [np.asarray(quantile.noisy(own, randomness)) for quantile in self._quantiles]
        return Release(drawn, self.promise(context))

    def report(self) -> list[Tensor]:
        """Return the quantiles without noise."""
        return [np.asarray(quantile.exact()) for quantile in self._quantiles]

    def dump(self) -> bytes:
        """Return the state as a ``DPTensorAggregatorBundleState``."""
        return state_pb2.DPTensorAggregatorBundleState(
            num_inputs=self.num_inputs,
            nested_serialized_states=[quantile.dump() for quantile in self._quantiles],
        ).SerializeToString()


def _budget(intrinsic: Intrinsic) -> tuple[float, float]:
    values = [parameter.value for parameter in intrinsic.parameters]
    if len(values) != 2 or any(v.dtype.kind not in "iuf" or v.size != 1 for v in values):
        raise bad(intrinsic, "its parameters must be two numbers: epsilon and delta")
    epsilon, delta = (float(value.reshape(())[()]) for value in values)
    return epsilon, delta


BUNDLE = AggregatorFactory(
    DP_BUNDLE_URI,
    frozenset({DP_BUNDLE_URI}),
    "quantiles of one number a device, with noise",
    BundleAccumulator,
    BundleAccumulator.load,
    needs_all_inputs=True,
    randomised=True,
)
