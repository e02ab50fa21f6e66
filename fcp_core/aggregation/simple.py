"""The simple aggregation protocol: each client uploads one checkpoint, which is folded at once.

Theory of operation. The machine does no input or output and reads no clock. A client's message
becomes a fold effect, or a fetch effect if it only says where the input is: the way for a shell
that has the bytes already and wants no copy of them in a message. The outcome comes back through
``folded``; the client sees it in its close message only. Completing is a report effect, whose
outcome comes back through ``reported``.

Protocol states::

    CREATED     start            STARTED
    STARTED     complete         COMPLETING     report effect; outlier detection ends
    COMPLETING  reported OK      COMPLETED
    COMPLETING  reported error   ABORTED        abort-fold effect
    STARTED     abort            ABORTED        abort-fold effect
    COMPLETING  abort            ABORTED        abort-fold effect

Once reported, inputs that are still being folded have DRAIN_SECONDS to come back. Then, or at once
after an abort, every client that is not closed is closed.

Client states::

    PENDING    receive, while STARTED      RECEIVED     latency sample; fold or fetch effect
    PENDING    receive, later              DISCARDED    close message ABORTED
    PENDING    close by the client, OK     DISCARDED
    PENDING    close by the client, error  FAILED
    PENDING    outlier detection           ABORTED      close message ABORTED
    PENDING    end of the session          ABORTED      close message ABORTED
    RECEIVED   folded OK                   COMPLETED    close message OK
    RECEIVED   folded ABORTED              DISCARDED    close message ABORTED
    RECEIVED   folded with another error   FAILED       close message with it
    RECEIVED   end of the session          DISCARDED    close message ABORTED
    COMPLETED  session aborted             DISCARDED

A message or an outcome for a client in any other state is ignored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fcp_core.aggregation.protocol import (
    AbortFoldEffect,
    AggregationProtocol,
    Effect,
    FetchEffect,
    FoldEffect,
    ReportEffect,
)
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import aggregation_protocol_messages_pb2 as messages
from fcp_core.protocol.status import Code, StatusError

#: How long, in seconds, inputs in flight may take to come back after the report.
DRAIN_SECONDS = 5.0

#: A client is an outlier beyond the mean latency plus this many standard deviations.
_OUTLIER_DEVIATIONS = 6.0

_CREATED = messages.PROTOCOL_CREATED
_STARTED = messages.PROTOCOL_STARTED
_COMPLETING = messages.PROTOCOL_COMPLETING
_COMPLETED = messages.PROTOCOL_COMPLETED
_ABORTED = messages.PROTOCOL_ABORTED

_NEXT_STATES: dict[int, tuple[int, ...]] = {
    _CREATED: (_STARTED,),
    _STARTED: (_COMPLETING, _ABORTED),
    _COMPLETING: (_COMPLETED, _ABORTED),
    _COMPLETED: (),
    _ABORTED: (),
}


class _Client(Enum):
    PENDING = "pending"
    RECEIVED = "received"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"
    DISCARDED = "discarded"


_NEXT_CLIENT_STATES: dict[_Client, tuple[_Client, ...]] = {
    _Client.PENDING: (_Client.RECEIVED, _Client.FAILED, _Client.ABORTED, _Client.DISCARDED),
    _Client.RECEIVED: (_Client.COMPLETED, _Client.FAILED, _Client.DISCARDED),
    _Client.COMPLETED: (_Client.DISCARDED,),
    _Client.FAILED: (),
    _Client.ABORTED: (),
    _Client.DISCARDED: (),
}


@dataclass(frozen=True)
class OutlierDetection:
    """When to give up clients that take far longer than the others; both in seconds."""

    detection_interval: float
    grace_period: float = 0.0


class _Latency:
    """Mean and standard deviation of a stream of samples (Welford)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, sample: float) -> None:
        self.count += 1
        delta = sample - self.mean
        self.mean += delta / self.count
        self._squares += delta * (sample - self.mean)

    @property
    def deviation(self) -> float:
        return math.sqrt(self._squares / (self.count - 1))


