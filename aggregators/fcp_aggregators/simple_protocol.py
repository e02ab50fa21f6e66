"""The simple aggregation protocol: each device uploads one checkpoint, in the clear.

A device starts, uploads and submits; its submission is answered once it is accumulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from google.protobuf.message import Message

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

_START = "StartAggregationDataUpload"
_SUBMIT = "SubmitAggregationResult"
_ABORT = "AbortAggregation"
_SLOT = "checkpoint"


class SimpleProtocol(AggregationProtocol):
    """The machine of one task."""

    concluding: ClassVar[Sequence[str]] = (_SUBMIT,)
    resumable: ClassVar[bool] = True

    def __init__(self) -> None:
        #: Those who began and have not submitted, with whether they have uploaded.
        self._begun: dict[str, bool] = {}

    def receive(self, call: Call, now: float) -> Sequence[Effect]:
        """Start or submit.

        :raises StatusError: INVALID_ARGUMENT for a submission that names another upload; ABORTED
            for one of nothing: what was uploaded may have gone with another member of the server.
        """
        if call.method == _START:
            self._begun[call.assignment] = False
            return [Answer(call.assignment, _START, _ticket(call.tickets))]
        _check_name(call)
        if call.assignment not in self._begun:
            # Its place is for somebody else.
            message = "the server was restarted and this upload is lost; check in again"
            return [Drop(call.assignment, "protocol", Code.ABORTED, message, late=True)]
        if not self._begun[call.assignment]:
            raise StatusError(
                Code.ABORTED,
                "nothing has been uploaded here; upload the checkpoint, then submit again",
            )
        del self._begun[call.assignment]
        return [Accumulate((call.assignment,), slot=_SLOT)]

    def uploaded(self, upload: Upload, now: float) -> Sequence[Effect]:
        """Let the device submit."""
        self._begun[upload.assignment] = True
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
        self._begun.pop(assignment, None)
        return ()


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


FACTORY = AggregationProtocolFactory(
    "simple",
    "each client uploads one checkpoint, in the clear",
    lambda options: SimpleProtocol(),
    services=(SERVICE,),
    aborting=(_ABORT,),
    late=late,
)
