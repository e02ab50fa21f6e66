"""A mean of updates that are clipped to a norm; it keeps no update."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Accumulator, Options
from fcp_core.aggregation.checks import bad
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.protocol.status import Code, StatusError
from fcp_robust.distances import distance
from fcp_robust.updates import Updates

_HEADER = struct.Struct("<4sQQ")
_MAGIC = b"FRC1"

#: A sum of float64 numbers below this one, with all its rounding, is finite.
_LARGEST = 1e308


class NormClipping(Accumulator):
    """Scales every update down to a norm, then takes the mean with the devices' own weights.

    A weight is what a device says; where devices may lie, let the task be one of equal weights.

    :raises StatusError: INVALID_ARGUMENT if the intrinsic or an option will not do.
    """

    num_inputs = 0

    def __init__(self, intrinsic: Intrinsic, options: Options) -> None:
        self._updates = Updates(intrinsic)
        self._norm = float(options["norm"])
        if not 0 < self._norm < np.inf:
            raise bad(intrinsic, f"norm must be above 0, not {self._norm:g}")
        # One sum of values, and one of weights, for each mean.
        self._state = np.zeros(self._updates.size + len(self._updates.means))

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes) -> Self:
        """Rebuild an accumulator from :meth:`dump`.

        :raises StatusError: INVALID_ARGUMENT for bytes that are no such dump.
        """
        self = cls(intrinsic, options)
        magic, count, size = b"", 0, 0
        if len(data) >= _HEADER.size:
            magic, count, size = _HEADER.unpack_from(data)
        length = _HEADER.size + self._state.nbytes
        if magic != _MAGIC or size != self._state.size or len(data) != length:
            raise bad(intrinsic, f"these {len(data)} bytes are no dump of {cls.__name__}")
        self.num_inputs = count
        self._state[...] = np.frombuffer(data, "<f8", size, _HEADER.size)
        return self

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse NaN and infinity, and a weight below zero or too large to be added."""
        self._updates.check_finite(inputs)
        weights = self._state[self._updates.size :].tolist()
        for mean, total, (_, weight) in zip(
            self._updates.means, weights, self._updates.values(inputs), strict=True
        ):
            if weight is None:
                continue
            number = float(weight.reshape(())[()])
            name = mean.inputs[1].name
            if not 0 <= number < np.inf:
                raise bad(mean, f"weight {name!r} must be zero or above and finite")
            # A clipped number is at most the norm: then neither sum can become infinite.
            if not (total + number) * max(1.0, self._norm) < _LARGEST:
                raise bad(mean, f"weight {name!r} is {number:g}, too much to be added")

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Clip the update and add it."""
        with np.errstate(over="ignore"):
            vector = self._updates.join(inputs)
            norm = distance(vector, np.zeros_like(vector))
            scale = min(1.0, self._norm / norm) if norm else 1.0
            sums = self._updates.parts(self._state[: self._updates.size])
            values = zip(
                sums, self._updates.parts(vector), self._updates.values(inputs), strict=True
            )
            for index, (target, value, (_, given)) in enumerate(values):
                weight = 1.0 if given is None else float(given.reshape(())[()])
                target += value * np.float64(scale * weight)
                self._state[self._updates.size + index] += weight
        self.num_inputs += 1

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration, or weights that are too much together."""
        mine, size = (type(self), self._updates.intrinsic, self._norm), self._updates.size
        if (type(other), other._updates.intrinsic, other._norm) != mine:
            raise bad(self._updates.intrinsic, "only states of one configuration can be merged")
        totals = zip(self._state[size:].tolist(), other._state[size:].tolist(), strict=True)
        if any(not sum(both) * max(1.0, self._norm) < _LARGEST for both in totals):
            raise StatusError(Code.OUT_OF_RANGE, "the weights are too much to be added")

    def merge(self, other: Self) -> None:
        """Add the other's sums."""
        self.validate_merge(other)
        self._state += other._state
        self.num_inputs += other.num_inputs

    def report(self) -> list[Tensor]:
        """Return the mean; NaN without any update."""
        vector = self._state[: self._updates.size].copy()
        weights = self._state[self._updates.size :]
        with np.errstate(invalid="ignore", divide="ignore"):
            for part, weight in zip(self._updates.parts(vector), weights, strict=True):
                part /= weight
        return self._updates.tensors(vector)

    def dump(self) -> bytes:
        """Return the sums."""
        header = _HEADER.pack(_MAGIC, self.num_inputs, self._state.size)
        return header + self._state.astype("<f8").tobytes()
