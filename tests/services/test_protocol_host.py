"""Aggregation protocols that break their contract: the device hears so, and the task goes on.

Each is the plain protocol with one fault, and the fault is about the first device that comes.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future

import pytest

from fcp_aggregators.simple_protocol import FACTORY, SimpleProtocol
from fcp_core.aggregation.engine import EngineFactory
from fcp_core.aggregation.local import LocalEngine
from fcp_core.plugins import hookimpl
from fcp_core.protocol import routes
from fcp_core.protocol.protos import aggregations_pb2 as pb
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import ProtocolCall
from fcp_core.rounds.protocols import (
    Accumulate,
    AggregationProtocolFactory,
    Answer,
    Drop,
    Pending,
    Work,
)
from fcp_core.rounds.tasks import TaskState
from fcp_core.server.services.protocol_calls import POLLING_INTERVAL
from fcp_core.server.services.protocol_calls import _operation as operation_message

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


async def until(condition):
    """Wait for what threads of the engine do."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to this")


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


def with_right(more):
    """Return effects that are the right ones and then some."""
    return lambda self, call, now: [*self.right(call, now), *more(call.assignment)]


ACCEPTS_NOTHING = {
    "OK for what was never accumulated": on(SUBMIT, garbage(lambda a, m: [Answer(a, m, OK)])),
    "an OK that is raised": on(
        SUBMIT, lambda self, call, now: (_ for _ in ()).throw(StatusError(Code.OK, ""))
    ),
    "an OK as an error": on(SUBMIT, garbage(lambda a, m: [Answer(a, m, StatusError(Code.OK, ""))])),
    "a group with itself": on(SUBMIT, garbage(lambda a, m: [Accumulate((a, a), checkpoint=b"x")])),
    "together with an unknown one": on(
        SUBMIT, garbage(lambda a, m: [Accumulate((a, "nobody"), checkpoint=b"x")])
    ),
    "several from one upload": on(
        SUBMIT, garbage(lambda a, m: [Accumulate((a, "nobody"), slot="checkpoint")])
    ),
    "an upload of another slot": on(SUBMIT, garbage(lambda a, m: [Accumulate((a,), slot="other")])),
    "neither upload nor checkpoint": on(SUBMIT, garbage(lambda a, m: [Accumulate((a,))])),
    "a checkpoint that is no bytes": on(
        SUBMIT, garbage(lambda a, m: [Accumulate((a,), checkpoint="text")])
    ),
    "before there is an upload": on(
        START, garbage(lambda a, m: [Accumulate((a,), slot="checkpoint")])
    ),
    "an answer of None": on(SUBMIT, garbage(lambda a, m: [Answer(a, m, None)])),
    "an answer of text": on(START, garbage(lambda a, m: [Answer(a, m, "text")])),
    "another method's answer": on(START, garbage(lambda a, m: [Answer(a, m, OK)])),
    "an operation without metadata": on(START, garbage(lambda a, m: [Pending(a, m, None)])),
    "a drop that is no failure": on(SUBMIT, garbage(lambda a, m: [Drop(a, "x", Code.OK, "")])),
    "a drop with no code": on(SUBMIT, garbage(lambda a, m: [Drop(a, "x", "what", "")])),
    "None": on(SUBMIT, garbage(lambda a, m: None)),
    "None at the start": on(START, garbage(lambda a, m: None)),
    "a number": on(SUBMIT, garbage(lambda a, m: 7)),
    "text": on(START, garbage(lambda a, m: "text")),
    "no effects": on(SUBMIT, garbage(lambda a, m: [object()])),
    "unhashable names": on(SUBMIT, garbage(lambda a, m: [Accumulate(([],), checkpoint=b"x")])),
    "raises in receive": raising("wrong"),
    "raises in uploaded": raising("uploaded"),
    "raises in uploaded, with a status": raising("uploaded", NO),
}


@pytest.mark.parametrize("kind", ACCEPTS_NOTHING.values(), ids=ACCEPTS_NOTHING)
def test_a_faulty_protocol_costs_its_device_an_error_and_the_task_nothing(kit, kind, caplog):
    async def main():
        async with world(kit, kind) as one:
            code, _ = await both(kit, one, kind)
            # Never OK, and never an error that means that the device is wrong.
            assert code in (Code.INTERNAL, Code.ABORTED)
            assert [event.code for event in one.recorder.of("Dropped")][:1] == [Code.INTERNAL]
            assert one.services.media.held == 0

    asyncio.run(main())
    assert blamed(caplog)


