"""The metrics of one server: counters of tasks and requests, and gauges.

Labels are names that operators and authors chose (populations, tasks, routes), short words, and a
bounded number of versions of clients; no device, session or address is ever one. The series of a
name whose last task ended are dropped after :data:`KEPT` seconds.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
from collections import Counter as Count
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence

from fcp_core.protocol.status import Code
from fcp_core.rounds.events import (
    Assigned,
    CheckedIn,
    Committed,
    Contributed,
    Dropped,
    Event,
    LedgerRead,
    Rejected,
    Released,
    Surplus,
    TaskClosed,
    TaskOpened,
)
from fcp_core.rounds.expiring import Expiring
from fcp_core.rounds.machine import Clock
from fcp_core.server.http.prometheus import Counter, Dump, Gauge, Histogram, Info, Metric, render

#: How long the series of a name without an open task are kept, in seconds.
KEPT = 3600.0
#: How often the event loop's lag is measured, in seconds.
LAG_INTERVAL = 0.05
#: The most measurements that one callback can stand for.
_MOST_MISSED = 1200

_MINUTES = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300)
#: The buckets of the lag of the event loop, in seconds; one without an end comes after them.
LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 3)
_WORD = re.compile(r"[a-z][a-z0-9_]{0,39}")
#: How many versions of clients are told apart, and what they look like.
_VERSIONS, _VERSION = 50, re.compile(r"[A-Za-z0-9._+-]{1,40}")
_TASK = ("population", "task")


class ServerMetrics:
    """The metrics of one server.

    :param counts: returns the server's gauges of now: ``open_tasks``, ``open_operations``,
        ``sessions``, ``waiting``, ``at_work``.
    :param others: returns the dumps of the server's other processes; None: there are none.
    """

    def __init__(
        self,
        clock: Clock,
        counts: Callable[[], Mapping[str, int]],
        others: Callable[[], Awaitable[Sequence[Dump]]] | None = None,
    ) -> None:
        self._clock = clock
        self._open: Count[tuple[str, str]] = Count()
        self._ended: Expiring[tuple[str, str]] = Expiring()
        self._lag_timer: asyncio.TimerHandle | None = None
        self._versions: set[str] = set()
        self._in_flight: Callable[[], int] = lambda: 0
        self._connections: Callable[[], int] = lambda: 0
        self.others = others
        self._declare_task_metrics()
        self._declare_times()
        self._declare_release_metrics()
        self._declare_http_metrics()
        self._metrics: list[Metric] = [
            *(metric for metric in vars(self).values() if isinstance(metric, Metric)),
            *self._gauges(counts),
            Info("fcp_server_info", "What runs.", {"version": _version()}),
        ]

    def _declare_task_metrics(self) -> None:
        self.check_ins = Counter(
            "fcp_check_ins_total", "Check-ins of devices that were offered tasks.", ["population"]
        )
        self.offers = Counter(
            "fcp_offers_total", "Check-ins of devices that were offered the task.", _TASK
        )
        self.rejections = Counter(
            "fcp_rejections_total",
            "Devices that were rejected without a task, by reason.",
            ["population", "reason"],
        )
        self.assignments = Counter(
            "fcp_assignments_total", "Devices that were assigned a task.", _TASK
        )
        self.contributions = Counter(
            "fcp_contributions_total", "Contributions that are in an aggregate.", _TASK
        )
        self.bytes = Counter(
            "fcp_contribution_bytes_total",
            "Bytes of the contributions that are in an aggregate, after decompression.",
            _TASK,
        )
        self.drops = Counter(
            "fcp_drops_total",
            "Assigned devices that did not contribute, by the phase that they reached.",
            [*_TASK, "phase"],
        )
        self.silent = Counter(
            "fcp_silent_total",
            "Assigned devices that gave no sign of life, by the version of their client.",
            [*_TASK, "client_version"],
        )
        self.surplus = Counter(
            "fcp_surplus_total",
            "Assigned devices of which nothing more was needed, since the task was over.",
            _TASK,
        )
        self.closed = Counter(
            "fcp_rounds_closed_total",
            "Tasks that ended, by status code; OK if there is a result.",
            [*_TASK, "code"],
        )

    def _declare_times(self) -> None:
        self.contribution_seconds = Histogram(
            "fcp_contribution_seconds",
            "Time from a device's assignment to its contribution in the aggregate.",
            _TASK,
            buckets=_MINUTES,
        )
        self.upload_seconds = Histogram(
            "fcp_upload_seconds", "Time that a contribution's bytes took.", _TASK, buckets=_SECONDS
        )
        self.fold_seconds = Histogram(
            "fcp_fold_seconds",
            "Time from a contribution's submission to the aggregate.",
            _TASK,
            buckets=_SECONDS,
        )
        self.commit_seconds = Histogram(
            "fcp_commit_seconds",
            "Time that the storage took for an aggregate and all that came for it meanwhile.",
            _TASK,
            buckets=_SECONDS,
        )

    def _declare_release_metrics(self) -> None:
        self.releases = Counter(
            "fcp_releases_total", "Results with noise that were stored and booked.", _TASK
        )
        self.ledger = Gauge(
            "fcp_ledger",
            "What ledgers say of a population, as of the last release.",
            ["population", "figure"],
        )

    def _declare_http_metrics(self) -> None:
        self.requests = Counter(
            "fcp_requests_total",
            "Requests by route and HTTP status; 499 if the client went away.",
            ["route", "status"],
        )
        self.request_seconds = Histogram(
            "fcp_request_seconds", "Time to answer a request.", ["route"], buckets=_SECONDS
        )
        self.received = Counter(
            "fcp_received_bytes_total", "Bytes of request bodies, as they were sent.", ["route"]
        )
        self.loop_lag = Histogram(
            "fcp_loop_lag_seconds",
            "Delay of the event loop at a timer, measured twenty times a second.",
            buckets=LAG_BUCKETS,
        )

    def _gauges(self, counts: Callable[[], Mapping[str, int]]) -> Iterator[Gauge]:
        yield Gauge(
            "fcp_in_flight_bytes",
            "Bytes of request bodies that are being received.",
            read=lambda: self._in_flight(),
        )
        yield Gauge("fcp_connections", "Open connections.", read=lambda: self._connections())
        for name, help in (
            ("open_tasks", "Tasks that take contributions."),
            ("open_operations", "Long-running operations that are not done."),
            ("sessions", "Device sessions that are kept, late ones among them."),
            ("waiting", "Devices that wait for a task."),
            ("at_work", "Devices whose task is in progress."),
            ("populations", "Populations that this server owns."),
        ):
            read = lambda name=name: counts().get(name, 0)  # noqa: E731
            yield Gauge(f"fcp_{name}", help, read=read)
        yield Gauge(
            "fcp_heartbeat_age_seconds",
            "Seconds since a shared storage answered last.",
            read=lambda: counts().get("heartbeat_age", 0),
        )

    def event(self, event: Event) -> None:
        """Count an event of a task."""
        where = event.population
        if isinstance(event, CheckedIn):
            self.check_ins.add(where)
            for name in event.offered:
                self.offers.add(where, name)
        elif isinstance(event, Rejected):
            self.rejections.add(where, _word(event.reason))
        elif isinstance(event, Assigned):
            self.assignments.add(where, event.task_name)
        elif isinstance(event, Contributed):
            name = event.task_name
            self.contributions.add(where, name)
            self.bytes.add(where, name, amount=event.size)
            self.contribution_seconds.observe(where, name, value=event.seconds)
            self.upload_seconds.observe(where, name, value=event.upload_seconds)
            self.fold_seconds.observe(where, name, value=event.fold_seconds)
        elif isinstance(event, Committed):
            self.commit_seconds.observe(where, event.task_name, value=event.seconds)
        elif isinstance(event, Dropped):
            self.drops.add(where, event.task_name, _word(event.phase))
            if event.phase == "silent":
                self.silent.add(where, event.task_name, self._version(event.client_version))
        elif isinstance(event, Surplus):
            self.surplus.add(where, event.task_name)
        elif isinstance(event, TaskOpened):
            self._open[where, event.task_name] += 1
        elif isinstance(event, Released):
            self.releases.add(where, event.task_name)
            self._book(where, event.figures)
        elif isinstance(event, LedgerRead):
            self._book(where, event.figures)
        else:
            self._close(event)

    def _book(self, population: str, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.ledger.set(population, _word(name), value=value)

    def _version(self, text: str) -> str:
        """Return the version of a client that may have made it up, if it looks like one."""
        if not _VERSION.fullmatch(text):
            return "other" if text else "unknown"
        if len(self._versions) < _VERSIONS:
            self._versions.add(text)
        return text if text in self._versions else "other"

    def request(self, route: str, status: int, seconds: float, received: int) -> None:
        """Count a finished request."""
        self.requests.add(route, str(status))
        self.request_seconds.observe(route, value=seconds)
        if received:
            self.received.add(route, amount=received)

    def watch(self, in_flight: Callable[[], int], connections: Callable[[], int]) -> None:
        """Start measuring the HTTP server and the lag of the running event loop."""
        self._in_flight = in_flight
        self._connections = connections
        self._measure(asyncio.get_running_loop())

    def stop(self) -> None:
        """Stop measuring the lag."""
        if self._lag_timer is not None:
            self._lag_timer.cancel()
            self._lag_timer = None

    async def expose(self, openmetrics: bool = False) -> bytes:
        """Return the metrics of all processes of the server as Prometheus reads them."""
        return self.render(() if self.others is None else await self.others(), openmetrics)

    def render(self, others: Sequence[Dump] = (), openmetrics: bool = False) -> bytes:
        """Return all metrics as Prometheus reads them.

        :param others: the dumps of other processes; sums are shown.
        :param openmetrics: in that format.
        """
        self._drop_old()
        return render(self._metrics, others, openmetrics)

    def dump(self, names: Collection[str] | None = None) -> Dump:
        """Return all series, for :meth:`render` and :meth:`add_exited`; or those of some names."""
        return {
            metric.name: metric.dump()
            for metric in self._metrics
            if names is None or metric.name in names
        }

    def add_exited(self, dump: Dump) -> None:
        """Add the counters of a worker that exited; its gauges are dropped."""
        for metric in self._metrics:
            if not isinstance(metric, Gauge):
                metric.add_series(dump.get(metric.name, ()))

    def names(self) -> list[str]:
        """Return the names of all metrics."""
        return [metric.name for metric in self._metrics]

    def _close(self, event: TaskClosed) -> None:
        key = (event.population, event.task_name)
        self.closed.add(*key, Code(event.code).name)
        self._open[key] -= 1
        if self._open[key] <= 0:
            del self._open[key]
            self._ended.put("\n".join(key), key, self._clock.now() + KEPT)
        self._drop_old()

    def _drop_old(self) -> None:
        for _, (population, task) in self._ended.pop_due(self._clock.now()):
            if not self._open[population, task]:
                for metric in self._metrics:
                    metric.drop(population=population, task=task)

    def _measure(self, loop: asyncio.AbstractEventLoop, due: float | None = None) -> None:
        """Record how late this callback is, and how late each one was that it stands for.

        Without the latter, a callback that takes a second would count as much as one that takes
        none: what is measured is how long something waits that is due at any time.
        """
        now = loop.time()
        if due is None:
            due = now
        else:
            for number in range(min(_MOST_MISSED, int((now - due) / LAG_INTERVAL) + 1)):
                self.loop_lag.observe(value=max(0.0, now - due - number * LAG_INTERVAL))
            due += int((now - due) / LAG_INTERVAL) * LAG_INTERVAL
        due += LAG_INTERVAL
        self._lag_timer = loop.call_at(due, self._measure, loop, due)


def _word(text: str) -> str:
    """Return a reason that a plugin may have made up, if it is a short word."""
    return text if _WORD.fullmatch(text) else "other"


def _version() -> str:
    try:
        return importlib.metadata.version("fcp-server")
    except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
        return "unknown"
