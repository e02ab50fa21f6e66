"""Which intrinsics the aggregators with noise serve, and a contribution to them as one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fcp_core.aggregation.aggregator import JOINT_URI
from fcp_core.aggregation.checks import bad, check_counts, check_same
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor

SUM_URI = "federated_sum"
MEAN_URI = "federated_mean"
URIS = frozenset({SUM_URI, MEAN_URI})

Floats = NDArray[np.float64]


class Vectors:
    """Sums and unweighted means as one vector: what one device changes has one norm.

    :param intrinsic: a sum or a mean, or several of them joined.
    :raises StatusError: INVALID_ARGUMENT if it is anything else.
    """

    def __init__(self, intrinsic: Intrinsic) -> None:
        joined = intrinsic.uri == JOINT_URI
        self.intrinsic = intrinsic
        self.parts = intrinsic.nested if joined else (intrinsic,)
        if joined and (intrinsic.inputs or intrinsic.outputs or intrinsic.parameters):
            raise bad(intrinsic, "it joins others and has nothing of its own")
        if not self.parts:
            raise bad(intrinsic, "it joins nothing")
        for part in self.parts:
            _check(part)
        self.specs = [part.outputs[0] for part in self.parts]
        self._ends = np.cumsum([math.prod(spec.shape) for spec in self.specs]).tolist()
        self.size: int = self._ends[-1]

    def check_finite(self, inputs: Sequence[Tensor]) -> None:
        """Refuse NaN and infinity: they have no norm.

        :raises StatusError: INVALID_ARGUMENT, naming the tensor.
        """
        for part, value in zip(self.parts, inputs, strict=True):
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise bad(part, f"{part.inputs[0].name!r} has a NaN or an infinity in it")

    def scale(self, scales: Mapping[str, float]) -> Floats | None:
        """Return a factor for each number of the vector; None if all are 1.

        :param scales: by name of output.
        :raises StatusError: INVALID_ARGUMENT for the name of no output, or a factor that is not
            above 0 and finite.
        """
        known = {spec.name for spec in self.specs}
        for name, factor in scales.items():
            if name not in known:
                raise bad(self.intrinsic, f"scales names {name!r}, which is no output of it")
            if not 0 < factor < math.inf:
                raise bad(self.intrinsic, f"scales has {factor:g} for {name!r}: take more than 0")
        if not scales:
            return None
        vector = np.empty(self.size)
        for spec, target in zip(self.specs, self._split(vector), strict=True):
            target[...] = scales.get(spec.name, 1.0)
        return vector

    def join(self, inputs: Sequence[Tensor]) -> Floats:
        """Return the values of one contribution as a new vector."""
        vector = np.empty(self.size)
        for target, value in zip(self._split(vector), inputs, strict=True):
            target[...] = np.reshape(value, -1)
        return vector

    def tensors(self, vector: Floats, clients: float) -> list[Tensor]:
        """Return the results of the sums in a vector; means are divided by *clients*."""
        results = []
        for part, spec, values in zip(self.parts, self.specs, self._split(vector), strict=True):
            result = values / clients if part.uri == MEAN_URI else values
            dtype = spec.dtype.numpy
            if dtype.kind != "f":
                info = np.iinfo(dtype)
                # The largest double below the limit of an int64 is 1,024 less.
                high = np.nextafter(float(info.max), 0) if dtype.itemsize == 8 else info.max
                result = np.clip(np.rint(result), info.min, high)
            with np.errstate(over="ignore"):
                results.append(result.astype(dtype).reshape(spec.shape))
        return results

    def _split(self, vector: Floats) -> list[Floats]:
        return np.split(vector, self._ends[:-1])


def norm_of(vector: Floats) -> float:
    """Return the L2 norm of a vector of finite numbers; it does not overflow."""
    largest = float(np.max(np.abs(vector), initial=0.0))
    if largest == 0:
        return 0.0
    if 1e-140 < largest < 1e140:
        return math.sqrt(float(np.dot(vector, vector)))
    scaled = vector / largest
    return largest * math.sqrt(float(np.dot(scaled, scaled)))


def _check(part: Intrinsic) -> None:
    if part.uri not in URIS:
        raise bad(part, "only sums and unweighted means have noise added to them")
    check_counts(part, inputs=1, outputs=1)
    value = part.inputs[0]
    floats = (DataType.FLOAT, DataType.DOUBLE)
    if value.dtype is DataType.STRING or (part.uri == MEAN_URI and value.dtype not in floats):
        raise bad(part, f"{value} is of a dtype that cannot be averaged or summed here")
    check_same(part, value, part.outputs[0])