TOLD_TOO_EARLY = {
    "OK at once": on(SUBMIT, with_right(lambda a: [Answer(a, SUBMIT, OK)])),
    "an error at once": on(SUBMIT, with_right(lambda a: [Answer(a, SUBMIT, NO)])),
    "text at once": on(SUBMIT, with_right(lambda a: [Answer(a, SUBMIT, "text")])),
    "twice": on(SUBMIT, with_right(lambda a: [Accumulate((a,), slot="checkpoint")])),
    "and drops": on(SUBMIT, with_right(lambda a: [Drop(a, "x", Code.INTERNAL, "")])),
    "and returns nonsense": on(SUBMIT, with_right(lambda a: [object()])),
    "and answers a stranger": on(SUBMIT, with_right(lambda a: [Answer("nobody", SUBMIT, OK)])),
    "and answers another call": on(SUBMIT, with_right(lambda a: [Answer(a, "Nothing", OK)])),
    "and answers the first one again": on(SUBMIT, with_right(lambda a: [Answer(a, START, OK)])),
}


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("kind", TOLD_TOO_EARLY.values(), ids=TOLD_TOO_EARLY)
def test_what_is_accumulating_is_answered_by_what_comes_of_it(kit, kind, silent, fits, caplog):
    """Whatever the protocol says meanwhile, and even if it says nothing afterwards."""
    made = type("Silent", (kind,), {"accumulated": lambda self, *args: ()}) if silent else kind

    async def main():
        async with world(kit, made) as one:
            code, result = await both(kit, one, made, None if fits else b"rubbish")
            assert code is (Code.OK if fits else Code.INVALID_ARGUMENT)
            assert result == ([1, 1] if fits else [2, 1])

    asyncio.run(main())
    if kind not in (TOLD_TOO_EARLY["and drops"],):
        assert blamed(caplog)


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


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("answer", WRONG_OUTCOMES)
def test_ok_is_for_what_is_counted_whatever_the_protocol_makes_of_the_outcome(
    kit, answer, fits, caplog
):
    async def main():
        kind = WRONG_OUTCOMES[answer]
        async with world(kit, kind) as one:
            task = await one.submit(goal=2)
            victim, good = one.device(), one.device()
            theirs = await victim.assignment()
            body = None if fits else b"rubbish"
            fared = asyncio.ensure_future(fare(one, victim, theirs, body))
            # One that counts and says nothing is answered at the task's end at the latest.
            late = fits and answer in ("silence", "a drop")
            await until(lambda: one.recorder.of("Contributed" if fits else "Dropped"))
            await kit.settle()
            assert fared.done() is not late
            await good.run()
            if not fits:
                await one.device().run()
            assert await one.result(task) == ([3, 2] if fits else [6, 2])
            code = await asyncio.wait_for(fared, 30)
            wanted = Code.OK if fits else Code.INVALID_ARGUMENT
            assert code is (
                Code.UNAVAILABLE if (answer, fits) == ("three times", False) else wanted
            )
            assert len(one.recorder.of("Contributed")) == 2

    asyncio.run(main())
    if answer not in ("silence", "a drop"):
        assert blamed(caplog)


SILENT = {
    "never answers": on(SUBMIT, garbage(lambda a, m: ())),
    "accumulates somebody unknown": on(
        SUBMIT, garbage(lambda a, m: [Accumulate(("nobody",), slot="checkpoint")])
    ),
    "accumulates nobody": on(SUBMIT, garbage(lambda a, m: [Accumulate((), checkpoint=b"x")])),
    "drops somebody unknown": on(
        SUBMIT, garbage(lambda a, m: [Drop("nobody", "x", Code.INTERNAL, "")])
    ),
    "asks for work that fails": on(SUBMIT, garbage(lambda a, m: [Work("k", "no.such:thing", b"")])),
}


@pytest.mark.parametrize("kind", SILENT.values(), ids=SILENT)
def test_a_call_that_is_never_answered_fails_when_the_assignment_does(kit, kind):
    async def main():
        async with world(kit, kind) as one:
            code, _ = await both(kit, one, kind, wait=True)
            assert code is Code.INTERNAL

    asyncio.run(main())


@pytest.mark.parametrize("kind", SILENT.values(), ids=SILENT)
@pytest.mark.parametrize("late", ["accept", "refuse"])
def test_no_protocol_outlives_the_deadline(kit, kind, late):
    wanted = Code.OK if late == "accept" else Code.ABORTED

    async def main():
        async with world(kit, kind, assignment_timeout="1h") as one:
            task = await one.submit(goal=1, late_contributions=late)
            victim = one.device()
            theirs = await victim.assignment()
            fared = asyncio.ensure_future(fare(one, victim, theirs))
            await kit.settle()
            one.advance(DEADLINE)
            with pytest.raises(StatusError, match="came to its deadline with 0 of 1") as caught:
                await one.result(task)
            assert caught.value.code is Code.DEADLINE_EXCEEDED
            assert await asyncio.wait_for(fared, 30) is wanted
            status = await one.status(task)
            assert (status.state, status.surplus) == (TaskState.FAILED, 1)

    asyncio.run(main())


