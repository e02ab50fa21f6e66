"""How many distinct values there are, about, with noise.

Devices send codes of their values, as for HyperLogLog: a register and a rank. The server notes
which codes there are at all. One device brings ``max_values`` codes at most, so their number
changes by no more than that, whatever it sends; it has Laplace noise. The registers of
HyperLogLog itself have no such bound: one value can change its estimate by any amount.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import NO_OPTIONS, AggregatorFactory, Options
from fcp_core.aggregation.checks import bad, check_counts, check_mergeable
from fcp_core.aggregation.configuration import DP_DISTINCT_URI
from fcp_core.aggregation.release import Noise, Promise, Randomised, Release, ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor
from fcp_core.protocol import sketches
from fcp_privacy.codes import MOST_VALUES, check_codes, number_of, values_of
from fcp_privacy.distinct_groups import NoisyDistinctGroups
from fcp_privacy.events import EpsilonDelta, to_cost
from fcp_privacy.group_by_device import sample_of
from fcp_privacy.noise import discrete_laplace
from fcp_privacy.randomness import Randomness

#: The scale of the noise in steps of a grid, about; codes are whole multiples of a step.
_STEPS = 1 << 20
_HEADER = struct.Struct("<4sQ")
_MAGIC = b"FPD1"


class NoisyDistinct(Randomised):
    """Notes codes.

    :param intrinsic: one column of codes in, one number of values out; its parameters ``epsilon``
        and ``max_values`` are what it costs, and how many values a device brings at most.
    :raises StatusError: INVALID_ARGUMENT if the intrinsic does not fit.
    """

    num_inputs = 0

    def __init__(self, intrinsic: Intrinsic, options: Options = NO_OPTIONS) -> None:
        check_counts(intrinsic, inputs=1, outputs=1, parameters=(2,))
        specs = (*intrinsic.inputs, *intrinsic.outputs)
        if any(spec.dtype is not DataType.INT64 or spec.shape != (-1,) for spec in specs):
            raise bad(intrinsic, "it takes one column of int64 and gives one")
        found = {parameter.name: parameter.value for parameter in intrinsic.parameters}
        if set(found) != {"epsilon", "max_values"}:
            raise bad(intrinsic, "its parameters must be two numbers, epsilon and max_values")
        self._epsilon, most = (
            number_of(intrinsic, name, found[name]) for name in ("epsilon", "max_values")
        )
        if not 1e-6 <= self._epsilon <= 1e3:
            raise bad(intrinsic, f"epsilon must be from 1e-6 to 1000, not {self._epsilon:g}")
        if not (1 <= most <= MOST_VALUES and most == int(most)):
            raise bad(intrinsic, f"max_values must be from 1 to {MOST_VALUES}, not {most:g}")
        self._most = int(most)
        self._intrinsic = intrinsic
        self._seen = np.zeros(sketches.MAX_CODE, np.bool_)
        # So that the scale in steps is a whole number that is not too small for epsilon.
        self._grid = max(1, math.floor(_STEPS * self._epsilon / self._most))
        self._scale = math.ceil(self._most * self._grid / self._epsilon)

    @classmethod
    def load(cls, intrinsic: Intrinsic, options: Options, data: bytes) -> Self:
        """Rebuild an accumulator from :meth:`dump`.

        :raises StatusError: INVALID_ARGUMENT for bytes that are no such dump.
        """
        self = cls(intrinsic, options)
        if len(data) != _HEADER.size + self._seen.size // 8 or not data.startswith(_MAGIC):
            raise bad(intrinsic, f"these {len(data)} bytes are no dump of distinct values")
        self.num_inputs = _HEADER.unpack_from(data)[1]
        packed = np.frombuffer(data, np.uint8, offset=_HEADER.size)
        self._seen = np.unpackbits(packed).astype(np.bool_)
        return self

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Refuse what is no code."""
        check_codes(self._intrinsic.inputs[0].name, inputs[0])

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Note the codes; of too many, as many at random as a device may bring."""
        codes = np.unique(inputs[0][inputs[0] > 0])
        if codes.size > self._most:
            codes = codes[sample_of(codes.size, self._most, Randomness())]
        self._seen[codes] = True
        self.num_inputs += 1

    def validate_merge(self, other: Self) -> None:
        """Refuse a state of another configuration."""
        check_mergeable(self, other)

    def merge(self, other: Self) -> None:
        """Note the other's codes."""
        self.validate_merge(other)
        self._seen |= other._seen
        self.num_inputs += other.num_inputs

    def promise(self, context: ReleaseContext) -> Promise:
        """Return what it costs, and the noise that few values have."""
        return self._promised(1.0)

    def release(self, context: ReleaseContext) -> Release:
        """Add the noise."""
        (noise,) = discrete_laplace(self._scale, 1, Randomness(entropy=context.entropy))
        values, each = values_of(self._codes() + float(noise) / self._grid)
        return Release([_column(values)], self._promised(each))

    def report(self) -> list[Tensor]:
        """Return the estimate without noise; for the conformance kit."""
        return [_column(values_of(self._codes())[0])]

    def dump(self) -> bytes:
        """Return which codes there are."""
        return _HEADER.pack(_MAGIC, self.num_inputs) + np.packbits(self._seen).tobytes()

    def _codes(self) -> int:
        return int(np.count_nonzero(self._seen))

    def _promised(self, each: float) -> Promise:
        """Return the promise of a result.

        :param each: how many values a code more or less is, at the result.
        """
        stddev = math.sqrt(2) * self._scale / self._grid * each
        described = {"epsilon": self._epsilon, "max_values": self._most}
        noise = Noise(self._intrinsic.outputs[0].name, "laplace", stddev, described)
        event = EpsilonDelta(epsilon=self._epsilon, delta=0.0, relation="replace_one")
        return Promise(to_cost(event), (noise,))


def _column(values: float) -> Tensor:
    return np.array([round(values)], np.int64)


def make_distinct(intrinsic: Intrinsic, options: Options) -> Randomised:
    """Make an empty one, of all or of each group."""
    return _kind(intrinsic)(intrinsic, options)


def load_distinct(intrinsic: Intrinsic, options: Options, data: bytes) -> Randomised:
    """Rebuild one."""
    return _kind(intrinsic).load(intrinsic, options, data)


def _kind(intrinsic: Intrinsic) -> type[NoisyDistinct] | type[NoisyDistinctGroups]:
    return NoisyDistinctGroups if len(intrinsic.inputs) > 1 else NoisyDistinct


DISTINCT = AggregatorFactory(
    DP_DISTINCT_URI,
    frozenset({DP_DISTINCT_URI}),
    "an approximate count of distinct values, with noise",
    make_distinct,
    load_distinct,
    randomised=True,
)
