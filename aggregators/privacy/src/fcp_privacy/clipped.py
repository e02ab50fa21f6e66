"""Clipped sums on a grid: the state that all aggregators with Gaussian noise share.

A contribution is scaled down to the clip, divided by the grid's step and rounded towards zero, so
that its norm is never above the clip. Sums are integers: their order does not matter at all, and
discrete noise is added to them exactly.
"""

from __future__ import annotations

import math
import struct
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Options
from fcp_core.aggregation.checks import bad
from fcp_core.aggregation.release import Noise, Randomised
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.protocol.status import Code, StatusError
from fcp_privacy.vectors import MEAN_URI, Floats, Vectors, norm_of

Integers = NDArray[np.int64]

#: The noise's standard deviation in steps of the grid.
STEPS = 1 << 30
#: Least standard deviation of the noise, in clips: with less there would be nothing to promise.
LEAST_NOISE = 1e-3
#: Scaled to this part of the clip: what is left takes the rounding of the norm.
_WITHIN = 1 - 1e-9
#: What a device has clipped by itself is within the clip, however it has rounded.
_ABOUT = 1 + 1e-6
_LARGEST = 1 << 62
_FINITE = 1e300
_HEADER = struct.Struct("<4sQQQd")
_MAGIC = b"FPC1"


class ClippedSums(Randomised):
    """Sums of clipped contributions.

    :param clip: the largest L2 norm of a contribution, over all tensors together.
    :param multiplier: the noise's standard deviation, divided by the clip.
    :param scales: by what outputs are multiplied before they are clipped, and divided by after the
        noise; of those that are not named by 1.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic or an option will not do.
    """

    num_inputs = 0

    def __init__(
        self,
        intrinsic: Intrinsic,
        options: Options,
        *,
        clip: float,
        multiplier: float,
        scales: Mapping[str, float] = {},
    ) -> None:
        self.vectors = Vectors(intrinsic)
        self._scales = scales
        self._scale = self.vectors.scale(scales)
        self.options = options
        if not 0 < clip < math.inf:
            raise bad(intrinsic, f"clip must be above 0 and finite, not {clip:g}")
        if not LEAST_NOISE <= multiplier < math.inf:
            raise bad(
                intrinsic,
                f"the noise multiplier is {multiplier:g}; below {LEAST_NOISE:g} there is no "
                "privacy to speak of. Take more, or an aggregator without noise",
            )
        self.clip, self.multiplier = clip, multiplier
        self.step = clip * multiplier / STEPS
        # What one device may add to a number.
        self._most = math.ceil(STEPS / multiplier)
        self.sums: Integers = np.zeros(self.vectors.size, np.int64)
        #: How many contributions were within the clip.
        self.within = 0

    @classmethod
    @abstractmethod
    def make(cls, intrinsic: Intrinsic, options: Options) -> Self:
        """Make an empty one."""

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes) -> Self:
        """Rebuild an accumulator from :meth:`dump`.

        :raises StatusError: INVALID_ARGUMENT for bytes that are no such dump.
        """
        self = cls.make(intrinsic, options)
        magic, count, within, size, step = b"", 0, 0, 0, 0.0
        if len(data) >= _HEADER.size:
            magic, count, within, size, step = _HEADER.unpack_from(data)
        length = _HEADER.size + self.sums.nbytes
        if (magic, size, step) != (_MAGIC, self.sums.size, self.step) or len(data) != length:
            raise bad(intrinsic, f"these {len(data)} bytes are no dump of {cls.__name__}")
        self.num_inputs, self.within = count, within
        self.sums[...] = np.frombuffer(data, "<i8", size, _HEADER.size)
        return self

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse NaN and infinity, and more contributions than an integer holds."""
        self.vectors.check_finite(inputs)
        self._check_room(self.num_inputs + 1)

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Clip the contribution, and add it."""
        vector = self.vectors.join(inputs)
        if self._scale is not None:
            with np.errstate(over="ignore"):
                vector *= self._scale
            # What a factor has made infinite would become NaN below, which nothing bounds.
            np.clip(vector, -_FINITE, _FINITE, out=vector)
        norm = norm_of(vector)
        self.within += norm <= self.clip * _ABOUT
        self.num_inputs += 1
        limit = self.clip * _WITHIN
        if norm > limit:
            vector *= limit / norm
        vector /= self.step
        # The conversion drops what is behind the point.
        self.sums += vector.astype(np.int64)

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration, or more than an integer holds."""
        mine = (type(self), self.vectors.intrinsic, self.step)
        if (type(other), other.vectors.intrinsic, other.step) != mine:
            raise bad(self.vectors.intrinsic, "only states of one configuration can be merged")
        self._check_room(self.num_inputs + other.num_inputs, Code.OUT_OF_RANGE)

    def merge(self, other: Self) -> None:
        """Add the other's sums."""
        self.validate_merge(other)
        self.sums += other.sums
        self.num_inputs += other.num_inputs
        self.within += other.within

    def report(self) -> list[Tensor]:
        """Return the result without noise; for the conformance kit."""
        return self.tensors(self.sums, self.clients(max(1, self.num_inputs)))

    def dump(self) -> bytes:
        """Return the sums."""
        header = _HEADER.pack(_MAGIC, self.num_inputs, self.within, self.sums.size, self.step)
        return header + self.sums.astype("<i8").tobytes()

    def clients(self, goal_count: int) -> int:
        """Return what means are divided by: the option, or how many the task is to have."""
        chosen: int = self.options.get("clients") or goal_count
        return chosen

    def tensors(self, sums: Integers, clients: int) -> list[Tensor]:
        """Return the outputs for sums in steps of the grid."""
        values: Floats = sums.astype(np.float64)
        values *= self.step
        if self._scale is not None:
            values /= self._scale
        return self.vectors.tensors(values, clients)

    def noise(
        self, clients: int, stddev: float, mechanism: str, **more: float
    ) -> tuple[Noise, ...]:
        """Describe noise of a standard deviation that the sums have."""
        return tuple(
            Noise(
                part.outputs[0].name,
                mechanism,
                stddev
                / (clients if part.uri == MEAN_URI else 1)
                / self._scales.get(part.outputs[0].name, 1.0),
                {"clip": self.clip, "clients": clients, **more},
            )
            for part in self.vectors.parts
        )

    def _check_room(self, count: int, code: Code = Code.INVALID_ARGUMENT) -> None:
        if count * self._most > _LARGEST:
            raise StatusError(code, f"{count} contributions are more than can be summed exactly")


def wanted(intrinsic: Intrinsic, options: Options, name: str) -> float:
    """Return an option that has no default.

    :raises StatusError: INVALID_ARGUMENT if it is not set.
    """
    value = options.get(name)
    if value is None:
        raise bad(intrinsic, f"the option {name!r} must be set")
    return float(value)
