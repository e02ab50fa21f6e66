"""``fedsql_dp_group_by``: sums by key that say nearly the same whatever one device sends.

The wire form of its state is the aggregation core's: a ``GroupByAggregatorState``, then padding,
then the padding's length. The core pads by a random length, since its partial aggregates leave the
machine that may see them; here they do not, and the padding is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from fcp_core.aggregation.aggregator import NO_OPTIONS, AggregatorFactory, Options
from fcp_core.aggregation.checks import bad, check_length, check_mergeable, parse_state
from fcp_core.aggregation.configuration import DP_GROUP_BY_URI, GROUP_BY_URI
from fcp_core.aggregation.group_by import MIN_CONTRIBUTORS, GroupByAccumulator
from fcp_core.aggregation.group_columns import COLUMN, SUM_URI
from fcp_core.aggregation.release import Noise, Promise, Randomised, Release, ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, Tensor, TensorSpec
from fcp_core.aggregation.tensors import tensor_from_proto
from fcp_core.protocol.protos import aggregation_core_pb2 as state_pb2
from fcp_privacy.events import Composed, EpsilonDelta, Event, to_cost
from fcp_privacy.group_by_device import DeviceBounds, sample_of
from fcp_privacy.group_by_noise import add_noise
from fcp_privacy.group_by_plan import (
    ALLOW_NO_NOISE,
    Algorithm,
    GroupByPlan,
)
from fcp_privacy.group_by_result import Groups, combinations
from fcp_privacy.randomness import Randomness

_PADDING, _LENGTH = b"a", 8
#: Sums of so many in magnitude have room for another device.
_ROOM = 1 << 62


class DpGroupByAccumulator(Randomised):
    """Sums by key of what each device may contribute; the result has noise.

    Its state is a plain group-by's of bounded contributions, in whole numbers.

    :param intrinsic: a ``fedsql_dp_group_by``.
    :param options: ``allow_no_noise``, ``max_groups`` and ``max_bytes``.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit; FAILED_PRECONDITION if it
        asks for no noise and the operator does not allow that.
    """

    def __init__(self, intrinsic: Intrinsic, options: Options = NO_OPTIONS) -> None:
        self._intrinsic = intrinsic
        self._options = options
        self._plan = GroupByPlan.of(intrinsic, options.get(ALLOW_NO_NOISE) is True)
        self._device = DeviceBounds(self._plan)
        #: What a device adds to a group at most, in the units that are kept.
        self._most = max(
            (
                bounds.most / unit
                for bounds, unit in zip(self._plan.columns, self._device.units, strict=True)
            ),
            default=0.0,
        )
        self._inner = GroupByAccumulator(self._plain(), options)
        if self._plan.algorithm is Algorithm.EXHAUSTIVE:
            combinations(self._plan, self._inner.max_groups)

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes) -> Self:
        """Rebuild an accumulator from :meth:`dump`, or from the aggregation core's state."""
        self = cls(intrinsic, options)
        if self._plan.noisy:
            length = int.from_bytes(data[-_LENGTH:], "little")
            end = len(data) - _LENGTH - length
            if end < 0 or data[end:-_LENGTH] != _PADDING * length:
                raise bad(intrinsic, "the state does not end in its padding and its length")
            data = data[:end]
        state = parse_state(intrinsic, state_pb2.GroupByAggregatorState, data)
        nested = intrinsic.nested
        check_length(intrinsic, "sums", len(state.nested_aggregators), len(nested))
        groups = int(bool(nested) and bool(state.nested_aggregators[0].vector_data))
        if state.keys:
            groups = math.prod(state.keys[0].shape.dim_sizes)
        for place, part in enumerate(state.nested_aggregators):
            part.vector_data = self._from_wire(place, part.vector_data, groups)
        self._inner = GroupByAccumulator.load(
            self._plain(), self._options, state.SerializeToString()
        )
        self._check_domain(state)
        return self

    @property
    def num_inputs(self) -> int:
        """How many contributions it holds."""
        return self._inner.num_inputs

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse what is no contribution, and what there is no room for."""
        self._device.check(inputs)
        if (self._inner.num_inputs + 1) * self._most < _ROOM:
            # Then only the number of groups is open.
            rows = np.zeros(inputs[0].size, np.int64)
            keys = [np.reshape(tensor, -1) for tensor in inputs[: len(self._intrinsic.inputs)]]
            self._inner.validate([*keys, *[rows] * len(self._plan.columns)])
        else:
            self._inner.validate(self._device.bounded(inputs, sample=False))

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Bound the contribution, and add it."""
        bounded = self._device.bounded(inputs)
        self._inner.accumulate(bounded)

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration, or one that is too large together."""
        check_mergeable(self, other)
        self._inner.validate_merge(other._inner)

    def merge(self, other: Self) -> None:
        """Add the other's groups, which are bounded already."""
        self.validate_merge(other)
        self._inner.merge(other._inner)

    def promise(self, context: ReleaseContext) -> Promise:
        """Return what the parameters say."""
        return Promise(to_cost(self._event()), self._noise())

    def release(self, context: ReleaseContext) -> Release:
        """Draw the noise and choose the groups; they come in random order, or as their domain."""
        if not self._plan.noisy:
            return Release(self.report(), self.promise(context))
        randomness = Randomness(entropy=context.entropy)
        plan, groups = self._plan, self._groups()
        if plan.selection is not None:
            groups = groups.chosen(plan.selection, randomness)
        outputs = [nested.outputs[0].dtype for nested in self._intrinsic.nested]
        shown = np.ones(groups.count, bool)
        sums: list[Tensor] = []
        for place, mechanism in enumerate(plan.mechanisms):
            unit = self._device.units[place]
            real, whole = add_noise(groups.sums[place], unit, mechanism, randomness)
            sums.append(_as(outputs[place], real, whole))
            if mechanism.threshold is not None and groups.keys:
                negative = groups.sums[place] < 0
                shown &= np.where(negative, -real, real) >= mechanism.threshold
        result = [*groups.keys, *sums]
        if plan.algorithm is not Algorithm.EXHAUSTIVE:
            rows = np.flatnonzero(shown)
            # The order of appearance would tell who came first.
            rows = rows[sample_of(rows.size, rows.size, randomness)]
            result = [column[rows] for column in result]
        return Release(result, self.promise(context))

    def report(self) -> list[Tensor]:
        """Return the groups without noise."""
        groups = self._groups()
        if self._plan.least is not None:
            rows = np.flatnonzero(self._inner.contributors >= self._plan.least)
            groups = groups.of_rows(rows)
        return [*groups.keys, *self._without_noise(groups.sums)]

    def dump(self) -> bytes:
        """Return the state in the aggregation core's form."""
        state = state_pb2.GroupByAggregatorState.FromString(self._inner.dump())
        sums = self._inner.groups()[len(self._intrinsic.inputs) :]
        for place, part in enumerate(state.nested_aggregators):
            part.vector_data = self._to_wire(place, sums[place])
        data = state.SerializeToString()
        return data + bytes(_LENGTH) if self._plan.noisy else data

    # Inside.

    def _plain(self) -> Intrinsic:
        """Return the group-by of the bounded contributions."""
        nested = [
            Intrinsic(SUM_URI, (spec,), (spec,))
            for place in range(len(self._plan.columns))
            for spec in (TensorSpec(f"sum {place}", DataType.INT64, COLUMN),)
        ]
        cap: tuple[Parameter, ...] = ()
        if self._plan.least is not None:
            # From one more than the second crossover on a group is always shown.
            selection = self._plan.selection
            enough = self._plan.least if selection is None else selection.second_crossover + 1
            cap = (Parameter(MIN_CONTRIBUTORS, np.array(enough)),)
        intrinsic = self._intrinsic
        return Intrinsic(GROUP_BY_URI, intrinsic.inputs, intrinsic.outputs, cap, tuple(nested))

    def _groups(self) -> Groups:
        """Return the groups as they are: all of the domain, if that is closed."""
        keys = len(self._intrinsic.inputs)
        columns = self._inner.groups()
        groups = Groups(columns[:keys], columns[keys:], self._inner.contributors)
        if self._plan.algorithm is Algorithm.EXHAUSTIVE:
            return groups.over_domain(self._plan, self._inner.max_groups)
        if not keys and self._plan.least is None and not groups.count:
            # The one group that there is does not depend on anybody.
            zero = np.zeros(1, np.int64)
            return Groups([], [zero] * len(groups.sums), zero)
        return groups

    def _without_noise(self, sums: Sequence[NDArray[np.int64]]) -> list[Tensor]:
        result = []
        for nested, unit, own in zip(self._intrinsic.nested, self._device.units, sums, strict=True):
            real = own.astype(np.float64) * unit
            result.append(_as(nested.outputs[0].dtype, real, own.astype(object)))
        return result

    def _event(self) -> Event:
        plan = self._plan
        if not plan.noisy:
            return EpsilonDelta(epsilon=plan.epsilon, delta=plan.delta, relation="replace_one")
        # The sums are for a device that is replaced, which changes twice its groups.
        sums = EpsilonDelta(
            epsilon=math.fsum(mechanism.epsilon for mechanism in plan.mechanisms),
            delta=math.fsum(mechanism.delta for mechanism in plan.mechanisms),
            relation="replace_one",
        )
        if plan.selection is None:
            return sums
        # The choice is the core's, for a device that is added or removed.
        choice = EpsilonDelta(epsilon=plan.selection.epsilon, delta=plan.selection.delta)
        return Composed(events=(choice, sums)) if plan.mechanisms else choice

    def _noise(self) -> tuple[Noise, ...]:
        return tuple(
            Noise(
                nested.outputs[0].name,
                mechanism.kind,
                mechanism.stddev,
                {
                    "epsilon": mechanism.epsilon,
                    "delta": mechanism.delta,
                    **({} if mechanism.threshold is None else {"threshold": mechanism.threshold}),
                },
            )
            for nested, mechanism in zip(
                self._intrinsic.nested, self._plan.mechanisms, strict=False
            )
        )

    def _to_wire(self, place: int, sums: NDArray[np.int64]) -> bytes:
        """Return sums in the output's dtype, or in a wider one if it does not hold them."""
        dtype = self._intrinsic.nested[place].outputs[0].dtype
        if dtype in (DataType.FLOAT, DataType.DOUBLE):
            real = sums.astype(np.float64) * self._device.units[place]
            with np.errstate(over="ignore"):
                narrow = real.astype(dtype.numpy)
            return (narrow if np.array_equal(narrow, real) else real).tobytes()
        narrow = sums.astype(dtype.numpy)
        return (narrow if np.array_equal(narrow.astype(np.int64), sums) else sums).tobytes()

    def _from_wire(self, place: int, data: bytes, groups: int) -> bytes:
        """Return sums as they are kept."""
        nested = self._intrinsic.nested[place]
        dtype = nested.outputs[0].dtype.numpy
        if len(data) != groups * dtype.itemsize:
            dtype = np.dtype("<f8" if dtype.kind == "f" else "<i8")
        check_length(nested, "bytes of sums", len(data), groups * dtype.itemsize)
        sums: Tensor = np.frombuffer(data, dtype)
        if dtype.kind == "f":
            sums = sums.astype(np.float64) / self._device.units[place]
            if not (np.abs(sums) < _ROOM).all():
                raise bad(nested, "a sum of the state is too large, or no number")
        elif sums.size and not -_ROOM < int(sums.min()) <= int(sums.max()) < _ROOM:
            raise bad(nested, "a sum of the state is too large")
        return sums.astype(np.int64).tobytes()

    def _check_domain(self, state: state_pb2.GroupByAggregatorState) -> None:
        """Refuse a state with keys that its domain has not."""
        keys = [tensor_from_proto(key) for key in state.keys]
        if self._plan.domain is not None:
            sums = [np.zeros(keys[0].size, np.int64)] * len(self._plan.columns)
            Groups(keys, sums, np.zeros(0, np.int64)).places(self._plan)


def _as(dtype: DataType, real: NDArray[np.float64], whole: NDArray[np.object_]) -> Tensor:
    """Return numbers in an output's dtype, as near as it has them."""
    if dtype in (DataType.FLOAT, DataType.DOUBLE):
        limit = np.finfo(dtype.numpy).max
        return np.clip(real, -limit, limit).astype(dtype.numpy)
    limits = np.iinfo(dtype.numpy)
    return np.clip(whole, limits.min, limits.max).astype(dtype.numpy)


DP_GROUP_BY = AggregatorFactory(
    DP_GROUP_BY_URI,
    frozenset({DP_GROUP_BY_URI}),
    "sums by key with noise, which hide what one device sends",
    DpGroupByAccumulator,
    DpGroupByAccumulator.load,
    randomised=True,
)
