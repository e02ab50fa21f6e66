"""The simple aggregation protocol: each device uploads one checkpoint, in the clear.

A device starts, uploads and submits; its submission is answered once it is accumulated. Devices
that take far longer than the others to upload can be given up (upstream's outlier detection).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from google.protobuf.message import Message

from fcp_core.errors import UsageError
from fcp_core.protocol.protos import aggregations_pb2 as pb
from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.protocols import (
    Accumulate,
    AggregationProtocol,
    AggregationProtocolFactory,
    Answer,
    Call,
    Drop,
    Effect,
    Tickets,
    Upload,
)

SERVICE = "google.internal.federatedcompute.v1.Aggregations"

#: A device is an outlier beyond the mean latency plus this many standard deviations.
OUTLIER_DEVIATIONS = 6.0

_START = "StartAggregationDataUpload"
_SUBMIT = "SubmitAggregationResult"
_ABORT = "AbortAggregation"
_SLOT = "checkpoint"


@dataclass(frozen=True)
class OutlierDetection:
    """When to give up devices that take far longer than the others; both in seconds."""

    detection_interval: float
    grace_period: float = 0.0


class _Latency:
    """Mean and standard deviation of a stream of samples (Welford)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, sample: float) -> None:
        """Count a sample, in seconds."""
        self.count += 1
        delta = sample - self.mean
        self.mean += delta / self.count
        self._squares += delta * (sample - self.mean)

    @property
    def deviation(self) -> float:
        """The standard deviation of two samples or more."""
        return math.sqrt(self._squares / (self.count - 1))


class SimpleProtocol(AggregationProtocol):
    """The machine of one task.

    :param outliers: None: no device is given up for being slow.
    """

    concluding: ClassVar[Sequence[str]] = (_SUBMIT,)
    resumable: ClassVar[bool] = True

    def __init__(self, outliers: OutlierDetection | None = None) -> None:
        self._outliers = outliers
        #: When those began that have not submitted, in seconds, and who of them has uploaded.
        self._since: dict[str, float] = {}
        self._uploaded: set[str] = set()
        self._latency = _Latency()
        self._next_detection: float | None = None

    def receive(self, call: Call, now: float) -> Sequence[Effect]:
        """Start or submit.

        :raises StatusError: INVALID_ARGUMENT for a submission that names another upload; ABORTED
            for one of nothing: what was uploaded may have gone with another member of the server.
        """
        if call.method == _START:
            return [self._start(call, now)]
        _check_name(call)
        since = self._since.get(call.assignment)
        if since is None:
            # Its place is for somebody else.
            message = "the server was restarted and this upload is lost; check in again"
            return [Drop(call.assignment, "protocol", Code.ABORTED, message, late=True)]
        if call.assignment not in self._uploaded:
            raise StatusError(
                Code.ABORTED,
                "nothing has been uploaded here; upload the checkpoint, then submit again",
            )
        self._forget(call.assignment)
        if self._outliers is not None:
            self._latency.add(now - since)
        return [Accumulate((call.assignment,), slot=_SLOT)]

    def uploaded(self, upload: Upload, now: float) -> Sequence[Effect]:
        """Let the device submit."""
        self._since.setdefault(upload.assignment, now)
        self._uploaded.add(upload.assignment)
        return ()

    def accumulated(
        self, assignments: Sequence[str], error: StatusError | None, now: float
    ) -> Sequence[Effect]:
        """Answer the submission."""
        if error is not None:
            return ()
        response = pb.SubmitAggregationResultResponse()
        return [Answer(assignment, _SUBMIT, response) for assignment in assignments]

    def left(self, assignment: str, code: Code, now: float) -> Sequence[Effect]:
        """Forget a device."""
        self._forget(assignment)
        return ()

    def tick(self, now: float) -> Sequence[Effect]:
        """Give up devices that take far longer than the others."""
        if self._outliers is None or self._next_detection is None or now < self._next_detection:
            return ()
        self._next_detection = now + self._outliers.detection_interval
        if self._latency.count < 2:
            return ()
        longest = (
            self._latency.mean
            + OUTLIER_DEVIATIONS * self._latency.deviation
            + self._outliers.grace_period
        )
        return [
            Drop(
                assignment,
                "protocol",
                Code.ABORTED,
                f"no input after {now - since:.1f} s, far longer than the other clients took",
            )
            for assignment, since in self._since.items()
            if now - since > longest
        ]

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        return self._next_detection

    def _forget(self, assignment: str) -> None:
        self._since.pop(assignment, None)
        self._uploaded.discard(assignment)

    def _start(self, call: Call, now: float) -> Answer:
        self._since[call.assignment] = now
        if self._outliers is not None and self._next_detection is None:
            self._next_detection = now + self._outliers.detection_interval
        return Answer(call.assignment, _START, _ticket(call.tickets))


def late(call: Call) -> Message:
    """Answer a device that comes too late: it goes through all its calls, and nothing is kept.

    :raises StatusError: INVALID_ARGUMENT for a submission that names another upload.
    """
    if call.method == _START:
        return _ticket(call.tickets)
    _check_name(call)
    return pb.SubmitAggregationResultResponse()


def _check_name(call: Call) -> None:
    if call.request.resource_name != call.tickets.upload_name(_SLOT):
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"resource_name {call.request.resource_name!r} is not the one that was given for "
            "this upload; submit again with that one",
        )


def _ticket(tickets: Tickets) -> Message:
    return pb.StartAggregationDataUploadResponse(
        aggregation_protocol_forwarding_info=tickets.forwarding,
        resource=common.ByteStreamResource(
            data_upload_forwarding_info=tickets.upload_forwarding,
            resource_name=tickets.upload_name(_SLOT),
        ),
        client_token=tickets.client_token,
    )


def make(options: Mapping[str, Any]) -> SimpleProtocol:
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
    return SimpleProtocol(OutlierDetection(interval, grace) if interval else None)


FACTORY = AggregationProtocolFactory(
    "simple",
    "each client uploads one checkpoint, in the clear",
    make,
    services=(SERVICE,),
    aborting=(_ABORT,),
    late=late,
)
