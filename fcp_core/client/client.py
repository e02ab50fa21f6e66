"""The device's side of the protocol, for programs."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from typing_extensions import Self

from fcp_core.client.addresses import check_uri, path_variable
from fcp_core.client.builtin_executors import default_executors
from fcp_core.client.cache import ResourceCache
from fcp_core.client.calls import gzip_body
from fcp_core.client.driver import BlockingDriver, Device
from fcp_core.client.executors import PlanExecutor
from fcp_core.client.graph_guard import OperationRules
from fcp_core.client.history import History
from fcp_core.client.limits import Limits
from fcp_core.client.privacy import PrivacyPolicy
from fcp_core.client.protocols import DeviceProtocol
from fcp_core.client.results import SessionResult
from fcp_core.client.retry import RetrySchedule
from fcp_core.client.session import DeviceSettings, device_session
from fcp_core.client.stores import CollectionStore, ExampleStore
from fcp_core.client.transport import RetryPolicy, Transport
from fcp_core.protocol.status import StatusError


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
    :param session: the name under which contributions stand in the history.
    :param history: its contributions, for policies that ask; without one, tasks with such policies
        are not for this device.
    :param clock: tells the time; None is the machine's.
    :param rng: draws retry times; None is seeded by the machine.
    :param retry: when requests answered UNAVAILABLE are sent again within a session.
    :param compress: whether request bodies are gzip-encoded, and answers and resources may be. A
        large body is compressed if a sample of it shrinks, and if the link, once a large body went
        over it, is slow enough for that to pay.
    :param timeout: seconds without any byte from the server before a request is given up.
    :param cache_bytes: how much is kept, in memory, of what the server lets devices keep, such as
        the plan of all rounds of a computation; 0: nothing.
    :param limits: what the device gives to the server at most; None: the usual limits.
    :param operations: which TensorFlow operations a plan may use; None: those of the list that
        comes with the package.
    :param protocols: aggregation protocols beside the plain one, which are asked before it.
    :param privacy: what the device's owner allows; None: everything.
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
        session: str = "",
        history: History | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        retry: RetryPolicy | None = None,
        compress: bool = True,
        timeout: float = 600.0,
        cache_bytes: int = 8 << 20,
        limits: Limits | None = None,
        operations: OperationRules | None = None,
        protocols: Sequence[DeviceProtocol] = (),
        privacy: PrivacyPolicy | None = None,
    ) -> None:
        check_uri(server, entry_point=True)
        path_variable(population)
        limits = limits or Limits()
        self.server = server
        self.population = population
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._transport = Transport(
            ca_file=ca_file,
            certfile=certfile,
            keyfile=keyfile,
            compress=compress,
            retry=retry,
            timeout=timeout,
            limits=limits,
            rng=self._rng,
        )
        self._settings = DeviceSettings(
            entry_point=server,
            population=population,
            api_key=api_key,
            client_version=client_version,
            attestation_measurement=attestation_measurement,
            encode=self._encode if compress else None,
            cache=ResourceCache(cache_bytes),
            protocols=tuple(protocols),
            content_bytes=limits.content_bytes,
        )
        more = {"history": history, "name": session, "now": self._clock.now, "privacy": privacy}
        device = _device(population, stores, executors, operations, limits, **more)
        self._driver = BlockingDriver(device, self._transport)

    def _encode(self, body: bytes) -> bytes | None:
        return gzip_body(body, self._transport.upload_rate)

    def run_once(self) -> SessionResult:
        """Go through one session: check in, take tasks, run and report them.

        Whatever goes wrong is in the result. After ``interrupt`` every session ends at once.
        """
        schedule = RetrySchedule(self._clock.now, self._rng)
        sent, received = self._transport.bytes_sent, self._transport.bytes_received
        end = self._driver.run(device_session(self._settings, schedule))
        self._driver.recorder.close_session(end.tasks)
        retry_at = schedule.retry_at()
        return SessionResult(
            outcome=end.outcome,
            tasks=end.tasks,
            error=end.error,
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
                self._transport.interruption.wait(wait)
            except StatusError:
                return
            result = self.run_once()
            wait = result.retry_after if sleep is None else sleep
            yield result

    def interrupt(self) -> None:
        """End the session in progress, and every later one, from any thread.

        Requests in flight are cut off; the server is notified where the protocol has a way to.
        """
        self._transport.interruption.request()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()


def _device(
    population: str,
    stores: ExampleStore | Mapping[str, ExampleStore],
    executors: Mapping[str, PlanExecutor] | None,
    operations: OperationRules | None,
    limits: Limits,
    **more: Any,
) -> Device:
    """Return a device with one store for every collection and the built-in executors too."""
    return Device(
        population=population,
        store=CollectionStore(stores) if isinstance(stores, Mapping) else stores,
        executors={**default_executors(operations), **(executors or {})},
        plan_seconds=limits.plan_seconds,
        **more,
    )