def test_a_device_that_waits_when_the_server_stops_is_told_so(kit):
    async def main():
        waiting = []
        for kind in (SILENT["never answers"], WRONG_OUTCOMES["silence"]):
            async with world(kit, kind) as one:
                await one.submit(goal=2)
                victim = one.device()
                theirs = await victim.assignment()
                waiting.append(asyncio.ensure_future(fare(one, victim, theirs)))
                await kit.settle()
        for fared in waiting:
            assert await asyncio.wait_for(fared, 30) is Code.UNAVAILABLE

    asyncio.run(main())


@pytest.mark.parametrize("method", ["left", "tick", "next_tick", "describe"])
@pytest.mark.parametrize("how", ["raises", "None", "nonsense"])
def test_other_methods_that_fail_change_nothing(kit, method, how, caplog):
    plain = getattr(SimpleProtocol, method)
    values = {"None": None, "nonsense": "text"}
    kind = raising(method) if how == "raises" else on(START, Faulty.right)
    if how != "raises":
        kind = type("Wrong", (kind,), {method: lambda self, *args: values[how]})
    assert getattr(kind, method) is not plain
    if method == "tick":
        kind.next_tick = lambda self: 0.0

    async def main():
        async with world(kit, kind) as one:
            task = await one.submit(goal=2)
            gone = one.device()
            assignment = await gone.assignment()
            ticket = await gone.start_upload(assignment)
            await gone.abort(assignment, ticket)
            one.advance(1)
            for _ in range(2):
                await one.device().run()
            assert await one.result(task) == [6, 2]

    asyncio.run(main())
    quiet = {("next_tick", "None"), ("describe", "None"), ("describe", "nonsense")}
    assert blamed(caplog) is ((method, how) not in quiet)


def test_a_protocol_that_is_always_late_does_not_keep_the_server_busy(kit):
    class Restless(SimpleProtocol):
        ticks = 0

        def tick(self, now):
            self.ticks += 1
            return ()

        def next_tick(self):
            return 0.0

    async def main():
        plugin = Plugin(Restless)
        async with world(kit, plugin) as one:
            task = await one.submit(goal=1)
            protocol = plugin.made[-1]
            for _ in range(50):
                one.services.ticker.run_due()
            assert protocol.ticks <= 1
            one.advance(0.9)
            assert protocol.ticks <= 1
            for _ in range(5):
                one.advance(1.0)
            assert 5 <= protocol.ticks <= 6
            await one.device().run()
            assert await one.result(task) == [1, 1]

    asyncio.run(main())


def test_a_protocol_may_tick_often_if_it_keeps_its_times(kit):
    class Fast(SimpleProtocol):
        when = 0.0
        ticks = 0

        def start(self, task, now):
            self.when = now + 0.1
            return ()

        def tick(self, now):
            self.ticks += 1
            self.when = now + 0.1
            return ()

        def next_tick(self):
            return self.when

    async def main():
        plugin = Plugin(Fast)
        async with world(kit, plugin) as one:
            await one.submit(goal=1)
            for _ in range(20):
                one.advance(0.11)
            assert plugin.made[-1].ticks == 20

    asyncio.run(main())


def test_a_task_whose_protocol_cannot_start_is_refused(kit):
    async def main():
        async with world(kit, raising("start")) as one:
            with pytest.raises(
                StatusError, match=r"'bad' cannot start the task.*planted"
            ) as caught:
                await one.submit(goal=1)
            assert caught.value.code is Code.INVALID_ARGUMENT
            assert await one.services.tasks.list() == []

    asyncio.run(main())


def test_work_that_fails_comes_back_as_an_error(kit):
    found = []

    class Working(SimpleProtocol):
        def start(self, task, now):
            return [Work("good", "zlib:compress", b"a"), Work("bad", "no.such:thing", b"")]

        def worked(self, key, result, now):
            found.append((key, type(result).__name__))
            raise ZeroDivisionError

    async def main():
        async with world(kit, Working) as one:
            task = await one.submit(goal=1)
            await until(lambda: len(found) == 2)
            assert sorted(found, reverse=True) == [("good", "bytes"), ("bad", "StatusError")]
            await one.device().run()
            assert await one.result(task) == [1, 1]

    asyncio.run(main())


