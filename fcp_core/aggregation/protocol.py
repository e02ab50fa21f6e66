"""The contract of an aggregation protocol: how contributions reach an aggregation session.

A protocol is a state machine without input or output. The shell hands it messages and the time,
carries out the effects that come back, and reports their outcome as further events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fcp_core.protocol.protos import aggregation_protocol_messages_pb2 as messages
from fcp_core.protocol.status import Code


@dataclass(frozen=True)
class FoldEffect:
    """Fold *blob* for *client_id*, then call :meth:`AggregationProtocol.folded`."""

    client_id: int
    blob: bytes | bytearray | memoryview


@dataclass(frozen=True)
class FetchEffect:
    """Fetch the input at *uri*, then fold it as for :class:`FoldEffect`."""

    client_id: int
    uri: str


@dataclass(frozen=True)
class ReportEffect:
    """Have the fold report, then call :meth:`AggregationProtocol.reported`."""


@dataclass(frozen=True)
class AbortFoldEffect:
    """Abort the fold: what it holds must not be used."""


Effect: TypeAlias = FoldEffect | FetchEffect | ReportEffect | AbortFoldEffect


class AggregationProtocol(ABC):
    """One aggregation session's protocol machine (upstream's AggregationProtocol).

    Clients are numbered from 0. Every method that changes state takes the time *now*, in seconds.
    """

    @abstractmethod
    def start(self, num_clients: int, now: float) -> None:
        """Begin with *num_clients* pending clients."""

    @abstractmethod
    def add_clients(self, num_clients: int, now: float) -> int:
        """Add pending clients and return the first new id."""

    @abstractmethod
    def receive(
        self, client_id: int, message: messages.ClientMessage, now: float
    ) -> Sequence[Effect]:
        """Handle a client's message; the outcome shows in its close message and the counters."""

    @abstractmethod
    def folded(self, client_id: int, code: Code, message: str, now: float) -> Sequence[Effect]:
        """Take the outcome of a fold effect (``Code.OK``, or why it failed)."""

    @abstractmethod
    def poll(self, client_id: int) -> messages.ServerMessage | None:
        """Return and clear the message that waits for a client."""

    @abstractmethod
    def close(self, client_id: int, code: Code, message: str, now: float) -> Sequence[Effect]:
        """Close a client from its own side."""

    @abstractmethod
    def complete(self, now: float) -> Sequence[Effect]:
        """Stop taking input and report."""

    @abstractmethod
    def reported(self, code: Code, message: str, now: float) -> Sequence[Effect]:
        """Take the outcome of a report effect."""

    @abstractmethod
    def abort(self, now: float) -> Sequence[Effect]:
        """Stop and drop everything."""

    @abstractmethod
    def tick(self, now: float) -> Sequence[Effect]:
        """Let time pass: outlier detection, time-outs."""

    @abstractmethod
    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""

    @abstractmethod
    def status(self) -> messages.StatusMessage:
        """Return the counters."""

    @abstractmethod
    def state(self) -> int:
        """Return the ``ProtocolState``."""

    @abstractmethod
    def is_client_closed(self, client_id: int) -> bool:
        """Whether a client is in one of its terminal states."""


@dataclass(frozen=True)
class AggregationProtocolFactory:
    """What a plugin registers: a recipe for protocol machines, chosen by *name*.

    :param make: called with the protocol's options.
    """

    name: str
    summary: str
    make: Callable[[Mapping[str, Any]], AggregationProtocol]
