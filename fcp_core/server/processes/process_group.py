"""The processes that serve as one: how many, on which processors, with which settings."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.server.http.listeners import Listeners
from fcp_core.server.logs import log_levels
from fcp_core.server.processes.process_engine import ProcessEngine
from fcp_core.server.processes.processors import shares
from fcp_core.server.processes.worker_process import WorkerSettings
from fcp_core.server.processes.workers import Workers


class ProcessGroup:
    """The process that decides, and its workers; there may be none.

    :param processes: how many there are, the one that decides among them.
    :param pin: give each processors of its own, if there are enough.
    :raises UsageError: if there is none, or a plugin is an object of this program that the others
        would need.
    """

    def __init__(self, plugins: Plugins, processes: int, *, pin: bool) -> None:
        if processes < 1:
            raise UsageError(f"processes must be at least 1, not {processes}.")
        #: Accumulates in all processes, or members; None: one process has the usual engine.
        self.engine: ProcessEngine | None = None
        #: How many threads decompress at a time in each process; None: the usual number.
        self.threads: int | None = None
        self._processes = processes
        self._lease: float = plugins.config.get("lease_seconds")
        self._shares: Sequence[frozenset[int]] = ()
        if processes > 1:
            self._recipe = plugins.recipe()
            self.engine = ProcessEngine(plugins.make_engine(), processes)
            # Each has its share of the processors; more would only be in each other's way.
            self.threads = max(1, (os.cpu_count() or 1) // processes)
            if pin:
                self._shares = shares(processes)

    def share(self, plugins: Plugins) -> None:
        """Accumulate in other members, too."""
        if self.engine is None:
            self.engine = ProcessEngine(plugins.make_engine(), 1)

    def processors(self, number: int) -> frozenset[int]:
        """Return the processors of a process; none: any.

        :param number: of a worker, from 1; 0 is this process.
        """
        return self._shares[number] if self._shares else frozenset()

    def make_workers(
        self,
        listeners: Listeners,
        certfile: str | os.PathLike[str] | None,
        keyfile: str | os.PathLike[str] | None,
        url: str,
    ) -> Workers | None:
        """Make the workers, which start later; None if there are none.

        :param listeners: of this process; workers listen on the same port.
        :param url: where devices reach the server.
        """
        if self._processes == 1:
            return None
        assert self.engine is not None  # made for several

        def settings_of(number: int) -> WorkerSettings:
            return WorkerSettings(
                number=number,
                recipe=self._recipe,
                host=listeners.host,
                port=listeners.port,
                family=int(listeners.family),
                certfile=_absolute(certfile),
                keyfile=_absolute(keyfile),
                metrics_apart=bool(listeners.metrics_sockets),
                threads=self.threads,
                processors=sorted(self.processors(number)),
                lease_seconds=self._lease if listeners.member_sockets else None,
                url=url,
                log_levels=log_levels(),
            )

        return Workers(self._processes - 1, settings_of, self.engine)


def _absolute(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.path.abspath(path)
