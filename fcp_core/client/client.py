"""The device's side of the protocol, for programs."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

from typing_extensions import Self

from fcp_core.client.builtin_executors import default_executors
from fcp_core.client.cache import ResourceCache
from fcp_core.client.calls import Calls
from fcp_core.client.executors import PlanExecutor
from fcp_core.client.history import History
from fcp_core.client.interruption import Interruption
from fcp_core.client.results import SessionResult
from fcp_core.client.retry import RetrySchedule
from fcp_core.client.session import Session
from fcp_core.client.stores import CollectionStore, ExampleStore
from fcp_core.client.tasks import Device
from fcp_core.client.transport import RetryPolicy, Transport, check_uri
from fcp_core.protocol.status import StatusError

# For what happens at the same time: reports beside calls, two downloads, the slices of a query.
_THREADS = 8


class Clock(Protocol):
    """Tells the time in seconds since the epoch."""

    def now(self) -> float:
        """Return the time."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return the time."""
        return time.time()


class Client:
    """One device. Its sessions run one after another, on the caller's thread.

    :param server: the entry point, ``https://...`` or ``http://localhost...``.
    :param population: the population that it belongs to.
    :param stores: where its examples come from: one store for every collection, or one for each
        ``collection_uri``.
    :param executors: what runs plans, by plan kind, in place of the built-in ones or beside them.
    :param api_key: sent with every request, even if empty.
    :param ca_file: a PEM file of certificates to trust instead of the system's.
    :param certfile: a PEM certificate to show to a server that asks for one, with its key unless
        that is in *keyfile*.
    :param client_version: sent to the server as it is, as is *attestation_measurement*.
    :param retry_token: kept for callers of the reference client; this protocol has no place for it.
    :param session: the name under which contributions stand in the history.
    :param history: its contributions, for policies that ask; without one, tasks with such policies
        are not for this device.
    :param clock: tells the time; None is the machine's.
    :param rng: draws retry times; None is seeded by the machine.
    :param retry: when requests answered UNAVAILABLE are sent again within a session.
    :param compress: whether request bodies are gzip-encoded, and answers and resources may be.
    :param timeout: seconds without any byte from the server before a request is given up.
    :param cache_bytes: how much is kept, in memory, of what the server lets devices keep, such as
        the plan of all rounds of a computation; 0: nothing.
    :raises StatusError: INVALID_ARGUMENT for an entry point or a population that is not allowed.
    :raises UsageError: if the certificate cannot be used.
    """

    def __init__(
        self,
        server: str,
        population: str,
        *,
        stores: ExampleStore | Mapping[str, ExampleStore],
        executors: Mapping[str, PlanExecutor] | None = None,
        api_key: str = "",
        ca_file: str | None = None,
        certfile: str | None = None,
        keyfile: str | None = None,
        client_version: str = "",
        attestation_measurement: str = "",
        retry_token: str = "",
        session: str = "",
        history: History | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        retry: RetryPolicy | None = None,
        compress: bool = True,
        timeout: float = 600.0,
        cache_bytes: int = 8 << 20,
    ) -> None:
        check_uri(server, entry_point=True)
        self.server = server
        self.population = population
        self.retry_token = retry_token
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._interruption = Interruption()
        self._transport = Transport(
            api_key=api_key,
            ca_file=ca_file,
            certfile=certfile,
            keyfile=keyfile,
            compress=compress,
            retry=retry,
            timeout=timeout,
            interruption=self._interruption,
            rng=self._rng,
            cache=ResourceCache(cache_bytes),
        )
        self._calls = Calls(self._transport, population, client_version, attestation_measurement)
        self._device = Device(
            population=population,
            store=CollectionStore(stores) if isinstance(stores, Mapping) else stores,
            executors={**default_executors(), **(executors or {})},
            history=history,
            name=session,
            now=self._clock.now,
        )
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fcp-client")

    def run_once(self) -> SessionResult:
        """Go through one session: check in, take tasks, run and report them.

        Whatever goes wrong is in the result. After ``interrupt`` every session ends at once.
        """
        schedule = RetrySchedule(self._clock.now, self._rng)
        session = Session(
            self._device, self._calls, self._transport, self.server, self._pool, schedule
        )
        sent, received = self._transport.bytes_sent, self._transport.bytes_received
        outcome = session.run()
        retry_at = schedule.retry_at()
        return SessionResult(
            outcome=outcome,
            tasks=tuple(session.tasks),
            error=session.error,
            retry_at=retry_at,
            retry_after=max(0.0, retry_at - self._clock.now()),
            bytes_sent=self._transport.bytes_sent - sent,
            bytes_received=self._transport.bytes_received - received,
        )

    def run(self, num_rounds: int = 1, sleep: float | None = None) -> Iterator[SessionResult]:
        """Yield the results of one session after another, waiting in between.

        :param num_rounds: how many; negative: until interrupted.
        :param sleep: seconds between sessions; None: as long as the server asks.
        """
        rounds = itertools.count() if num_rounds < 0 else iter(range(num_rounds))
        wait = 0.0
        for _ in rounds:
            try:
                self._interruption.wait(wait)
            except StatusError:
                return
            result = self.run_once()
            wait = result.retry_after if sleep is None else sleep
            yield result

    def interrupt(self) -> None:
        """End the session in progress, and every later one, from any thread.

        Requests in flight are cut off; the server is told where the protocol has a way to.
        """
        self._interruption.request()

    def close(self) -> None:
        """Close connections and threads."""
        self._pool.shutdown()
        self._transport.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
