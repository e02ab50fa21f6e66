"""Aggregation protocols with a fault each, and a server that has them."""

from __future__ import annotations

import asyncio

from fcp_aggregators.simple_protocol import FACTORY, SimpleProtocol
from fcp_core.plugins import hookimpl
from fcp_core.protocol import routes
from fcp_core.protocol.protos import aggregations_pb2 as pb
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.protocols import (
    Accumulate,
    AggregationProtocolFactory,
    Answer,
    Drop,
)
from tests.services.worlds import until

START, SUBMIT = "StartAggregationDataUpload", "SubmitAggregationResult"
OK = pb.SubmitAggregationResultResponse()
NO = StatusError(Code.UNAVAILABLE, "come back")
#: How long an assignment and a task live in these tests, in seconds.
TIMEOUT, DEADLINE = 60, 600


class Faulty(SimpleProtocol):
    """The plain protocol, which knows the first device that called: its victim."""

    victim = None

    def receive(self, call, now):
        if self.victim is None:
            self.victim = call.assignment
        if call.assignment == self.victim:
            return self.wrong(call, now)
        return super().receive(call, now)

    def right(self, call, now):
        return SimpleProtocol.receive(self, call, now)

    def wrong(self, call, now):
        return self.right(call, now)


class Plugin:
    """Registers a class of protocols as ``bad``; keeps those that were made."""

    def __init__(self, kind):
        self.kind = kind
        self.made = []

    def make(self, options):
        self.made.append(self.kind())
        return self.made[-1]

    @hookimpl
    def fcp_register_aggregation_protocols(self, config):
        return [
            AggregationProtocolFactory(
                "bad", "faulty", self.make, services=FACTORY.services, aborting=FACTORY.aborting
            )
        ]


def world(kit, kind, **options):
    options = {"assignment_timeout": f"{TIMEOUT}s", "over_selection": "3", **options}
    return kit.world(
        extra=[kind if isinstance(kind, Plugin) else Plugin(kind)],
        protocol="bad",
        task_deadline=f"{DEADLINE}s",
        **options,
    )


def on(method, effects):
    """Return a protocol that answers the victim's calls of one method with these effects."""

    class Wrong(Faulty):
        def wrong(self, call, now):
            if call.method != method:
                return self.right(call, now)
            return effects(self, call, now)

    return Wrong


def raising(method, error=None):
    """Return a protocol one of whose methods raises, about its victim if it is about a device."""
    error = ZeroDivisionError("planted") if error is None else error

    def wrong(self, *args):
        ours = method not in ("uploaded", "accumulated", "left") or self.victim in (
            args[0] if method == "accumulated" else (getattr(args[0], "assignment", args[0]),)
        )
        if ours:
            raise error
        return getattr(SimpleProtocol, method)(self, *args)

    return type("Raising", (Faulty,), {method: wrong})


async def start(one, device, assignment):
    """Start a contribution; return the operation."""
    method = one.services.method(routes.route(FACTORY.services[0], START))
    return await method(
        pb.StartAggregationDataUploadRequest(
            aggregation_id=assignment.aggregation_id,
            authorization_token=assignment.authorization_token,
        ),
        device.principal,
    )


async def fare(one, device, assignment, body=None):
    """Contribute; return the code that the device is told in the end."""
    operation = await start(one, device, assignment)
    while not operation.done:
        await asyncio.sleep(0)
        operation = await device.poll(operation.name)
    if operation.HasField("error"):
        return Code(operation.error.code)
    try:
        await device.contribute(assignment, body)
    except StatusError as error:
        return error.code
    return Code.OK


async def both(kit, one, protocol, body=None, wait=False):
    """Run the victim and a good device on a task with goal 1; return how the victim fared."""
    task = await one.submit(goal=1)
    victim, good = one.device(), one.device()
    theirs, ours = await victim.assignment(), await good.assignment()
    fared = asyncio.ensure_future(fare(one, victim, theirs, body))
    if not wait:
        await until(fared.done)
    else:
        await kit.settle()
        assert not fared.done()
        one.advance(TIMEOUT + 1)
        ours = await (good := one.device()).assignment()
    if fared.done() and fared.result() is Code.OK:
        return fared.result(), await one.result(task)
    await good.contribute(ours)
    result = await one.result(task)
    assert result == [1 << good.number, 1]
    return await asyncio.wait_for(fared, 30), result


def blamed(caplog):
    """Whether the log names the protocol."""
    return any("aggregation protocol bad of task sum" in r.getMessage() for r in caplog.records)


def garbage(make):
    return lambda self, call, now: make(call.assignment, call.method)


def outcome(answer):
    """Return a protocol that answers like this when it hears what came of an accumulation."""

    def accumulated(self, assignments, error, now):
        if self.victim in assignments:
            return answer(self.victim, error)
        return SimpleProtocol.accumulated(self, assignments, error, now)

    return type("Wrong", (Faulty,), {"accumulated": accumulated})


WRONG_OUTCOMES = {
    "the contrary": outcome(lambda a, error: [Answer(a, SUBMIT, NO if error is None else OK)]),
    "raises": raising("accumulated"),
    "raises a status": raising("accumulated", NO),
    "None": outcome(lambda a, error: None),
    "text": outcome(lambda a, error: [Answer(a, SUBMIT, "text")]),
    "nonsense": outcome(lambda a, error: [object()]),
    "a drop": outcome(lambda a, error: [Drop(a, "x", Code.INTERNAL, "")]),
    "once more": outcome(lambda a, error: [Accumulate((a,), slot="checkpoint")]),
    "three times": outcome(
        lambda a, error: [Answer(a, SUBMIT, OK if error is None else NO) for _ in range(3)]
    ),
    "silence": outcome(lambda a, error: []),
}
