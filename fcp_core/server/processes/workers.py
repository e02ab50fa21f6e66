"""Starts the worker processes, and replaces those that exit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fcp_core.errors import UsageError
from fcp_core.server.http.prometheus import Dump
from fcp_core.server.processes.process_engine import ProcessEngine
from fcp_core.server.processes.worker_process import WorkerProcess, WorkerSettings

if TYPE_CHECKING:
    from fcp_core.rounds.machine import Clock
    from fcp_core.server.http.metrics import ServerMetrics
    from fcp_core.server.services import Services
    from fcp_core.server.services.routing import RoutingTable

logger = logging.getLogger("fcp.server")

#: How long after a worker's end the next is started, and how long at most after several.
PAUSE, LONGEST_PAUSE = 0.1, 30.0
#: A worker that has lived this long was no failed start.
HEALTHY = 60.0


class Workers:
    """All workers of a server; one that ends is replaced.

    :param count: how many.
    :param settings_of: makes the settings of the worker of a number.
    :param engine: notified of workers that exit.
    :param metrics: what the server measures, if it does.
    """

    def __init__(
        self,
        count: int,
        settings_of: Callable[[int], WorkerSettings],
        engine: ProcessEngine,
    ) -> None:
        self._count = count
        self._settings_of = settings_of
        self._engine = engine
        self._metrics: ServerMetrics | None = None
        self._make: Callable[[], WorkerProcess] | None = None
        self._workers: dict[WorkerProcess, int] = {}
        self._failures = dict.fromkeys(range(1, count + 1), 0)
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that serve at the moment."""
        return [worker.pid for worker in self._workers]

    async def start(self, services: Services, metrics: ServerMetrics | None) -> None:
        """Start all, and wait until they accept requests.

        :param metrics: of this process; None: nobody measures.
        :raises UsageError: if one does not; none is left then.
        """
        self._metrics = metrics
        self._make = lambda: WorkerProcess(services, self._metrics, self._ended)
        if services.members is not None:
            services.members.on_change.append(partial(self._tell_table, services.members.clock))
        started = await asyncio.gather(
            *(self._start_one(number) for number in self._failures), return_exceptions=True
        )
        failures = [failure for failure in started if failure is not None]
        if failures:
            await self.stop()
            raise failures[0]

    def _tell_table(self, clock: Clock, table: RoutingTable) -> None:
        """Tell all where populations are owned."""
        if self._workers:
            self.tell("use_table", table.dump(clock.now()))

    def tell(self, name: str, *arguments: Any) -> None:
        """Tell all something."""
        for worker in self._workers:
            worker.tell(name, *arguments)

    async def drain(self) -> None:
        """Have all stop accepting, and wait for their requests in progress. None is replaced."""
        self._stopping = True
        await asyncio.gather(
            *(worker.call("drain") for worker in self._workers), return_exceptions=True
        )

    async def stop(self) -> None:
        """End all."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        workers, self._workers = list(self._workers), {}
        await asyncio.gather(
            *(worker.end() for worker in workers), *self._tasks, return_exceptions=True
        )

    async def measure(self) -> Sequence[Dump]:
        """Return the metrics of the workers that serve now."""
        workers = list(self._workers)
        dumps = await asyncio.gather(*(worker.measure() for worker in workers))
        # What one measured that ended meanwhile is among this process's own by now.
        pairs = zip(workers, dumps, strict=True)
        return [dump for worker, dump in pairs if worker in self._workers]

    # Inside.

    async def _start_one(self, number: int) -> None:
        assert self._make is not None  # made by start
        worker = self._make()
        try:
            await worker.start(self._settings_of(number))
        except BaseException:
            await worker.end()
            raise
        self._workers[worker] = number
        self._spawn(worker.watch())

    def _ended(self, worker: WorkerProcess) -> None:
        """Replace a worker that exited or whose connection was closed."""
        number = self._workers.pop(worker, None)
        if number is None:
            return  # it has not started, or is to end
        self._engine.lost(worker)
        if self._metrics is not None:
            self._metrics.add_exited(worker.measured)
        self._spawn(self._replace(worker, number))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace(self, worker: WorkerProcess, number: int) -> None:
        lived = asyncio.get_running_loop().time() - worker.started
        await worker.abandon_uploads()
        status = await worker.end()
        logger.error("process %d of the server (pid %d) ended: %s", number, worker.pid, status)
        self._failures[number] = 0 if lived >= HEALTHY else self._failures[number]
        while not self._stopping:
            pause = min(PAUSE * 2 ** self._failures[number], LONGEST_PAUSE)
            self._failures[number] += 1
            await asyncio.sleep(pause)
            try:
                await self._start_one(number)
            except UsageError as error:
                logger.error("process %d of the server does not start: %s", number, error)
            else:
                break
        if self._stopping:
            await self.drain()  # it may have started after the others were asked