class SimpleAggregationProtocol(AggregationProtocol):
    """The machine of one aggregation session (see the module's documentation).

    :param outliers: None: no client is given up for being slow.
    """

    def __init__(self, outliers: OutlierDetection | None = None) -> None:
        self._outliers = outliers
        self._state: int = _CREATED
        self._clients: list[_Client] = []
        self._counts: Counter[_Client] = Counter()
        self._messages: dict[int, messages.ServerMessage] = {}
        # When each pending client was added.
        self._pending: dict[int, float] = {}
        self._latency = _Latency()
        self._next_detection: float | None = None
        self._drain_until: float | None = None

    def start(self, num_clients: int, now: float) -> None:
        """Begin with *num_clients* pending clients.

        :raises StatusError: FAILED_PRECONDITION if it has begun; INVALID_ARGUMENT for less than 0.
        """
        self._require(_CREATED)
        if num_clients < 0:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"the number of clients must not be below 0: {num_clients}"
            )
        self._move(_STARTED)
        self._add(num_clients, now)
        if self._outliers is not None:
            self._next_detection = now + self._outliers.detection_interval

    def add_clients(self, num_clients: int, now: float) -> int:
        """Add pending clients and return the first new id.

        :raises StatusError: FAILED_PRECONDITION if it takes none; INVALID_ARGUMENT for less than 1.
        """
        self._require(_STARTED)
        if num_clients <= 0:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"the number of clients must be above 0: {num_clients}"
            )
        first = len(self._clients)
        self._add(num_clients, now)
        return first

    def receive(
        self, client_id: int, message: messages.ClientMessage, now: float
    ) -> Sequence[Effect]:
        """Take a client's input.

        :raises StatusError: INVALID_ARGUMENT for a message without input or an unknown client;
            FAILED_PRECONDITION if the session has not begun.
        """
        resource = message.simple_aggregation.input
        kind = resource.WhichOneof("resource_kind")
        if message.WhichOneof("protocol_kind") != "simple_aggregation" or kind is None:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                "expected a simple_aggregation message whose input has inline_bytes or a uri",
            )
        self._require_begun()
        if self._client(client_id) is not _Client.PENDING:
            return ()
        if self._state != _STARTED:
            self._close(client_id, _Client.DISCARDED, *self._ended())
            return ()
        self._latency.add(now - self._pending[client_id])
        self._set(client_id, _Client.RECEIVED)
        if kind == "uri":
            return (FetchEffect(client_id, resource.uri),)
        return (FoldEffect(client_id, resource.inline_bytes),)

    def folded(self, client_id: int, code: Code, message: str, now: float) -> Sequence[Effect]:
        """Take the outcome of a fold or of a fetch that failed.

        :raises StatusError: INVALID_ARGUMENT for an unknown client.
        """
        if self._client(client_id) is not _Client.RECEIVED:
            return ()
        if code is Code.OK:
            target = _Client.COMPLETED
        elif code is Code.ABORTED:
            target = _Client.DISCARDED
        else:
            target = _Client.FAILED
        self._close(client_id, target, code, message)
        if self._drain_until is not None and not self._counts[_Client.RECEIVED]:
            self._close_all()
        return ()

    def poll(self, client_id: int) -> messages.ServerMessage | None:
        """Return and clear a client's close message.

        :raises StatusError: INVALID_ARGUMENT for an unknown client; FAILED_PRECONDITION if the
            session has not begun.
        """
        self._require_begun()
        self._client(client_id)
        return self._messages.pop(client_id, None)

    def close(self, client_id: int, code: Code, message: str, now: float) -> Sequence[Effect]:
        """Close a client that gives up (or ends without input: OK); it gets no message.

        :raises StatusError: INVALID_ARGUMENT for an unknown client; FAILED_PRECONDITION if the
            session has not begun.
        """
        self._require_begun()
        if self._client(client_id) is _Client.PENDING:
            self._set(client_id, _Client.DISCARDED if code is Code.OK else _Client.FAILED)
        return ()

    def complete(self, now: float) -> Sequence[Effect]:
        """Stop taking input and report; there is no minimum, that is the caller's.

        :raises StatusError: FAILED_PRECONDITION unless the session is under way.
        """
        self._require(_STARTED)
        self._move(_COMPLETING)
        self._next_detection = None
        return (ReportEffect(),)

    def reported(self, code: Code, message: str, now: float) -> Sequence[Effect]:
        """Take the outcome of the report; ignored if the session was aborted meanwhile.

        :raises StatusError: FAILED_PRECONDITION if no report was asked for.
        """
        if self._state == _ABORTED:
            return ()
        self._require(_COMPLETING)
        self._move(_COMPLETED if code is Code.OK else _ABORTED)
        if self._counts[_Client.RECEIVED]:
            self._drain_until = now + DRAIN_SECONDS
        else:
            self._close_all()
        return () if code is Code.OK else (AbortFoldEffect(),)

    def abort(self, now: float) -> Sequence[Effect]:
        """Stop and drop everything; nothing happens if it was aborted before.

        :raises StatusError: FAILED_PRECONDITION if the session has not begun or is complete.
        """
        if self._state == _ABORTED:
            return ()
        self._require(_STARTED, _COMPLETING)
        self._move(_ABORTED)
        self._next_detection = None
        self._close_all()
        return (AbortFoldEffect(),)

    def tick(self, now: float) -> Sequence[Effect]:
        """Give up outliers, and end the wait for inputs in flight."""
        if self._drain_until is not None and now >= self._drain_until:
            self._close_all()
        due = self._next_detection is not None and now >= self._next_detection
        if self._outliers is not None and due:
            self._detect(self._outliers, now)
            self._next_detection = now + self._outliers.detection_interval
        return ()

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        return self._drain_until if self._drain_until is not None else self._next_detection

    def status(self) -> messages.StatusMessage:
        """Return the counters.

        A client that was closed with OK before it sent its input counts as completed and as a
        discarded input, as upstream.
        """
        counts = self._counts
        return messages.StatusMessage(
            num_clients_completed=(
                counts[_Client.RECEIVED] + counts[_Client.COMPLETED] + counts[_Client.DISCARDED]
            ),
            num_clients_failed=counts[_Client.FAILED],
            num_clients_pending=counts[_Client.PENDING],
            num_clients_aborted=counts[_Client.ABORTED],
            num_inputs_aggregated_and_included=counts[_Client.COMPLETED],
            num_inputs_aggregated_and_pending=counts[_Client.RECEIVED],
            num_inputs_discarded=counts[_Client.DISCARDED],
            protocol_state=self._state,  # type: ignore[arg-type]
        )

    def state(self) -> int:
        """Return the ``ProtocolState``."""
        return self._state

    def is_client_closed(self, client_id: int) -> bool:
        """Whether a client is in one of its terminal states.

        :raises StatusError: INVALID_ARGUMENT for an unknown client.
        """
        return self._client(client_id) not in (_Client.PENDING, _Client.RECEIVED)

    def _add(self, num_clients: int, now: float) -> None:
        for client_id in range(len(self._clients), len(self._clients) + num_clients):
            self._clients.append(_Client.PENDING)
            self._pending[client_id] = now
        self._counts[_Client.PENDING] += num_clients

    def _client(self, client_id: int) -> _Client:
        if not 0 <= client_id < len(self._clients):
            raise StatusError(
                Code.INVALID_ARGUMENT, f"there is no client {client_id} of {len(self._clients)}"
            )
        return self._clients[client_id]

    def _set(self, client_id: int, target: _Client) -> None:
        """Change a client's state: the only place that does."""
        source = self._clients[client_id]
        if target not in _NEXT_CLIENT_STATES[source]:
            raise RuntimeError(f"client {client_id} cannot go from {source} to {target}")
        self._clients[client_id] = target
        self._counts[source] -= 1
        self._counts[target] += 1
        self._pending.pop(client_id, None)

    def _close(self, client_id: int, target: _Client, code: Code, message: str) -> None:
        self._set(client_id, target)
        answer = messages.ServerMessage()
        answer.simple_aggregation.close_message.code = int(code)
        answer.simple_aggregation.close_message.message = message
        self._messages[client_id] = answer

    def _close_all(self) -> None:
        """End the session for every client that is still open."""
        self._drain_until = None
        for client_id, client in enumerate(self._clients):
            if client is _Client.PENDING:
                self._close(client_id, _Client.ABORTED, *self._ended())
            elif client is _Client.RECEIVED:
                self._close(client_id, _Client.DISCARDED, *self._ended())
            elif client is _Client.COMPLETED and self._state == _ABORTED:
                self._set(client_id, _Client.DISCARDED)

    def _ended(self) -> tuple[Code, str]:
        verb = "was aborted" if self._state == _ABORTED else "takes no more input"
        return Code.ABORTED, f"the aggregation session {verb}"

    def _detect(self, outliers: OutlierDetection, now: float) -> None:
        if self._latency.count < 2:
            return
        threshold = (
            self._latency.mean
            + _OUTLIER_DEVIATIONS * self._latency.deviation
            + outliers.grace_period
        )
        for client_id, added in list(self._pending.items()):
            if now - added > threshold:
                self._close(
                    client_id,
                    _Client.ABORTED,
                    Code.ABORTED,
                    f"no input after {now - added:.1f} s, far longer than the other clients took",
                )

    def _move(self, target: int) -> None:
        """Change the protocol's state: the only place that does."""
        if target not in _NEXT_STATES[self._state]:
            raise RuntimeError(
                f"the protocol cannot go from {_name(self._state)} to {_name(target)}"
            )
        self._state = target

    def _require(self, *states: int) -> None:
        if self._state not in states:
            wanted = " or ".join(map(_name, states))
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"the aggregation session is {_name(self._state)}, it would have to be {wanted}",
            )

    def _require_begun(self) -> None:
        self._require(_STARTED, _COMPLETING, _COMPLETED, _ABORTED)


def _name(state: int) -> str:
    name: Callable[[Any], str] = messages.ProtocolState.Name
    return name(state).removeprefix("PROTOCOL_").lower()


def make_simple_protocol(options: Mapping[str, Any]) -> SimpleAggregationProtocol:
    """Make the machine from its options.

    :param options: ``detection_interval`` (0 or absent: no outlier detection) and ``grace_period``,
        in seconds.
    :raises UsageError: if one is negative.
    """
    interval = options.get("detection_interval") or 0.0
    grace = options.get("grace_period") or 0.0
    if interval < 0 or grace < 0:
        raise UsageError(
            "protocol 'simple': detection_interval and grace_period must not be negative "
            f"({interval} s, {grace} s)"
        )
    return SimpleAggregationProtocol(OutlierDetection(interval, grace) if interval else None)
