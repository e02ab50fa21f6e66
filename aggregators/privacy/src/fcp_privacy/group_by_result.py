"""The groups of a group-by before its noise: those that there are, those that are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fcp_core.aggregation.checks import bad
from fcp_core.aggregation.key_index import KeyIndex
from fcp_core.aggregation.spec import Tensor
from fcp_privacy.group_by_plan import GroupByPlan
from fcp_privacy.partitions import PartitionSelection
from fcp_privacy.randomness import Randomness

Integers = NDArray[np.int64]


def combinations(plan: GroupByPlan, most: int) -> tuple[int, ...]:
    """Return how many values each key's domain has.

    :param most: how many combinations of them there may be; 0: as many as there are.
    :raises StatusError: INVALID_ARGUMENT if there are more.
    """
    sizes = tuple(values.size for values in plan.domain or ())
    if most and math.prod(sizes) > most:
        product = " * ".join(map(str, sizes))
        raise bad(
            plan.intrinsic,
            f"its domains have {product} = {math.prod(sizes)} combinations; max_groups is {most}",
        )
    return sizes


@dataclass(frozen=True)
class Groups:
    """Groups in columns.

    :param keys: a column for each key.
    :param sums: a column for each sum, in whole numbers.
    :param devices: of how many devices each is, as far as that is counted.
    """

    keys: Sequence[Tensor]
    sums: Sequence[Integers]
    devices: Integers

    @property
    def count(self) -> int:
        """How many there are."""
        return int((*self.keys, *self.sums)[0].size)

    def of_rows(self, rows: Integers) -> Groups:
        """Return some of them."""
        return Groups(
            [key[rows] for key in self.keys],
            [own[rows] for own in self.sums],
            self.devices[rows],
        )

    def chosen(self, selection: PartitionSelection, randomness: Randomness) -> Groups:
        """Choose groups by their devices, each with its probability."""
        known, which = np.unique(self.devices, return_inverse=True)
        # Of each probability the first 64 bits, and what comes after them.
        likely = [Fraction(selection.probability(int(devices))) for devices in known]
        bits = [min(int(each * (1 << 64)), (1 << 64) - 1) for each in likely]
        drawn = randomness.words(self.count)
        first = np.array(bits, np.uint64)[which]
        kept = (drawn < first) | np.array([each >= 1 for each in likely], bool)[which]
        for row in np.flatnonzero((drawn == first) & ~kept):
            rest = likely[which[row]] * (1 << 64) - int(first[row])
            kept[row] = Fraction(randomness.bits(64), 1 << 64) < rest
        return self.of_rows(np.flatnonzero(kept))

    def places(self, plan: GroupByPlan) -> Integers:
        """Return the place of each group among all combinations; the first key varies fastest.

        :raises StatusError: INVALID_ARGUMENT for a key that is not in its domain.
        """
        places, stride = np.zeros(self.count, np.int64), 1
        for spec, key, values in zip(
            plan.intrinsic.inputs, self.keys, plan.domain or (), strict=True
        ):
            index = KeyIndex([spec.dtype])
            index.add([values])
            found = index.find([key])
            if found.groups > values.size:
                raise bad(plan.intrinsic, f"key {spec.name!r} of the state is not in its domain")
            places += found.ordinals * stride
            stride *= values.size
        return places

    def over_domain(self, plan: GroupByPlan, most: int) -> Groups:
        """Return all combinations; those that nobody contributed to have sums of 0."""
        sizes = combinations(plan, most)
        total, places = math.prod(sizes), self.places(plan)
        keys, stride = [], 1
        for values in plan.domain or ():
            keys.append(np.tile(np.repeat(values, stride), total // stride // values.size))
            stride *= values.size
        sums = []
        for own in self.sums:
            column = np.zeros(total, np.int64)
            column[places] = own
            sums.append(column)
        return Groups(keys, sums, np.zeros(total, np.int64))
