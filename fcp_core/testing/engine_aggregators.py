"""The two aggregators that the engine kit accumulates with; any process can import them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory, Options
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor, TensorSpec
from fcp_core.protocol.status import Code, StatusError

_NUMBER = TensorSpec("v", DataType.INT64, (2,))


SUM = Intrinsic("kit_sum", (_NUMBER,), (TensorSpec("sum", DataType.INT64, (2,)),))


ALL = Intrinsic("kit_all", (_NUMBER,), (TensorSpec("all", DataType.INT64, (-1,)),))


class _Numbers(Accumulator):
    """The kit's two aggregators: its state is an array of numbers, with the count in front."""

    def __init__(self, intrinsic: Intrinsic, numbers: Tensor | None = None) -> None:
        self._keeps = intrinsic.uri == "kit_all"
        empty = np.zeros(1 if self._keeps else 3, np.int64)
        self._numbers: Tensor = empty if numbers is None else numbers

    @property
    def num_inputs(self) -> int:
        return int(self._numbers[0])

    def validate(self, inputs: Sequence[Tensor]) -> None:
        if inputs[0][1] < 0:
            raise StatusError(Code.INVALID_ARGUMENT, "the second number must not be below 0")

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        self._add(1, inputs[0][:1] if self._keeps else inputs[0])

    def merge(self, other: _Numbers) -> None:
        self._add(other.num_inputs, other._numbers[1:])

    def report(self) -> list[Tensor]:
        return [np.sort(self._numbers[1:]) if self._keeps else self._numbers[1:]]

    def dump(self) -> bytes:
        return self._numbers.tobytes()

    def _add(self, count: int, numbers: Tensor) -> None:
        if self._keeps:
            self._numbers = np.concatenate([self._numbers, numbers])
        else:
            self._numbers[1:] += numbers
        self._numbers[0] += count


def _load(intrinsic: Intrinsic, options: Options, data: bytes) -> _Numbers:
    if len(data) % 8 or len(data) < 8 or (intrinsic.uri == "kit_sum" and len(data) != 24):
        raise StatusError(Code.INVALID_ARGUMENT, "not a dump of the kit's aggregators")
    return _Numbers(intrinsic, np.frombuffer(data, np.int64).copy())


def _make(intrinsic: Intrinsic, options: Options) -> _Numbers:
    return _Numbers(intrinsic)


#: The aggregators that the kit gives to the engine, by name.
AGGREGATORS: Mapping[str, AggregatorFactory] = {
    name: AggregatorFactory(
        name, frozenset({name}), summary, _make, _load, needs_all_inputs=name == "kit_all"
    )
    for name, summary in (("kit_sum", "adds up"), ("kit_all", "keeps every number"))
}
