"""The engine: contributions are accumulated here, and heavy work goes to the cluster."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from fcp_core.aggregation import jobs
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import CheckpointFormat, Engine, Fold, FoldJob, Partial
from fcp_core.aggregation.fold import bind_job
from fcp_core.aggregation.local import LocalEngine
from fcp_core.protocol.status import Code, StatusError
from fcp_dask.cluster import Cluster, Settings

logger = logging.getLogger("fcp.services.dask")


class DaskEngine(Engine):
    """Accumulates as the local engine does, and runs jobs on a Dask cluster.

    A job is a pure function of bytes that this process keeps until it has the result: whatever
    part of the cluster is lost, it is done again. Contributions do not travel; the reports of
    aggregators that keep them all do, as one job, if they are large, and heavy ones in any case.

    :param factories: the installed aggregators by name.
    :param report_bytes: smaller partial aggregates are reported in this process.
    """

    def __init__(
        self,
        factories: Mapping[str, AggregatorFactory],
        settings: Settings,
        report_bytes: int,
    ) -> None:
        self._factories = dict(factories)
        self._local = LocalEngine(self._factories)
        self._cluster = Cluster(settings, self._local.run)
        self._report_bytes = report_bytes

    def start(self) -> Awaitable[None]:
        """Start the threads; wait for the connection, or for the cluster of this machine.

        :raises UsageError: if no scheduler answers, or workers have other versions.
        """
        self._local.start()
        return self._cluster.start([factory.make for factory in self._factories.values()])

    def stop(self) -> Awaitable[None] | None:
        """Abort folds and jobs; wait for the connection's end."""
        self._local.stop()
        return self._cluster.stop()

    def run(self, function: str, arguments: bytes) -> Future[bytes]:
        """Run a pure function on the cluster; a merge takes less time here than the way there."""
        place = self._local if function == jobs.MERGE else self._cluster
        return place.run(function, arguments)

    def open(self, job: FoldJob, partials: Sequence[Partial] = ()) -> Fold:
        """Begin a fold in this process; what keeps every contribution may report elsewhere.

        So does what computes much in its report.
        """
        fold = self._local.open(job, partials)
        used = [item.factory for item in bind_job(self._factories, job)]
        heavy = any(factory.heavy_report for factory in used)
        if not heavy and not any(factory.needs_all_inputs for factory in used):
            return fold
        stuck = jobs.cannot_travel(self._factories, job)
        if stuck:
            logger.info(
                "%s reports in the server's own process: only what an installed distribution "
                "brings can be sent to a cluster",
                ", ".join(stuck),
            )
            return fold

        def report(partial: Partial, checkpoint_format: CheckpointFormat) -> Future[bytes] | None:
            if not heavy and len(partial.data) < self._report_bytes:
                return None
            return self.run(
                jobs.REPORT, jobs.pack(self._factories, job, [partial], checkpoint_format)
            )

        return KeptFold(fold, report)


class KeptFold(Fold):
    """A fold of the local engine whose report may be made elsewhere; what it kept goes along.

    :param local: accumulates.
    :param elsewhere: begins the report of a partial; None: it is to be made here.
    """

    def __init__(
        self,
        local: Fold,
        elsewhere: Callable[[Partial, CheckpointFormat], Future[bytes] | None],
    ) -> None:
        self._local = local
        self._elsewhere = elsewhere
        # Guards everything below.
        self._lock = threading.Lock()
        self._adding = 0
        self._closed = False
        self._when_idle: Callable[[], None] | None = None
        self._reporting: Future[bytes] | None = None
        self._aborted = False

    def add(self, contribution: str, blob: bytes | bytearray | memoryview) -> Future[None]:
        """Accumulate one checkpoint in this process."""
        return self._begin(lambda: self._local.add(contribution, blob))

    def add_group(self, contributions: Sequence[str], *blobs: bytes) -> Future[None]:
        """Accumulate what several devices contributed in this process."""
        return self._begin(lambda: self._local.add_group(contributions, *blobs))

    def merge(self, partial: Partial) -> Future[None]:
        """Add a partial aggregate."""
        return self._begin(lambda: self._local.merge(partial))

    def partial(self) -> Future[Partial]:
        """Return what was accumulated so far."""
        return self._begin(self._local.partial)

    def report(self, checkpoint_format: CheckpointFormat = "tf_v1") -> Future[bytes]:
        """Finish, here or on the cluster; what was added before is in it."""
        result: Future[bytes] = Future()
        result.set_running_or_notify_cancel()

        def begin() -> None:
            taken = self._local.partial()
            taken.add_done_callback(lambda done: self._report(done, checkpoint_format, result))

        with self._lock:
            if self._closed:
                return _finished()
            self._closed = True
            if self._adding:
                self._when_idle = begin
                return result
        begin()
        return result

    def abort(self) -> None:
        """Finish and drop everything; a report that is under way is cancelled."""
        with self._lock:
            self._closed = self._aborted = True
            reporting = self._reporting
        self._local.abort()
        if reporting is not None:
            reporting.cancel()

    def _begin(self, work: Callable[[], Future[Any]]) -> Future[Any]:
        with self._lock:
            if self._closed:
                return _finished()
            self._adding += 1
        future = work()
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Any]) -> None:
        begin = None
        with self._lock:
            self._adding -= 1
            if not self._adding:
                begin, self._when_idle = self._when_idle, None
        if begin is not None:
            begin()

    def _report(
        self, taken: Future[Partial], checkpoint_format: CheckpointFormat, result: Future[bytes]
    ) -> None:
        """Begin the report of what was taken, and have *result* follow it."""
        try:
            reporting = self._elsewhere(taken.result(), checkpoint_format)
            if reporting is None:
                reporting = self._local.report(checkpoint_format)
            else:
                # The job has all of it now.
                self._local.abort()
        except BaseException as error:
            result.set_exception(error)
            return
        with self._lock:
            self._reporting, aborted = reporting, self._aborted
        if aborted:
            reporting.cancel()
        reporting.add_done_callback(lambda done: _follow(done, result))


def _follow(done: Future[bytes], result: Future[bytes]) -> None:
    if done.cancelled():
        result.set_exception(StatusError(Code.ABORTED, "the aggregation was aborted"))
    elif (error := done.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(done.result())


def _finished() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(StatusError(Code.ABORTED, "the aggregation is finished"))
    return future


def make_engine(
    factories: Mapping[str, AggregatorFactory], options: Mapping[str, Any]
) -> DaskEngine:
    """Make the engine from its options.

    :param options: as the plugin declares them.
    :raises UsageError: if they contradict each other.
    """
    settings = Settings.from_options(options)
    return DaskEngine(factories, settings, options["report_bytes"])
