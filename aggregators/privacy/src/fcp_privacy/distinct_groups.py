"""How many distinct values there are in each group, about, with noise.

As in :mod:`fcp_privacy.distinct`, what is counted are the codes that there are, here in each group.
A device brings at most ``max_values`` codes to each of ``max_groups_contributed`` groups. So one
that is replaced changes the counts of twice as many groups, each by no more than ``max_values``:
the L1 and the L2 norm of that are known, and each count has Laplace or Gaussian noise for it. Which
groups are shown is chosen by how many devices they have, as in a group-by with a minimum of
devices.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import NO_OPTIONS, Options
from fcp_core.aggregation.checks import bad, check_mergeable
from fcp_core.aggregation.configuration import GROUP_BY_URI
from fcp_core.aggregation.group_by import MIN_CONTRIBUTORS, GroupByAccumulator
from fcp_core.aggregation.group_columns import check_keys
from fcp_core.aggregation.key_index import KeyIndex, distinct_rows
from fcp_core.aggregation.release import Noise, Promise, Randomised, Release, ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, Tensor, TensorSpec
from fcp_core.protocol.status import Code, StatusError
from fcp_privacy.codes import MOST_VALUES, check_codes, number_of, values_of
from fcp_privacy.events import Composed, EpsilonDelta, to_cost
from fcp_privacy.group_by_device import MAX_STRING, sample_of
from fcp_privacy.group_by_noise import add_noise, choose_mechanism
from fcp_privacy.group_by_result import Groups
from fcp_privacy.partitions import PartitionSelection
from fcp_privacy.randomness import Randomness

_HEADER = struct.Struct("<4sQ")
_MAGIC = b"FPG1"
_NAMES = ("epsilon", "delta", "max_groups_contributed", "max_values")
_MOST_GROUPS = 1 << 20


class NoisyDistinctGroups(Randomised):
    """Notes which codes there are in each group.

    :param intrinsic: keys and one column of codes in, the keys and one column of numbers out; its
        parameters are ``epsilon``, ``delta``, ``max_groups_contributed``, ``max_values`` and, if
        groups of fewer devices are never to be shown, ``min_contributors_to_group``.
    :param options: those of a group-by, ``max_groups`` and ``max_bytes``.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit.
    """

    def __init__(self, intrinsic: Intrinsic, options: Options = NO_OPTIONS) -> None:
        *keys, codes = intrinsic.inputs
        *found, output = intrinsic.outputs
        check_keys(Intrinsic(intrinsic.uri, tuple(keys), tuple(found)))
        if intrinsic.nested or any(
            (each.dtype, each.shape) != (DataType.INT64, (-1,)) for each in (codes, output)
        ):
            raise bad(intrinsic, "after the keys it takes one column of int64 and gives one")
        self._intrinsic = intrinsic
        self._keys = len(keys)
        self._read(intrinsic)
        cap = Parameter(MIN_CONTRIBUTORS, np.array(self._selection.second_crossover + 1))
        both = (*keys, TensorSpec(codes.name, DataType.INT64, (-1,)))
        #: The group-bys that count devices, and that note codes.
        self._plain = (
            Intrinsic(GROUP_BY_URI, tuple(keys), tuple(keys), (cap,)),
            Intrinsic(GROUP_BY_URI, both, both),
        )
        self._devices, self._pairs = (GroupByAccumulator(each, options) for each in self._plain)

    def _read(self, intrinsic: Intrinsic) -> None:
        """Read the parameters."""
        given = {parameter.name: parameter.value for parameter in intrinsic.parameters}
        least = given.pop(MIN_CONTRIBUTORS, np.array(1))
        if set(given) != set(_NAMES) or len(intrinsic.parameters) > len(_NAMES) + 1:
            raise bad(intrinsic, f"its parameters must be {', '.join(_NAMES)}")
        self._epsilon, self._delta, groups, most = (
            number_of(intrinsic, name, given[name]) for name in _NAMES
        )
        minimum = number_of(intrinsic, MIN_CONTRIBUTORS, least)
        for name, number, limit in (
            (_NAMES[2], groups, _MOST_GROUPS),
            (_NAMES[3], most, MOST_VALUES),
            (MIN_CONTRIBUTORS, minimum, 1 << 31),
        ):
            if not (1 <= number <= limit and number == int(number)):
                raise bad(intrinsic, f"{name} must be from 1 to {limit}, not {number:g}")
        if not 1e-6 <= self._epsilon <= 1e3:
            raise bad(intrinsic, f"epsilon must be from 1e-6 to 1000, not {self._epsilon:g}")
        if not 0 < self._delta < 1:
            raise bad(intrinsic, f"delta must be above 0 and below 1, not {self._delta:g}")
        self._groups, self._most = int(groups), int(most)
        # Half of the budget for the choice of groups, half for the counts.
        epsilon, delta = self._epsilon / 2, self._delta / 2
        self._selection = PartitionSelection(epsilon, delta, self._groups, int(minimum))
        changed = 2 * self._groups
        self._mechanism = choose_mechanism(
            epsilon, delta, float(changed * self._most), math.sqrt(changed) * self._most
        )

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes) -> Self:
        """Rebuild an accumulator from :meth:`dump`.

        :raises StatusError: INVALID_ARGUMENT for bytes that are no such dump.
        """
        self = cls(intrinsic, options)
        if len(data) < _HEADER.size or not data.startswith(_MAGIC):
            raise bad(intrinsic, f"these {len(data)} bytes are no dump of distinct values")
        end = _HEADER.size + _HEADER.unpack_from(data)[1]
        parts = data[_HEADER.size : end], data[end:]
        self._devices, self._pairs = (
            GroupByAccumulator.load(plain, options, part)
            for plain, part in zip(self._plain, parts, strict=True)
        )
        return self

    @property
    def num_inputs(self) -> int:
        """How many contributions it holds."""
        return self._devices.num_inputs

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse what is no code, keys that are too long, and more than there is room for."""
        self._pairs.validate(inputs)
        check_codes(self._intrinsic.inputs[-1].name, inputs[-1])
        for spec, key in zip(self._intrinsic.inputs, inputs[:-1], strict=False):
            if key.dtype == object and max(map(len, key.reshape(-1)), default=0) > MAX_STRING:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"key {spec.name!r} has a string of more than {MAX_STRING} bytes",
                )

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Note the codes; of too many groups, or codes in one, as many at random as may be."""
        columns = [np.reshape(column, -1)[inputs[-1].reshape(-1) > 0] for column in inputs]
        if columns[0].size:
            columns = self._bounded(distinct_rows(columns)[0])
        self._devices.accumulate(columns[:-1])
        self._pairs.accumulate(columns)

    def _bounded(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """Return those of a device's codes that count."""
        randomness, count = Randomness(), columns[0].size
        keys, ordinals = distinct_rows(columns[:-1])
        chosen = sample_of(keys[0].size, self._groups, randomness)
        # In random order, and then by groups: how many of its group come before each.
        order = sample_of(count, count, randomness)
        order = order[np.argsort(ordinals[order], kind="stable")]
        ordered = ordinals[order]
        before = np.arange(count) - np.searchsorted(ordered, ordered)
        rows = np.sort(order[(before < self._most) & np.isin(ordered, chosen)])
        return [column[rows] for column in columns]

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration, or one that is too large."""
        check_mergeable(self, other)
        self._devices.validate_merge(other._devices)
        self._pairs.validate_merge(other._pairs)

    def merge(self, other: Self) -> None:
        """Note the other's codes."""
        self.validate_merge(other)
        self._devices.merge(other._devices)
        self._pairs.merge(other._pairs)

    def promise(self, context: ReleaseContext) -> Promise:
        """Return what it costs, and the noise of groups with few values."""
        return self._promised(1.0)

    def release(self, context: ReleaseContext) -> Release:
        """Choose the groups and add the noise; groups come in random order."""
        randomness = Randomness(entropy=context.entropy)
        groups = self._found().chosen(self._selection, randomness)
        groups = groups.of_rows(sample_of(groups.count, groups.count, randomness))
        noisy, _ = add_noise(groups.sums[0], 1.0, self._mechanism, randomness)
        values = [values_of(codes) for codes in noisy.tolist()]
        # One error bar for all: that of the group in which a code stands for most values.
        each = max((more for _, more in values), default=1.0)
        return Release([*groups.keys, _column(values)], self._promised(each))

    def report(self) -> list[Tensor]:
        """Return the estimates without noise; for the conformance kit."""
        groups = self._found()
        groups = groups.of_rows(np.flatnonzero(groups.devices >= self._selection.least))
        return [*groups.keys, _column([values_of(float(n)) for n in groups.sums[0]])]

    def dump(self) -> bytes:
        """Return which codes there are."""
        first = self._devices.dump()
        return _HEADER.pack(_MAGIC, len(first)) + first + self._pairs.dump()

    def _found(self) -> Groups:
        """Return the groups with how many codes each has."""
        keys = self._devices.groups()
        index = KeyIndex([spec.dtype for spec in self._intrinsic.inputs[: self._keys]])
        index.add(keys)
        ordinals = index.add(self._pairs.groups()[: self._keys])
        codes = np.bincount(ordinals, minlength=keys[0].size).astype(np.int64)
        return Groups(keys, [codes], self._devices.contributors)

    def _promised(self, each: float) -> Promise:
        """Return the promise of a result.

        :param each: how many values a code more or less is, at the result.
        """
        mechanism, selection = self._mechanism, self._selection
        described = {"epsilon": mechanism.epsilon, "max_values": self._most}
        name = self._intrinsic.outputs[-1].name
        noise = Noise(name, mechanism.kind, mechanism.stddev * each, described)
        choice = EpsilonDelta(epsilon=selection.epsilon, delta=selection.delta)
        counts = EpsilonDelta(
            epsilon=mechanism.epsilon, delta=mechanism.delta, relation="replace_one"
        )
        return Promise(to_cost(Composed(events=(choice, counts))), (noise,))


def _column(values: Sequence[tuple[float, Any]]) -> Tensor:
    return np.array([round(number) for number, _ in values], np.int64)
