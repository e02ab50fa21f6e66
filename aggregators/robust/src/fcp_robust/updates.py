"""What the aggregators here have in common: which intrinsics they serve, and updates as vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcp_core.aggregation.aggregator import JOINT_URI
from fcp_core.aggregation.checks import MEAN_URI, WEIGHTED_MEAN_URI, bad, check_mean
from fcp_core.aggregation.spec import Intrinsic, Tensor

MEANS = frozenset({MEAN_URI, WEIGHTED_MEAN_URI})

#: Numbers of all updates together that are worked on at a time.
CHUNK = 1 << 20

Vector = NDArray[Any]


class Updates:
    """How the tensors of one contribution become one vector, and the result tensors again.

    :param intrinsic: a mean or a weighted mean, or several of them joined.
    :raises StatusError: INVALID_ARGUMENT if it is anything else.
    """

    def __init__(self, intrinsic: Intrinsic) -> None:
        joined = intrinsic.uri == JOINT_URI
        self.intrinsic = intrinsic
        self.means = intrinsic.nested if joined else (intrinsic,)
        if joined and (intrinsic.inputs or intrinsic.outputs or intrinsic.parameters):
            raise bad(intrinsic, "it joins others and has nothing of its own")
        if not self.means:
            raise bad(intrinsic, "it joins nothing")
        for mean in self.means:
            _check(mean)
        self.specs = [mean.outputs[0] for mean in self.means]
        self._ends = np.cumsum([math.prod(spec.shape) for spec in self.specs]).tolist()
        self.size: int = self._ends[-1]
        dtypes = [spec.dtype.numpy for spec in self.specs]
        self.dtype: np.dtype[Any] = np.result_type(*dtypes).newbyteorder("<")

    def values(self, inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Iterate over the value and the weight, if any, of each mean."""
        tensors = iter(inputs)
        for mean in self.means:
            value = next(tensors)
            yield value, next(tensors) if mean.uri == WEIGHTED_MEAN_URI else None

    def check_finite(self, inputs: Sequence[Tensor]) -> None:
        """Refuse NaN and infinity: one of them would decide every distance and every sum.

        :raises StatusError: INVALID_ARGUMENT, naming the tensor.
        """
        for mean, (value, _) in zip(self.means, self.values(inputs), strict=True):
            if not np.isfinite(value).all():
                raise bad(mean, f"{mean.inputs[0].name!r} has a NaN or an infinity in it")

    def join(self, inputs: Sequence[Tensor]) -> Vector:
        """Return the values of one contribution as a new vector."""
        vector = np.empty(self.size, self.dtype)
        for target, (value, _) in zip(self.parts(vector), self.values(inputs), strict=True):
            target[...] = np.reshape(value, -1)
        return vector

    def parts(self, vector: Vector) -> list[Vector]:
        """Return views on a vector, one for each mean."""
        return np.split(vector, self._ends[:-1])

    def tensors(self, vector: Vector) -> list[Tensor]:
        """Return the result for each mean."""
        with np.errstate(over="ignore"):
            return [
                part.astype(spec.dtype.numpy).reshape(spec.shape)
                for part, spec in zip(self.parts(vector), self.specs, strict=True)
            ]


def _check(mean: Intrinsic) -> None:
    if mean.uri not in MEANS:
        raise bad(mean, "only means can be replaced by a robust aggregator")
    check_mean(mean)
