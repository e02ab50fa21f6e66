"""What one device contributes to a group-by: summed by its keys, and bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fcp_core.aggregation.key_index import KeyIndex, distinct_rows
from fcp_core.aggregation.spec import Tensor
from fcp_core.protocol.status import Code, StatusError
from fcp_privacy.group_by_noise import grid_of_sums
from fcp_privacy.group_by_plan import Bounds, GroupByPlan
from fcp_privacy.randomness import Randomness

#: The longest string of a key, in bytes.
MAX_STRING = 256
#: How far below a whole number of grid units a scaled value may be and still become it.
_NEARLY = 1e-10

Integers = NDArray[np.int64]


class DeviceBounds:
    """Bounds contributions as a plan says.

    :param plan: the plan.
    """

    def __init__(self, plan: GroupByPlan) -> None:
        self._plan = plan
        self._keys = plan.intrinsic.inputs
        self._values = [nested.inputs[0] for nested in plan.intrinsic.nested]
        self._domain: list[KeyIndex] = []
        for spec, values in zip(self._keys, plan.domain or (), strict=False):
            index = KeyIndex([spec.dtype])
            index.add([values])
            self._domain.append(index)
        mechanisms = plan.mechanisms or (None,) * len(plan.columns)
        integer = [spec.dtype.numpy.kind in "iu" for spec in self._values]
        #: Of what each column's contributions are multiples.
        self.grids = [
            grid_of_sums(mechanism, bounds.most, whole)
            for mechanism, bounds, whole in zip(mechanisms, plan.columns, integer, strict=True)
        ]
        #: In what unit each column's sums are kept: whole numbers as they are.
        self.units = [
            1.0 if whole else grid for whole, grid in zip(integer, self.grids, strict=True)
        ]

    def check(self, inputs: Sequence[Tensor]) -> None:
        """Refuse a contribution that has no rows to speak of.

        :raises StatusError: INVALID_ARGUMENT for columns of several lengths, strings that are too
            long, numbers that are not finite, or sums of whole numbers that nothing can hold.
        """
        specs = (*self._keys, *self._values)
        shape = inputs[0].shape
        for spec, tensor in zip(specs, inputs, strict=True):
            if tensor.ndim > 1 or tensor.shape != shape:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"{spec} has shape {tensor.shape} and {specs[0].name!r} has {shape}; "
                    "the columns of one contribution must be of one length",
                )
            if tensor.dtype == object:
                longest = max(map(len, tensor.reshape(-1)), default=0)
                if longest > MAX_STRING:
                    raise StatusError(
                        Code.INVALID_ARGUMENT,
                        f"key {spec.name!r} has a string of {longest} bytes; {MAX_STRING} are the "
                        "most",
                    )
        for spec, tensor in zip(self._values, inputs[len(self._keys) :], strict=True):
            if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"column {spec.name!r} has a number that is not finite"
                )
            if tensor.dtype.kind != "f" and tensor.size:
                largest = max(abs(int(tensor.min())), abs(int(tensor.max())))
                if largest * tensor.size > np.iinfo(np.int64).max:
                    raise StatusError(
                        Code.INVALID_ARGUMENT,
                        f"column {spec.name!r} has {largest} among {tensor.size} rows, whose sum "
                        "may be out of the range of int64",
                    )

    def bounded(self, inputs: Sequence[Tensor], sample: bool = True) -> list[Tensor]:
        """Return the keys that count, each once, and their bounded sums, as int64 in the units.

        :param inputs: what :meth:`check` has accepted.
        :param sample: whether to choose among too many groups; without that all are returned.
        """
        columns = [np.reshape(tensor, -1) for tensor in inputs]
        keys, values = columns[: len(self._keys)], columns[len(self._keys) :]
        if self._domain:
            rows = np.ones(keys[0].size, bool)
            for index, key in zip(self._domain, keys, strict=True):
                rows &= index.find([key]).ordinals < len(index)
            keys, values = [key[rows] for key in keys], [value[rows] for value in values]
        if keys:
            keys, ordinals = distinct_rows(keys)
            count = keys[0].size
        else:
            count = min(1, columns[0].size)
            ordinals = np.zeros(columns[0].size, np.int64)
        chosen: Integers | None = None
        if sample and count > self._plan.groups:
            chosen = sample_of(count, self._plan.groups, Randomness())
            keys = [key[chosen] for key in keys]
        result = list(keys)
        for place, bounds in enumerate(self._plan.columns):
            kind = values[place].dtype.kind
            sums = np.zeros(count, np.float64 if kind == "f" else np.int64)
            with np.errstate(over="ignore", invalid="ignore"):
                np.add.at(sums, ordinals, values[place].astype(sums.dtype, copy=False))
            if chosen is not None:
                sums = sums[chosen]
            result.append(self._bound(sums, bounds, self.grids[place], self.units[place]))
        return result

    @staticmethod
    def _bound(sums: Tensor, bounds: Bounds, grid: float, unit: float) -> Integers:
        """Clamp, scale and round sums towards 0, to multiples of the grid."""
        if sums.dtype.kind == "f":
            # What rows bring beyond the largest double is as much as there can be.
            sums = np.nan_to_num(sums, nan=0.0)
        if bounds.largest is not None:
            most = math.floor(bounds.largest) if sums.dtype.kind != "f" else bounds.largest
            sums = np.clip(sums, -most, most)
        sizes = np.abs(sums).astype(np.float64)
        factor = 1.0
        if sizes.size and (largest := sizes.max()) > 0:
            # Over the largest one, whose square may be infinite.
            parts = sizes / largest
            for bound, norm in ((bounds.l1, parts.sum()), (bounds.l2, np.linalg.norm(parts))):
                if bound is not None:
                    factor = min(factor, bound / largest / norm)
        if factor == 1 and grid == unit == 1:
            return sums.astype(np.int64)
        multiples = np.floor(sizes * factor / grid + _NEARLY)
        result: Integers = (np.sign(sums) * multiples * (grid / unit)).astype(np.int64)
        return result


def sample_of(count: int, size: int, randomness: Randomness) -> Integers:
    """Return *size* of the numbers below *count*, each set of them as likely as another."""
    return np.argsort(randomness.words(count), kind="stable")[:size]
