"""Tries an aggregator without a task: makes accumulators, and has them do all that they must."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fcp_core.aggregation.aggregator import JOINT_URI, AggregatorFactory, Options
from fcp_core.aggregation.binding import BoundIntrinsic
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator
from fcp_core.aggregation.configuration import flat_inputs
from fcp_core.aggregation.release import ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor, TensorSpec
from fcp_core.protocol.status import Code, StatusError

#: What an aggregator's own fault is told with.
_FAULTS = (Code.INTERNAL, Code.DATA_LOSS)


def try_aggregator(factory: AggregatorFactory, options: Options) -> None:
    """Try an aggregator with small intrinsics of the usual shapes, for each URI that it serves.

    Of a URI with which it takes none of them nothing can be said.

    :raises StatusError: INTERNAL or DATA_LOSS, naming it and its fault.
    """
    for uri in sorted(factory.uris):
        fault: StatusError | None = None
        for intrinsic in _usual(uri):
            if factory.joint:
                intrinsic = Intrinsic(JOINT_URI, nested=(intrinsic,))
            try:
                _use(BoundIntrinsic(intrinsic, factory, options))
            except StatusError as error:
                if error.code in _FAULTS and fault is None:
                    fault = error
            else:
                break
        else:
            if fault is not None:
                raise fault


def _use(bound: BoundIntrinsic) -> None:
    checkpoint = {spec.name: _ones(spec) for spec in flat_inputs(bound.intrinsic)}
    first, other = CheckpointAggregator([bound]), CheckpointAggregator([bound])
    for aggregator in (first, other):
        aggregator.accumulate(checkpoint)
    first.merge(CheckpointAggregator.load([bound], other.dump()))
    first.release([ReleaseContext(goal_count=2)])


def _ones(spec: TensorSpec) -> Tensor:
    return np.full(
        [max(size, 2) if size < 0 else size for size in spec.shape],
        b"1" if spec.dtype is DataType.STRING else 1,
        spec.dtype.numpy,
    )


def _usual(uri: str) -> Iterator[Intrinsic]:
    for dtype in (DataType.FLOAT, DataType.INT64, DataType.STRING):
        for shape in ((2,), (-1,)):
            value, result = TensorSpec("value", dtype, shape), TensorSpec("result", dtype, shape)
            yield Intrinsic(uri, (value,), (result,))
            for weight in (DataType.FLOAT, DataType.INT64):
                yield Intrinsic(uri, (value, TensorSpec("weight", weight)), (result,))
