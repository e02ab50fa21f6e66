"""A plain protocol for tests: start, upload, submit; and a device for it."""

from __future__ import annotations

from fcp_core.client.protocols import CallStep, DeviceProtocol, UploadStep
from fcp_core.protocol.protos import aggregations_pb2 as pb
from fcp_core.protocol.protos.common_pb2 import ByteStreamResource
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.protocols import (
    Accumulate,
    AggregationProtocol,
    AggregationProtocolFactory,
    Answer,
    Drop,
)

START, SUBMIT = "StartAggregationDataUpload", "SubmitAggregationResult"
SLOT = "checkpoint"


class Plain(AggregationProtocol):
    """One upload each, accumulated when it is submitted. It remembers who has uploaded."""

    concluding = (SUBMIT,)

    def __init__(self):
        self.there = set()

    def receive(self, call, now):
        if call.method == START:
            return [Answer(call.assignment, START, self.where(call.tickets))]
        if call.assignment not in self.there:
            raise StatusError(Code.FAILED_PRECONDITION, "upload before this call")
        if call.request.resource_name != call.tickets.upload_name(SLOT):
            raise StatusError(Code.INVALID_ARGUMENT, "this is not the name of the upload")
        self.there.remove(call.assignment)
        return [Accumulate((call.assignment,), slot=SLOT)]

    def where(self, tickets):
        return pb.StartAggregationDataUploadResponse(
            aggregation_protocol_forwarding_info=tickets.forwarding,
            resource=ByteStreamResource(
                data_upload_forwarding_info=tickets.upload_forwarding,
                resource_name=tickets.upload_name(SLOT),
            ),
            client_token=tickets.client_token,
        )

    def uploaded(self, upload, now):
        self.there.add(upload.assignment)
        return ()

    def accumulated(self, assignments, error, now):
        if error is not None:
            return ()
        return [Answer(a, SUBMIT, pb.SubmitAggregationResultResponse()) for a in assignments]

    def left(self, assignment, code, now):
        self.there.discard(assignment)
        return ()


class Upload(DeviceProtocol):
    def accepts(self, assignment):
        return assignment.HasField("aggregation_info")

    def contribute(self, assignment, results):
        who = {"aggregation_id": assignment.aggregation_id}
        request = pb.StartAggregationDataUploadRequest(
            **who, authorization_token=assignment.authorization_token
        )
        forwarding = assignment.aggregation_data_forwarding_info
        started = yield CallStep(f"Aggregations.{START}", request, forwarding)
        yield UploadStep(started.resource, results.checkpoint)
        request = pb.SubmitAggregationResultRequest(
            **who,
            client_token=started.client_token,
            resource_name=started.resource.resource_name,
        )
        forwarding = started.aggregation_protocol_forwarding_info
        yield CallStep(f"Aggregations.{SUBMIT}", request, forwarding)


def factory(machine=Plain, **fields):
    """Return the factory of a plain protocol, or of one that is broken."""
    return AggregationProtocolFactory(
        **{
            "name": "plain",
            "summary": "one upload each",
            "make": lambda options: machine(),
            "services": ("google.internal.federatedcompute.v1.Aggregations",),
            "aborting": ("AbortAggregation",),
            "device": Upload,
            **fields,
        }
    )


# What is wrong on purpose. Each is caught by a law, and ends over HTTP as the core says.


class SaysOkay(Plain):
    """Tells the device OK before its contribution counts."""

    def receive(self, call, now):
        effects = list(super().receive(call, now))
        if call.method == SUBMIT:
            effects.append(Answer(call.assignment, SUBMIT, pb.SubmitAggregationResultResponse()))
        return effects


class SaysOkayToTheRefused(Plain):
    """Tells the device OK though its contribution was refused."""

    def accumulated(self, assignments, error, now):
        return super().accumulated(assignments, None, now)


class NeverAccumulates(Plain):
    """Tells the device OK, and lets its contribution lie."""

    def receive(self, call, now):
        effects = super().receive(call, now)
        if call.method == SUBMIT:
            return [Answer(call.assignment, SUBMIT, pb.SubmitAggregationResultResponse())]
        return effects


class NeverAnswers(Plain):
    """Counts the contribution, and leaves the device waiting."""

    def accumulated(self, assignments, error, now):
        return ()


class NeverStarts(Plain):
    """Leaves a long-running call waiting."""

    def receive(self, call, now):
        return () if call.method == START else super().receive(call, now)


class AnswersTwice(Plain):
    def accumulated(self, assignments, error, now):
        return [*super().accumulated(assignments, error, now)] * 2


class CountsTwice(Plain):
    """Has one upload accumulated twice."""

    def receive(self, call, now):
        effects = list(super().receive(call, now))
        return effects * 2 if call.method == SUBMIT else effects


class Raises(Plain):
    """Has a bug in the way of a contribution."""

    def uploaded(self, upload, now):
        raise ZeroDivisionError("a bug")


class RaisesOnTheUnexpected(Plain):
    """Has a bug that only an odd device meets."""

    def receive(self, call, now):
        if call.method == SUBMIT:
            self.there.remove(call.assignment)
            self.there.add(call.assignment)
        return super().receive(call, now)


class OutlivesTheDeadline(Plain):
    """Answers the first call two days later."""

    def __init__(self):
        super().__init__()
        self.waiting = {}

    def receive(self, call, now):
        if call.method == SUBMIT:
            self.waiting[call.assignment] = now + 2 * 86400.0
            return ()
        return super().receive(call, now)

    def left(self, assignment, code, now):
        self.waiting.pop(assignment, None)
        return super().left(assignment, code, now)

    def tick(self, now):
        due = [name for name, when in self.waiting.items() if when <= now]
        for name in due:
            del self.waiting[name]
        return [Drop(name, "late", Code.ABORTED, "at last") for name in due]

    def next_tick(self):
        return min(self.waiting.values(), default=None)


#: Those faults by what they are called in reports.
FAULTS = {
    "ok before it counts": SaysOkay,
    "ok for what was refused": SaysOkayToTheRefused,
    "never accumulates": NeverAccumulates,
    "never answers": NeverAnswers,
    "never starts": NeverStarts,
    "answers twice": AnswersTwice,
    "counts twice": CountsTwice,
    "raises": Raises,
    "outlives the deadline": OutlivesTheDeadline,
}
