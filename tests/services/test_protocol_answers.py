"""What a device hears of a contribution, whatever its aggregation protocol makes of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fcp_aggregators.simple_protocol import SimpleProtocol
from fcp_core.protocol.status import Code
from fcp_core.rounds.protocols import (
    Accumulate,
    Answer,
    Drop,
)
from tests.services.faulty_protocols import (
    NO,
    OK,
    START,
    SUBMIT,
    WRONG_OUTCOMES,
    blamed,
    both,
    fare,
    garbage,
    on,
    start,
    world,
)
from tests.services.worlds import until


def with_right(more):
    """Return effects that are the right ones and then some."""
    return lambda self, call, now: [*self.right(call, now), *more(call.assignment)]


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
