"""Random histories of a round: lost requests, lost answers, repeats, restarts, jumps in time.

A request that got lost is a step that is not in the history. A duplicate arrives at the same time.

Each device brings its own power of two. Whatever happens, the sum must be of exactly the devices
whose submission the server accepted, each once (those who come too late are accepted and not
added, unless they are refused); nothing but the stated codes is ever answered; and
the round ends.
"""

import asyncio
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fcp_core.protocol.status import Code
from fcp_core.rounds.tasks import TaskState

STEPS = [
    "check_in",
    "eligibility",
    "start",
    "poll",
    "cancel",
    "report",
    "report_failure",
    "start_upload",
    "begin_upload",
    "finish_upload",
    "abandon_upload",
    "submit",
    "submit_wrong_name",
    "submit_bad",
    "abort",
    "restart",
]

#: What a device may be answered. NOT_FOUND only before it has checked in: it sends devices away.
ANSWERS = {Code.OK, Code.ABORTED, Code.UNAUTHENTICATED, Code.INVALID_ARGUMENT}


class Phone:
    """A device's memory of its session; an answer that got lost is not in it."""

    def __init__(self, device):
        self.device = device
        self.restart()
        #: The authorization tokens of the assignments whose submission was accepted.
        self.tokens = set()
        #: Whether devices that come late are answered OK.
        self.lenient = False

    @property
    def accepted(self):
        return len(self.tokens)

    def restart(self):
        self.device.session_id = None
        self.operation = self.assignment = self.ticket = None
        self.bad = False
        self.wanted = True

    async def step(self, name, lost):
        device, services = self.device, self.device.services
        if name == "restart":
            self.restart()
        elif name == "check_in":
            before = device.session_id
            await device.check_in()
            if lost:
                device.session_id = before
        elif device.session_id is None or device.session_id == "":
            return
        elif name == "eligibility":
            await device.report_eligibility()
        elif name == "start":
            operation = await device.start()
            if not lost:
                self.learn(operation)
        elif self.operation is not None and name == "poll":
            operation = await device.poll(self.operation)
            if not lost:
                self.learn(operation)
        elif self.operation is not None and name == "cancel":
            await device.cancel(self.operation)
        elif self.assignment is None:
            return
        elif name == "report":
            await device.report(self.assignment)
        elif name == "report_failure":
            await device.report(self.assignment, Code.INTERNAL)
        elif name == "start_upload":
            ticket = await device.start_upload(self.assignment)
            if not lost:
                self.ticket = ticket
        elif self.ticket is None:
            return
        elif name == "begin_upload":
            self.wanted = await services.media.begin_upload(self.ticket.resource.resource_name)
        elif name in ("finish_upload", "submit_bad"):
            if not self.wanted:
                return  # HTTP drops the bytes and answers OK
            self.bad = name == "submit_bad"
            body = b"garbage" if self.bad else device.body()
            await services.media.finish_upload(self.ticket.resource.resource_name, body)
        elif name == "abandon_upload":
            await services.media.abandon_upload(self.ticket.resource.resource_name)
        elif name == "submit":
            await device.submit(self.assignment, self.ticket)
            self.tokens.add(self.assignment.authorization_token)
        elif name == "submit_wrong_name":
            await device.submit(self.assignment, self.ticket, "wrong")
            # The call is the one that was counted, or the device is late: only then is it OK.
            counted = self.assignment.authorization_token in self.tokens
            assert counted or self.lenient, "a wrong resource name was accepted"
        elif name == "abort":
            await device.abort(self.assignment, self.ticket)

    def learn(self, operation):
        self.operation = operation.name
        if operation.done and operation.WhichOneof("result") == "response":
            answer = self.device.answer(operation)
            if answer.HasField("task_assignment"):
                self.assignment = answer.task_assignment


