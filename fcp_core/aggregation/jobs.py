"""Pure jobs with partial aggregates, for :meth:`Engine.run`: bytes in, bytes out, in any process.

What is handed over are the names of the aggregators' functions, options and partials, pickled: the
process that runs a job needs the same packages, and takes jobs only from those it trusts.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import CheckpointFormat, FoldJob, NotInstalledError, Partial
from fcp_core.aggregation.fold import bind_job, merge_partials, report_partial
from fcp_core.protocol.status import Code, StatusError

#: What :meth:`Engine.run` calls the two jobs.
REPORT = f"{__name__}:report"
MERGE = f"{__name__}:merge"


def cannot_travel(factories: Mapping[str, AggregatorFactory], job: FoldJob) -> list[str]:
    """Return the aggregators of a job that another process could not import, by name.

    :raises StatusError: INVALID_ARGUMENT if the configuration is not usable.
    """
    names = {item.factory.name for item in bind_job(factories, job)}
    return sorted(names - _pickled(factories).keys())


def pack(
    factories: Mapping[str, AggregatorFactory],
    job: FoldJob,
    partials: Sequence[Partial],
    checkpoint_format: CheckpointFormat = "tf_v1",
) -> bytes:
    """Return the arguments of a job; aggregators that cannot travel are left out."""
    return pickle.dumps((_pickled(factories), job, tuple(partials), checkpoint_format), 5)


def report(arguments: bytes) -> bytes:
    """Merge the partials and return the aggregate as a checkpoint.

    :param arguments: of :func:`pack`.
    :raises StatusError: as ``merge_partials`` does.
    :raises NotInstalledError: FAILED_PRECONDITION if an aggregator is not installed here.
    """
    factories, job, partials, checkpoint_format = _unpack(arguments)
    whole = partials[0] if len(partials) == 1 else merge_partials(factories, job, partials)
    return report_partial(factories, job, whole, checkpoint_format)


def merge(arguments: bytes) -> bytes:
    """Merge the partials and return the data of the whole.

    Who asks knows which contributions are in it.

    :param arguments: of :func:`pack`.
    :raises StatusError: as :func:`report` does.
    """
    factories, job, partials, _ = _unpack(arguments)
    return merge_partials(factories, job, partials).data


def _pickled(factories: Mapping[str, AggregatorFactory]) -> dict[str, bytes]:
    pickled = {}
    for name, factory in factories.items():
        try:
            pickled[name] = pickle.dumps(factory, 5)
        except Exception:  # a function without a name that others could import it by
            continue
    return pickled


def _unpack(
    arguments: bytes,
) -> tuple[dict[str, AggregatorFactory], FoldJob, tuple[Partial, ...], CheckpointFormat]:
    pickled, job, partials, checkpoint_format = pickle.loads(arguments)
    factories, missing = {}, {}
    for name, data in pickled.items():
        try:
            factories[name] = pickle.loads(data)
        except (ImportError, AttributeError) as error:
            missing[name] = error
    try:
        bind_job(factories, job)
    except StatusError:
        lacking = [f"{name} ({missing[name]})" for name in sorted(missing)]
        if not lacking:
            raise
        raise NotInstalledError(
            Code.FAILED_PRECONDITION,
            f"these aggregators are not installed where the job runs: {', '.join(lacking)}; "
            "install the same packages there",
        ) from None
    return factories, job, partials, checkpoint_format
