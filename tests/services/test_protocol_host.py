"""Aggregation protocols that break their contract: the device hears so, and the task goes on.

Each is the plain protocol with one fault, and the fault is about the first device that comes.
"""

from __future__ import annotations

import asyncio

import pytest

from fcp_aggregators.simple_protocol import SimpleProtocol
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.protocols import (
    Accumulate,
    Answer,
    Drop,
    Pending,
)
from tests.services.faulty_protocols import (
    NO,
    OK,
    START,
    SUBMIT,
    Faulty,
    blamed,
    both,
    garbage,
    on,
    raising,
    world,
)

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


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        # Then the core would not know which OK says that a device counts, and let any pass.
        ({"concluding": ()}, "must name in concluding"),
        ({"concluding": ("Submitt",)}, r"must name in concluding.*Submitt"),
        ({"concluding": SUBMIT}, "must name in concluding"),
        ({"concluding": None}, "must name in concluding"),
        ({"concluding": ([],)}, "must name in concluding"),
        ({"together": None}, "cannot start the task"),
        ({"together": "many"}, "cannot start the task"),
    ],
)
def test_a_task_whose_protocol_says_what_it_cannot_is_refused(kit, wrong, why):
    async def main():
        async with world(kit, type("Wrong", (SimpleProtocol,), wrong)) as one:
            with pytest.raises(StatusError, match=why) as caught:
                await one.submit(goal=1)
            assert caught.value.code is Code.INVALID_ARGUMENT
            assert await one.services.tasks.list() == []

    asyncio.run(main())