HISTORY = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 3), st.sampled_from(STEPS), st.booleans()),
        # Devices that do all in order, or all but submit, so that rounds get somewhere.
        st.tuples(st.integers(0, 3), st.sampled_from(["session", "prepare"]), st.booleans()),
        st.tuples(st.just("all"), st.sampled_from(["prepare", "submit"]), st.just(False)),
        st.tuples(st.just("twice"), st.sampled_from(STEPS), st.integers(0, 3)),
        st.tuples(st.just("time"), st.sampled_from([1.0, 29.9, 30.0, 61.0]), st.just(False)),
        st.tuples(st.just("together"), st.lists(st.integers(0, 3), max_size=4), st.just(False)),
    ),
    max_size=40,
)

SESSION = [
    "check_in",
    "start",
    "poll",
    "report",
    "start_upload",
    "begin_upload",
    "finish_upload",
    "submit",
]


@pytest.mark.slow
@pytest.mark.parametrize("late", ["accept", "refuse"])
def test_whatever_happens_the_sum_is_of_those_who_were_accepted(kit, late):
    crowd = [("all", "prepare", False), ("all", "submit", False)]

    @example(crowd, 1, 2.0, "fifo")
    @example(crowd, 3, 2.0, "fifo")
    @example(
        [("all", "prepare", False), *[("twice", "submit", n) for n in range(4)]], 3, 2.0, "fifo"
    )
    @example([("all", "prepare", False), ("time", 1.0, False), *crowd], 2, 2.0, "uniform")
    @example([("all", "prepare", False), ("time", 30.0, False), *crowd], 2, 2.0, "fifo")
    @given(
        HISTORY,
        st.integers(1, 4),
        st.sampled_from([1.0, 2.0]),
        st.sampled_from(["fifo", "uniform"]),
    )
    def run(history, goal, over, selection):
        asyncio.run(simulate(history, goal, over, selection))

    async def simulate(history, goal, over, selection):
        async with kit.world(
            late_contributions=late,
            assignment_timeout="30s",
            session_timeout="60s",
            selection__uniform__window="1s",
        ) as world:
            task = await world.submit(
                goal, minimum_count=1, over_selection=over, deadline=400, selection=selection
            )
            phones = [Phone(world.device()) for _ in range(4)]
            for phone in phones:
                phone.lenient = late == "accept"

            async def step(phone, name, lost=False):
                code = await kit.code_of(phone.step(name, lost))
                assert code in ANSWERS, name

            async def play(phone, what, lost=False):
                names = {"session": SESSION, "prepare": SESSION[:-1]}.get(what, [what])
                for name in names:
                    await step(phone, name, lost and name == "submit")

            for who, what, lost in history:
                if who == "time":
                    world.advance(what)
                elif who == "twice":
                    phone = phones[lost]
                    await asyncio.gather(step(phone, what), step(phone, what))
                elif who == "together":
                    await asyncio.gather(*(step(phones[index], "submit") for index in what))
                elif who == "all":
                    await asyncio.gather(*(play(phone, what) for phone in phones))
                elif what in ("session", "prepare"):
                    await play(phones[who], what, lost)
                else:
                    await step(phones[who], what, lost)
            world.advance(400)
            end = await kit.code_of(world.result(task))
            assert end in (Code.OK, Code.DEADLINE_EXCEEDED)
            total, count = await world.result(task) if end is Code.OK else (0, 0)
            accepted = sum(phone.accepted for phone in phones)
            if late == "refuse":
                assert count == accepted
                assert total == sum(phone.accepted << phone.device.number for phone in phones)
            else:
                assert count <= accepted
                # Each adds its own power of two as often as it is counted.
                times = itertools.product(*(range(phone.accepted + 1) for phone in phones))
                sums = {
                    (
                        sum(n << p.device.number for n, p in zip(found, phones, strict=True)),
                        sum(found),
                    )
                    for found in times
                }
                assert (total, count) in sums
            status = await world.status(task)
            assert status.state in (TaskState.COMPLETED, TaskState.FAILED)
            assert status.contributed == count <= goal
            assert status.assigned == status.contributed + status.dropped + status.surplus
            assert status.pending == 0

    run()
