"""Accumulating as plain functions of names and bytes, for any process that has the aggregators.

What crosses a process border is picklable: a :class:`FoldJob`, blobs, a :class:`Partial`, and the
aggregator factories, whose functions are found by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.binding import BoundIntrinsic, bind
from fcp_core.aggregation.checkpoint_aggregator import (
    CheckpointAggregator,
    KeptBudget,
)
from fcp_core.aggregation.configuration import flat_inputs, parse_configuration
from fcp_core.aggregation.engine import CheckpointFormat, FoldJob, Partial
from fcp_core.aggregation.spec import Tensor
from fcp_core.errors import plugin_errors
from fcp_core.protocol.checkpoint import CheckpointReader, write_checkpoint
from fcp_core.protocol.protos import checkpoint_aggregator_pb2 as state_pb2
from fcp_core.protocol.status import Code, StatusError

T = TypeVar("T")

#: What all shards of a fold may take together; one may take more. Of what is larger than the
#: processor's cache, two threads add hardly more than one: the memory is what they share.
SHARDS_BYTES = 256 << 20


def bind_job(
    factories: Mapping[str, AggregatorFactory], job: FoldJob
) -> tuple[BoundIntrinsic, ...]:
    """Read a job's configuration and find its aggregators.

    :param factories: the installed aggregators by name.
    :raises StatusError: INVALID_ARGUMENT, naming the intrinsic and what is wrong with it, or that
        its goal is more than may be kept.
    """
    known = {uri for factory in factories.values() for uri in factory.uris}
    intrinsics = parse_configuration(job.configuration, known)
    bound = bind(intrinsics, factories, job.aggregators, job.options)
    keeping = [item for item in bound if item.factory.needs_all_inputs]
    each = sum(spec.nbytes for item in keeping for spec in flat_inputs(item.intrinsic))
    if each * job.goal_count > job.max_kept_bytes:
        names = ", ".join(sorted({item.factory.name for item in keeping}))
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"{names} would keep {job.goal_count} contributions of {each} bytes, which are "
            f"{each * job.goal_count}; max_kept_bytes is {job.max_kept_bytes}. Take a smaller goal "
            "or an aggregator that keeps nothing, or raise the option",
        )
    return bound


def fold(
    factories: Mapping[str, AggregatorFactory],
    job: FoldJob,
    blobs: Iterable[tuple[str, bytes | bytearray | memoryview]],
) -> tuple[Partial, dict[str, StatusError]]:
    """Accumulate checkpoints in a partial aggregate.

    :param blobs: contribution ids and their checkpoints.
    :returns: the partial, and why each contribution that is not in it was refused. A contribution
        id that comes twice counts once and is refused with ALREADY_EXISTS the second time.
    :raises StatusError: INVALID_ARGUMENT if the configuration is not usable.
    """
    aggregator = CheckpointAggregator(bind_job(factories, job), KeptBudget(job.max_kept_bytes))
    reader = CheckpointReader()
    folded: dict[str, None] = {}
    refused: dict[str, StatusError] = {}
    for contribution, blob in blobs:
        try:
            if contribution in folded:
                raise duplicate([contribution])
            aggregator.accumulate(reader.open(blob))
        except StatusError as error:
            refused[contribution] = error
        else:
            folded[contribution] = None
    return Partial(aggregator.dump(), tuple(folded)), refused


def merge_partials(
    factories: Mapping[str, AggregatorFactory], job: FoldJob, partials: Sequence[Partial]
) -> Partial:
    """Merge partial aggregates into one.

    :raises StatusError: ALREADY_EXISTS if two hold one contribution; INVALID_ARGUMENT if one is not
        of this job; RESOURCE_EXHAUSTED if they hold more than the job's ``max_kept_bytes``.
    """
    return Partial(_merged(factories, job, partials).dump(), check_disjoint(partials))


def report_partial(
    factories: Mapping[str, AggregatorFactory],
    job: FoldJob,
    partial: Partial,
    checkpoint_format: CheckpointFormat = "tf_v1",
) -> bytes:
    """Return the aggregate of a partial as a checkpoint.

    :raises StatusError: INVALID_ARGUMENT if the partial is not of this job.
    """
    return write_checkpoint(_merged(factories, job, [partial]).report(), checkpoint_format)


def whole_of(
    bound: Sequence[BoundIntrinsic],
    contributions: Sequence[str],
    checkpoints: Sequence[Mapping[str, Tensor]],
) -> Partial:
    """Accumulate checkpoints that are one whole: each intrinsic takes those that have its inputs.

    :raises StatusError: as accumulating does; NOT_FOUND if none has the inputs of an intrinsic.
    """
    state = state_pb2.CheckpointAggregatorState()
    for item in bound:
        names = [spec.name for spec in flat_inputs(item.intrinsic)]
        found = [c for c in checkpoints if all(name in c for name in names)]
        if not found:
            raise StatusError(
                Code.NOT_FOUND,
                f"none of {len(checkpoints)} checkpoints has the tensors that "
                f"{item.intrinsic.uri} takes: {', '.join(map(repr, names[:5]))}",
            )
        alone = CheckpointAggregator((item,))
        for checkpoint in found:
            alone.accumulate(checkpoint)
        own = state_pb2.CheckpointAggregatorState.FromString(alone.dump())
        state.aggregators.extend(own.aggregators)
    return Partial(state.SerializeToString(), tuple(contributions))


def check_disjoint(partials: Sequence[Partial]) -> tuple[str, ...]:
    """Return the contributions of all partials.

    :raises StatusError: ALREADY_EXISTS if one is in two of them.
    """
    ids = tuple(item for partial in partials for item in partial.contributions)
    twice = [item for item, count in Counter(ids).items() if count > 1]
    if twice:
        raise duplicate(twice)
    return ids


def duplicate(contributions: Sequence[str]) -> StatusError:
    """Return the error for contributions that are in the aggregate already."""
    names = ", ".join(map(repr, contributions[:4]))
    return StatusError(Code.ALREADY_EXISTS, f"already in the aggregate: contribution {names}")


def failed(reason: str | BaseException) -> Future[Any]:
    """Return a future that has failed; a mere reason is ABORTED."""
    error = StatusError(Code.ABORTED, reason) if isinstance(reason, str) else reason
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def begun(begin: Callable[[], Future[T]]) -> Future[T]:
    """Have an engine begin something; one that raises or returns no future has failed."""
    try:
        future = begin()
        if not isinstance(future, Future):
            raise TypeError(f"expected a Future, not {future!r:.200}")
    except plugin_errors() as error:
        return failed(error)
    return future


def error_of(future: Future[Any]) -> BaseException | None:
    """Return why a future that is done has failed; None: it has a result."""
    if future.cancelled():
        return StatusError(Code.ABORTED, "the aggregation was aborted")
    return future.exception()


def shards_of(bound: Sequence[BoundIntrinsic], most: int) -> int:
    """Return how many shards a fold may have: few if the model is large, for memory's sake."""
    size = sum(spec.nbytes for item in bound for spec in flat_inputs(item.intrinsic))
    return max(1, min(most, SHARDS_BYTES // max(1, size)))


def _merged(
    factories: Mapping[str, AggregatorFactory], job: FoldJob, partials: Sequence[Partial]
) -> CheckpointAggregator:
    bound = bind_job(factories, job)
    budget = KeptBudget(job.max_kept_bytes)
    if not partials:
        return CheckpointAggregator(bound, budget)
    first, *others = (
        CheckpointAggregator.load(bound, partial.data, budget) for partial in partials
    )
    for other in others:
        first.merge(other)
    return first
