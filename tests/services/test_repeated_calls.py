"""The same call sent again, up to four times, in any order with the others, has one effect.

The published client sends each call up to four times, and earlier ones may arrive after later ones:
whatever the interleaving, a call has one answer, and a contribution is counted once.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import AssignmentMode, TaskState

#: How often the published client sends a call.
TIMES = 4
#: What says that nothing is wrong with the device.
GENTLE = (Code.ABORTED, Code.CANCELLED)
NAMES = ("one", "two")
RUBBISH = b"rubbish"


class Session:
    """One device's session: calls that it makes in order, and each of them again.

    :param gives_up: how, if it does: ``cancel``, ``computation``, ``abort`` or ``late abort``.
    """

    def __init__(self, device, body=None, gives_up=""):
        self.device = device
        self.body = device.body() if body is None else body
        self.gives_up = gives_up
        self.calls = []
        self.made = 0
        self.answers = {}

    async def begin(self):
        """Check in, and prepare the calls that follow."""
        await self.device.check_in()
        self.calls.append(("report_eligibility", self.device.report_eligibility))
        if self.device.multiple:
            self.calls.append(("ask", self.ask))
        else:
            self.calls.append(("start", self.start))

    async def ask(self):
        found = await self.device.ask(*NAMES)
        self.go_on(found)
        return found

    async def start(self):
        operation = await self.device.start()
        answer = self.device.answer(operation)
        if answer.HasField("task_assignment"):
            self.go_on([answer.task_assignment])
        return operation

    def rejected(self, operation):
        if not operation.HasField("response"):
            return False
        return self.device.answer(operation).HasField("rejection_info")

    def go_on(self, assignments):
        """Prepare the calls for what was given, the first time."""
        if len(self.calls) > 2:
            return
        name = f"operations/{self.device.session_id}"
        if self.gives_up == "cancel" and not self.device.multiple:
            self.calls.append(("cancel", lambda: self.device.cancel(name)))
        code = Code.INTERNAL if self.gives_up == "computation" else Code.OK
        for each in assignments:
            id_ = each.aggregation_id
            self.calls += [
                (f"begin {id_}", lambda each=each: self.start_upload(each)),
                (f"report {id_}", lambda each=each: self.device.report(each, code)),
            ]

    async def start_upload(self, assignment):
        ticket = await self.device.start_upload(assignment)
        name, id_ = ticket.resource.resource_name, assignment.aggregation_id
        if not any(key == f"submit {id_}" for key, _ in self.calls):
            calls = [
                (f"upload {id_}", lambda: self.upload(name)),
                (f"submit {id_}", lambda: self.device.submit(assignment, ticket)),
            ]
            if "abort" in self.gives_up:
                place = 2 if "late" in self.gives_up else 1
                give_up = (
                    f"abort {id_}",
                    lambda: self.device.abort(assignment, ticket, Code.CANCELLED),
                )
                calls.insert(place, give_up)
            self.calls += calls
        return ticket

    async def upload(self, name):
        """Upload in two steps, so that other calls come between them."""
        media = self.device.services.media
        if await media.begin_upload(name, self.device.principal):
            for _ in range(3):
                await asyncio.sleep(0)
            await media.finish_upload(name, self.body, self.device.principal)

    async def send(self, index):
        """Send a call again, or the next one if the one before it was answered well."""
        index = min(index, self.made)
        if index and index == self.made:
            before = self.answers[self.calls[index - 1][0]]
            await asyncio.wait(before, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            if not any(answer.done() and not answer.exception() for answer in before):
                index -= 1
        if index >= len(self.calls):
            index = len(self.calls) - 1
        key, call = self.calls[index]
        self.made = max(self.made, index + 1)
        answers = self.answers.setdefault(key, [])
        if len(answers) < TIMES:
            answers.append(asyncio.ensure_future(call()))
            return answers[-1]
        return None


def check(session, key, answers):
    """Check that one call had one answer; return whether that was OK."""
    good, bad = [], []
    for answer in answers:
        if answer.exception() is None:
            good.append(answer.result())
        else:
            bad.append(answer.exception())
    assert all(isinstance(error, StatusError) for error in bad), bad
    kind = key.partition(" ")[0]
    allowed = {*GENTLE}
    if kind == "submit" and session.body == RUBBISH:
        allowed.add(Code.INVALID_ARGUMENT)
    if kind == "submit" and session.gives_up == "computation":
        allowed.add(Code.INTERNAL)
    # Nothing was wrong with what the device sent, unless its contribution was.
    assert {error.code for error in bad} <= allowed, (key, bad)
    if kind == "ask":
        # A task that is over is in no answer any more.
        longest = max(good, key=len, default=[])
        assert all(each in longest for answer in good for each in answer)
    else:
        # Who asks once more when its task is over is rejected: it may not have heard of it.
        alike = [answer for answer in good if kind != "start" or not session.rejected(answer)]
        assert all(other == alike[0] for other in alike), key
    if kind == "submit":
        assert not (good and bad), "a contribution is counted, or it is not"
        assert len({(error.code, error.message) for error in bad}) <= 1
    elif kind in ("report_eligibility", "report", "abort", "cancel"):
        assert not bad
    return bool(good)


steps = st.lists(
    st.tuples(
        st.integers(0, 3),  # whose call; 3: the server's own
        st.integers(0, 12),  # which one; one that it has not come to: the next one
        st.booleans(),  # whether it is answered before the next one is sent
    ),
    min_size=20,
    max_size=90,
)


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=75,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=steps,
    multiple=st.booleans(),
    goal=st.integers(1, 3),
    rubbish=st.booleans(),
    gives_up=st.sampled_from(["", "cancel", "computation", "abort", "late abort"]),
    end=st.sampled_from(["", "cancel", "deadline"]),
    late=st.sampled_from(["accept", "refuse"]),
)
def test_every_call_has_one_answer_and_one_effect(
    kit, steps, multiple, goal, rubbish, gives_up, end, late
):
    async def main():
        options = {"over_selection": "3", "task_deadline": "300s"}
        async with kit.world(late_contributions=late, **options) as world:
            mode = AssignmentMode.MULTIPLE if multiple else AssignmentMode.SINGLE
            tasks = {}
            for name in NAMES if multiple else NAMES[:1]:
                task = await world.submit(goal=goal, name=name, assignment_mode=mode)
                (runner,) = (t for t in open_tasks(world) if t.task_id == task)
                tasks[task] = runner.aggregation_id
            sessions = [
                Session(world.device(multiple=multiple), gives_up=gives_up),
                Session(world.device(multiple=multiple), RUBBISH if rubbish else None),
                Session(world.device(multiple=multiple)),
            ]
            for session in sessions:
                await session.begin()
            ended = False
            for who, which, waits in steps:
                if who < 3:
                    answer = await sessions[who].send(which)
                    if waits and answer is not None:
                        await asyncio.wait({answer}, timeout=30)
                elif which == 12 and end and not ended:
                    ended = True
                    if end == "cancel":
                        await world.services.tasks.cancel(next(iter(tasks)))
                    else:
                        world.advance(300)
                else:
                    await kit.settle()
            # Everything that was sent is sent once more, in the end.
            for session in sessions:
                for index in range(session.made):
                    await session.send(index)
            pending = {a for s in sessions for each in s.answers.values() for a in each}
            if pending:
                _, left = await asyncio.wait(pending, timeout=30)
                assert not left
            await kit.settle()
            await verify(world, tasks, sessions)

    async def verify(world, tasks, sessions):
        counted = Counter()
        for session in sessions:
            for key, answers in session.answers.items():
                good = check(session, key, answers)
                kind, _, id_ = key.partition(" ")
                if good and kind == "submit":
                    counted[id_] += 1 << session.device.number
        for task, id_ in tasks.items():
            status = await world.status(task)
            accepted = bin(counted[id_]).count("1")
            # One that was given up as silent may come after all.
            too_late = status.surplus + sum(status.silent.values())
            assert accepted - (too_late if late == "accept" else 0) <= status.contributed
            assert status.contributed <= accepted
            assert status.pending <= status.assigned <= 3
            ended = status.contributed + status.dropped + status.surplus
            assert status.assigned == ended + status.pending
            if status.state is TaskState.COMPLETED:
                total, count = await world.result(task)
                assert (total & counted[id_], count) == (total, goal)
                assert bin(total).count("1") == goal
        for kinds in (("Assigned",), ("Contributed", "Dropped", "Surplus")):
            events = [event for kind in kinds for event in world.recorder.of(kind)]
            ids = [(event.task_id, event.session_id) for event in events]
            assert len(set(ids)) == len(ids), "it happens once"
        held = [
            len(session.body)
            for session in sessions
            for key, answers in session.answers.items()
            if key.startswith("upload ") and any(not a.exception() for a in answers)
        ]
        assert 0 <= world.services.media.held <= sum(held)
        if not open_tasks(world):
            assert world.services.media.held == 0

    def open_tasks(world):
        return [t for p in world.services._populations for t in p.open_tasks()]

    asyncio.run(main())


@pytest.mark.parametrize("why", ["computation", "abort", "timeout", "task"])
def test_a_call_after_its_assignment_was_dropped_is_no_fault_of_the_device(kit, why):
    async def main():
        options = {"over_selection": "3", "assignment_timeout": "60s"}
        async with kit.world(late_contributions="refuse", **options) as world:
            task = await world.submit(goal=2)
            early, late = world.device(), world.device()
            first, second = await early.assignment(), await late.assignment()
            ticket = await early.start_upload(first)
            if why == "computation":
                await early.report(first, Code.INTERNAL)
                await late.report(second, Code.INTERNAL)
            elif why == "abort":
                await early.abort(first, ticket)
                await late.abort(second, await late.start_upload(second))
            elif why == "timeout":
                world.advance(61)
            else:
                await world.services.tasks.cancel(task)
                await kit.settle()
            for _ in range(2):
                assert await kit.code_of(early.upload(ticket)) is Code.ABORTED
                assert await kit.code_of(early.submit(first, ticket)) is Code.ABORTED
                # What was answered before is answered again: it tells of no contribution.
                assert await early.start_upload(first) == ticket
                for each, given_ in ((early, first), (late, second)):
                    assert await kit.code_of(each.report(given_)) is Code.OK
                    assert await kit.code_of(each.report_eligibility()) is Code.OK
                    over = each.answer(await each.start()).HasField("rejection_info")
                    assert over is (why == "task")
            if why != "abort":
                assert await kit.code_of(late.start_upload(second)) is Code.ABORTED

    asyncio.run(main())


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_an_upload_that_is_repeated_is_answered_ok_and_counted_once(kit, when):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=1)
            device, media = world.device(), world.services.media
            assignment = await device.assignment()
            ticket = await device.start_upload(assignment)
            name = ticket.resource.resource_name
            assert await media.begin_upload(name)
            if when == "during":
                assert await media.begin_upload(name)
            await media.finish_upload(name, device.body())
            if when == "during":
                await media.finish_upload(name, device.body())
            if when == "before":
                assert not await media.begin_upload(name)
            submitting = [asyncio.ensure_future(device.submit(assignment, ticket)) for _ in "1234"]
            if when != "after":
                await asyncio.sleep(0)
            else:
                await asyncio.wait(submitting, timeout=30)
            assert not await media.begin_upload(name)
            answers = await asyncio.gather(*submitting)
            assert all(answer == answers[0] for answer in answers)
            assert await world.result(task) == [1, 1]
            # After the end of the task, too.
            assert not await media.begin_upload(name)
            assert await device.submit(assignment, ticket) == answers[0]
            assert await device.start_upload(assignment) == ticket
            assert media.held == 0
            assert len(world.recorder.of("Contributed")) == 1
            # A while later nobody sends anything again; who does is late, and did nothing wrong.
            world.advance(601)
            assert await device.submit(assignment, ticket) == answers[0]

    asyncio.run(main())


def test_who_asked_for_several_tasks_and_got_none_is_not_given_one_later(kit):
    """The device that got the first answer is gone, and would leave the task alone."""

    async def main():
        async with kit.world() as world:
            many = {"assignment_mode": AssignmentMode.MULTIPLE}
            task = await world.submit(goal=1, name="one", **many)
            first, second = world.device(multiple=True), world.device(multiple=True)
            for device in (first, second):
                await device.check_in()
            (given_,) = await first.ask("one")
            assert await second.ask("one") == []
            await first.report(given_, Code.INTERNAL)
            assert await second.ask("one") == []
            assert len(world.recorder.of("Rejected")) == 1
            third = world.device(multiple=True)
            await third.check_in()
            (given_,) = await third.ask("one")
            await third.contribute(given_)
            assert await world.result(task) == [1 << 2, 1]

    asyncio.run(main())
