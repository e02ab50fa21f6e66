"""What a run of virtual devices is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fcp_core.errors import UsageError


@dataclass(frozen=True)
class Load:
    """What the virtual devices do.

    :param clients: how many there are; each goes through one session.
    :param bodies: the checkpoints that they contribute, in turn, as they are sent (gzipped if
        *gzip* is set).
    :param connections: how many of them talk at a time. One that waits to poll an operation, or to
        send a request again, does not talk.
    :param keep: whether a device takes over a connection that another does not need any more, as
        behind a proxy; otherwise each has connections of its own.
    :param population: the population that they belong to.
    :param task: the name of the task that they take; None: any.
    :param gzip: whether their requests are compressed, as the published client's are.
    :param api_key: sent with each request.
    :param ca_file: PEM certificates to trust instead of the system's.
    :param retries: how often a request is sent again that is answered 503 or 429.
    :param retry_delay: what they wait before that, in seconds, as the published client does.
    :param time_limit: seconds after which the run is ended.
    :param seed: of the random waits.
    """

    clients: int
    bodies: Sequence[bytes]
    connections: int = 64
    keep: bool = False
    population: str = "bench"
    task: str | None = None
    gzip: bool = False
    api_key: str = ""
    ca_file: str | os.PathLike[str] | None = None
    retries: int = 2
    retry_delay: float = 5.0
    time_limit: float = 600.0
    seed: int = 0

    @property
    def most_connections(self) -> int:
        """How many there may be: a device that waits keeps its own."""
        return min(self.connections, self.clients) if self.keep else self.clients

    def check(self) -> None:
        """Refuse what cannot be run.

        :raises UsageError: naming the field.
        """
        if self.clients < 1 or self.connections < 1:
            raise UsageError("there must be at least one client and one connection.")
        if not self.bodies:
            raise UsageError("the clients have nothing to contribute.")
        if self.time_limit <= 0 or self.retries < 0 or self.retry_delay < 0:
            raise UsageError("the time limit must be positive, retries and delays not negative.")
        if not (self.population.isascii() and self.api_key.isascii()):
            raise UsageError("the population's name and the API key must be ASCII.")