def test_work_is_cancelled_when_its_task_ends(kit):
    jobs = []

    class Working(SimpleProtocol):
        def start(self, task, now):
            return [Work("slow", "zlib:compress", b"a")]

    class Slow(LocalEngine):
        def run(self, function, arguments):
            jobs.append(Future())
            return jobs[-1]

    class Both(Plugin):
        @hookimpl
        def fcp_register_engines(self):
            return [EngineFactory("slow", "works for ever", lambda made, options: Slow(made, 0))]

    async def main():
        async with world(kit, Both(Working), engine="slow") as one:
            task = await one.submit(goal=1)
            await one.services.tasks.cancel(task)
            assert jobs.pop().cancelled()
            # One that stops leaves none behind either.
            await one.submit(goal=1)
            assert not jobs[0].done()
        assert jobs[0].cancelled()

    asyncio.run(main())


def test_an_error_is_not_kept_and_the_call_may_be_sent_again(kit):
    class Reluctant(SimpleProtocol):
        """Refuses the first two starts, once by raising and once by answering."""

        calls = 0

        def receive(self, call, now):
            self.calls += call.method == START
            if self.calls == 1:
                raise NO
            if self.calls == 2:
                return [Answer(call.assignment, call.method, NO)]
            return super().receive(call, now)

    async def main():
        async with world(kit, Reluctant) as one:
            task = await one.submit(goal=1)
            device = one.device()
            assignment = await device.assignment()
            assert await kit.code_of(start(one, device, assignment)) is Code.UNAVAILABLE
            assert (await start(one, device, assignment)).error.code == Code.UNAVAILABLE
            await device.contribute(assignment)
            assert await one.result(task) == [1, 1]

    asyncio.run(main())


def test_an_error_to_a_concluding_call_drops_the_device(kit):
    """It goes away: a contribution that came later would be counted without its knowledge."""

    async def main():
        kind = on(SUBMIT, garbage(lambda a, m: [Answer(a, m, NO)]))
        async with world(kit, kind) as one:
            code, _ = await both(kit, one, kind)
            assert code is Code.UNAVAILABLE
            (event,) = one.recorder.of("Dropped")
            assert (event.phase, event.code) == ("protocol", Code.UNAVAILABLE)

    asyncio.run(main())


@pytest.mark.parametrize("error", [None, NO, ValueError("planted")])
def test_a_device_that_counts_before_it_concludes_hears_ok(kit, error, caplog):
    """Whatever its protocol says to it then."""

    class Eager(SimpleProtocol):
        def uploaded(self, upload, now):
            return [*super().uploaded(upload, now), Accumulate((upload.assignment,), "checkpoint")]

        def receive(self, call, now):
            if call.method == SUBMIT and error is not None:
                raise error
            return super().receive(call, now)

        def accumulated(self, assignments, error, now):
            return ()

    async def main(at_once):
        async with world(kit, Eager) as one:
            task = await one.submit(goal=2)
            device = one.device()
            assignment = await device.assignment()
            ticket = await device.start_upload(assignment)
            await device.upload(ticket)
            if not at_once:
                await until(lambda: one.recorder.of("Contributed"))
            submitting = asyncio.ensure_future(device.submit(assignment, ticket))
            assert await asyncio.wait_for(submitting, 30) == OK
            assert (await one.status(task)).contributed == 1

    asyncio.run(main(False))
    with caplog.at_level(logging.ERROR):
        asyncio.run(main(True))


def test_an_operation_that_is_never_done_ends_with_its_assignment(kit):
    metadata = pb.StartAggregationDataUploadMetadata()
    waiting = on(START, garbage(lambda a, m: [Pending(a, m, metadata)]))

    async def main():
        async with world(kit, waiting) as one:
            await one.submit(goal=1)
            device = one.device()
            operation = await start(one, device, await device.assignment())
            assert not operation.done
            assert operation.metadata.Is(metadata.DESCRIPTOR)
            assert await device.poll(operation.name) == operation
            one.advance(TIMEOUT)
            assert (await device.poll(operation.name)).error.code == Code.INTERNAL

    asyncio.run(main())


@pytest.mark.parametrize("said", [None, 7])
def test_an_operation_always_says_how_often_to_ask(said):
    """A device that is not told asks without a pause."""
    route = routes.route("google.internal.federatedcompute.v1.SecureAggregations", "AdvertiseKeys")
    call = ProtocolCall()
    call.metadata = route.operation_metadata_class()
    if said is not None:
        call.metadata.polling_interval.seconds = said
    metadata = route.operation_metadata_class()
    assert operation_message(route, "token", call).metadata.Unpack(metadata)
    assert metadata.polling_interval.ToTimedelta().total_seconds() == (said or POLLING_INTERVAL)
