"""What devices get wrong, repeat or lose, and that the round does not mind."""

import asyncio
import logging
from concurrent.futures import Future

import pytest

from fcp_core.aggregation.engine import EngineFactory
from fcp_core.aggregation.local import LocalEngine
from fcp_core.plugins import hookimpl
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.policies import Refusal, RetryWindow
from fcp_core.rounds.tasks import TaskState


def test_tokens_are_good_for_one_contribution_and_only_where_they_belong(kit):
    async def main():
        async with kit.world() as world:
            task, other_task = await world.submit(goal=1), await world.submit(goal=1)
            device, other = world.device(), world.device()
            mine, others = await device.assignment(), await other.assignment()
            assert mine.aggregation_id != others.aggregation_id
            start = device.start_upload
            assert await kit.code_of(start(mine, "guess")) is Code.UNAUTHENTICATED
            assert await kit.code_of(start(mine, "")) is Code.UNAUTHENTICATED
            wrong = start(mine, others.authorization_token)
            assert await kit.code_of(wrong) is Code.UNAUTHENTICATED
            ticket = await start(mine)
            assert await start(mine) == ticket
            assert await kit.code_of(start(mine, ticket.client_token)) is Code.UNAUTHENTICATED
            mine.aggregation_id, known = "00000000-0000-4000-8000-000000000000", mine.aggregation_id
            assert await kit.code_of(start(mine)) is Code.NOT_FOUND
            assert await kit.code_of(device.submit(mine, ticket)) is Code.NOT_FOUND
            mine.aggregation_id = known
            await device.upload(ticket)
            assert await kit.code_of(device.submit(others, ticket)) is Code.UNAUTHENTICATED
            ticket.client_token, good = ticket.client_token + "0", ticket.client_token
            assert await kit.code_of(device.submit(mine, ticket)) is Code.UNAUTHENTICATED
            ticket.client_token = good
            await device.submit(mine, ticket)
            await device.submit(mine, ticket)
            assert await world.result(task) == [1, 1]
            assert (await world.status(other_task)).state is TaskState.OPEN

    asyncio.run(main())


def test_no_token_is_kept_and_none_is_in_an_event(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit()
            device = world.device()
            assignment = await device.assignment()
            ticket = await device.start_upload(assignment)
            runner = world.services.tasks.find(assignment.aggregation_id)
            (record,) = runner.machine.all()
            secrets = (assignment.authorization_token, ticket.client_token, device.session_id)
            kept = {name: getattr(record, name) for name in record.__slots__}
            # The answer to the call that was made is the one thing that is kept.
            del kept["calls"]
            await device.upload(ticket)
            await device.submit(assignment, ticket)
            await world.result(task)
            for secret in secrets:
                assert secret not in str(kept)
                assert secret not in str(world.recorder.events)

    asyncio.run(main())


def test_a_wrong_resource_name_or_an_early_submit_can_be_mended(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit()
            device = world.device()
            assignment = await device.assignment()
            ticket = await device.start_upload(assignment)
            for name, code in (
                (None, Code.ABORTED),
                ("wrong", Code.INVALID_ARGUMENT),
                ("", Code.INVALID_ARGUMENT),
            ):
                submit = device.submit(assignment, ticket, name)
                assert await kit.code_of(submit) is code
            await device.upload(ticket)
            with pytest.raises(StatusError, match="wrong"):
                await device.submit(assignment, ticket, "wrong")
            await device.submit(assignment, ticket)
            assert await world.result(task) == [1, 1]

    asyncio.run(main())


def test_an_upload_counts_once_and_is_answered_the_same_each_time(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit()
            device = world.device()
            assignment = await device.assignment()
            name = (ticket := await device.start_upload(assignment)).resource.resource_name
            media = world.services.media
            for unknown in ("nothing", "", name + "0", assignment.authorization_token):
                assert await kit.code_of(media.begin_upload(unknown)) is Code.UNAUTHENTICATED
                await media.abandon_upload(unknown)
            assert await media.begin_upload(name)
            # The device's connection broke, which the server has not noticed.
            assert await media.begin_upload(name)
            await media.abandon_upload(name)
            await media.finish_upload(name, device.body())
            assert media.held == len(device.body())
            await media.abandon_upload(name)
            # Its bytes are there: what comes now is dropped, and answered OK.
            assert not await media.begin_upload(name)
            await device.submit(assignment, ticket)
            assert media.held == 0
            assert not await media.begin_upload(name)
            assert await world.result(task) == [1, 1]

    asyncio.run(main())


def test_of_two_uploads_at_a_time_the_first_that_is_complete_counts(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit()
            device, other = world.device(), world.device()
            assignment = await device.assignment()
            name = (ticket := await device.start_upload(assignment)).resource.resource_name
            media = world.services.media
            assert await media.begin_upload(name)
            assert await media.begin_upload(name)
            await media.finish_upload(name, device.body())
            await media.finish_upload(name, other.body())
            assert media.held == len(device.body())
            await device.submit(assignment, ticket)
            assert await world.result(task) == [1, 1]
            assert media.held == 0

    asyncio.run(main())


@pytest.mark.parametrize("late", ["accept", "refuse"])
def test_an_upload_in_flight_when_the_round_ends_is_dropped(kit, late):
    wanted = Code.OK if late == "accept" else Code.ABORTED

    async def main():
        async with kit.world(late_contributions=late) as world:
            task = await world.submit(goal=1, over_selection=2)
            slow, quick = world.device(), world.device()
            assignment = await slow.assignment()
            ticket = await slow.start_upload(assignment)
            name = ticket.resource.resource_name
            await world.services.media.begin_upload(name)
            await quick.run()
            await world.result(task)
            finish = world.services.media.finish_upload(name, slow.body())
            assert await kit.code_of(finish) is wanted
            assert world.services.media.held == 0
            assert await kit.code_of(slow.upload(ticket)) is wanted
            assert await kit.code_of(slow.submit(assignment, ticket)) is wanted
            assert (await world.status(task)).surplus == 1

    asyncio.run(main())


def test_held_uploads_are_bounded(kit):
    async def main():
        size = None
        async with kit.world() as world:
            size = len(world.device().body())
        async with kit.world(
            max_in_flight=str(2 * size), max_body=str(size), max_decompressed=str(size)
        ) as world:
            await world.submit(goal=3)
            devices = [world.device() for _ in range(3)]
            assignments = [await device.assignment() for device in devices]
            tickets = [await d.start_upload(a) for d, a in zip(devices, assignments, strict=True)]
            for device, ticket in zip(devices[:2], tickets, strict=False):
                await device.upload(ticket)
            assert await kit.code_of(devices[2].upload(tickets[2])) is Code.UNAVAILABLE
            await devices[0].submit(assignments[0], tickets[0])
            await devices[2].upload(tickets[2])
            await devices[2].submit(assignments[2], tickets[2])

    asyncio.run(main())


class SlowEngine(LocalEngine):
    """Folds nothing until it is told to."""

    def __init__(self, factories):
        super().__init__(factories, workers=0)
        self.waiting = []

    def open(self, job, partials=()):
        fold = super().open(job, partials)
        inner = fold.add

        def add(contribution, blob):
            future = Future()
            self.waiting.append(lambda: future.set_result(inner(contribution, blob).result()))
            return future

        fold.add = add
        return fold

    def go_on(self):
        for work in self.waiting:
            work()


class SlowEnginePlugin:
    @hookimpl
    def fcp_register_engines(self):
        def make(factories, options):
            self.engine = SlowEngine(factories)
            return self.engine

        return [EngineFactory("slow", "folds late", make)]


def test_what_is_folded_or_given_up_is_held_until_then(kit):
    async def main():
        plugin = SlowEnginePlugin()
        async with kit.world(extra=[plugin], engine="slow") as world:
            await world.submit(goal=1)
            media = world.services.media
            one, other = world.device(), world.device()
            assignment = await one.assignment()
            ticket = await one.start_upload(assignment)
            await one.upload(ticket)
            assert media.held == len(one.body())
            await one.abort(assignment, ticket)
            assert media.held == 0
            assignment = await other.assignment()
            ticket = await other.start_upload(assignment)
            await other.upload(ticket)
            submitting = asyncio.ensure_future(other.submit(assignment, ticket))
            await kit.settle()
            assert media.held == len(other.body())
            plugin.engine.go_on()
            await submitting
            assert media.held == 0

    asyncio.run(main())


def test_abort_gives_the_place_back_and_uses_up_the_token(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit()
            device = world.device()
            assignment = await device.assignment()
            ticket = await device.start_upload(assignment)
            await device.upload(ticket)
            await device.abort(assignment, ticket, Code.UNAVAILABLE)
            (dropped,) = world.recorder.of("Dropped")
            assert (dropped.phase, dropped.code) == ("aborted", Code.UNAVAILABLE)
            await device.abort(assignment, ticket)
            assert await kit.code_of(device.submit(assignment, ticket)) is Code.ABORTED
            other = world.device()
            await other.run()
            assert await kit.code_of(device.abort(assignment, ticket)) is Code.OK
            ticket.client_token = "guess"
            assert await kit.code_of(device.abort(assignment, ticket)) is Code.UNAUTHENTICATED
            assert await world.result(task) == [1 << other.number, 1]

    asyncio.run(main())


def test_a_repeated_start_gives_the_same_answer(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=2, over_selection=2)
            device = world.device()
            await device.check_in()
            first, second = await device.start(), await device.start()
            assert first == second
            assert (await world.status(task)).assigned == 1
            await device.contribute(device.answer(second).task_assignment)
            assert await device.start() == first
            await world.services.tasks.cancel(task)
            await kit.settle()
            assert await kit.code_of(device.start()) is Code.ABORTED

    asyncio.run(main())


def test_a_device_that_waits_is_polled_until_its_turn(kit):
    async def main():
        async with kit.world(selection="uniform", selection__uniform__window="5s") as world:
            task = await world.submit(goal=2, over_selection=1.0)
            devices = [world.device() for _ in range(4)]
            operations = []
            for device in devices:
                await device.check_in()
                operations.append(await device.start())
            assert not any(operation.done for operation in operations)
            assert (await world.status(task)).assigned == 0
            world.advance(4.9)
            assert not (await devices[0].poll(operations[0].name)).done
            world.advance(0.2)
            answers = [
                device.answer(await device.poll(operation.name))
                for device, operation in zip(devices, operations, strict=True)
            ]
            kinds = [answer.WhichOneof("result") for answer in answers]
            assert sorted(kinds) == ["rejection_info"] * 2 + ["task_assignment"] * 2
            chosen = []
            for device, answer in zip(devices, answers, strict=True):
                if answer.HasField("task_assignment"):
                    await device.contribute(answer.task_assignment)
                    chosen.append(device)
            assert await world.result(task) == [sum(1 << d.number for d in chosen), 2]

    asyncio.run(main())


def test_who_waits_is_sent_away_when_the_task_ends_or_the_session_expires(kit):
    async def main():
        async with kit.world(
            selection="uniform", selection__uniform__window="1h", session_timeout="60s"
        ) as world:
            task = await world.submit(goal=2)
            ended, expired = world.device(), world.device()
            await ended.check_in()
            first = await ended.start()
            await world.services.tasks.cancel(task)
            await kit.settle()
            assert ended.answer(await ended.poll(first.name)).HasField("rejection_info")
            await world.submit(goal=2)
            await expired.check_in()
            second = await expired.start()
            world.advance(60)
            assert expired.answer(await expired.poll(second.name)).HasField("rejection_info")
            reasons = [event.reason for event in world.recorder.of("Rejected")]
            assert reasons == ["no_task", "expired"]

    asyncio.run(main())


def test_a_cancelled_request_waits_no_longer_and_a_cancelled_answer_is_taken_back(kit):
    async def main():
        async with kit.world(selection="uniform", selection__uniform__window="5s") as world:
            task = await world.submit(goal=1)
            gone, other = world.device(), world.device()
            for device in (gone, other):
                await device.check_in()
            operation = await gone.start()
            second = await other.start()
            await gone.cancel(operation.name)
            await gone.cancel(operation.name)
            cancelled = await gone.poll(operation.name)
            assert cancelled.done
            assert cancelled.error.code == Code.CANCELLED
            world.advance(5)
            assignment = other.answer(await other.poll(second.name)).task_assignment
            assert (await world.status(task)).assigned == 1
            await other.cancel(second.name)
            assert (await world.status(task)).dropped == 1
            assert await kit.code_of(other.start_upload(assignment)) is Code.ABORTED
            world.advance(900 + 3600)
            assert await kit.code_of(gone.poll(operation.name)) is Code.ABORTED
            unknown = gone.cancel("operations/none")
            assert await kit.code_of(unknown) is Code.NOT_FOUND

    asyncio.run(main())


def test_cancelling_after_the_upload_began_changes_nothing(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit()
            device = world.device()
            await device.check_in()
            operation = await device.start()
            assignment = device.answer(operation).task_assignment
            ticket = await device.start_upload(assignment)
            await device.cancel(operation.name)
            await device.upload(ticket)
            await device.submit(assignment, ticket)
            await device.cancel(operation.name)
            assert await world.result(task) == [1, 1]

    asyncio.run(main())


def test_weights_are_honoured(kit):
    async def main():
        async with kit.world() as world:
            await world.submit(name="heavy", goal=1)
            light = await world.submit(name="light", goal=1)
            for weights in ({"heavy": 0.0, "light": 0.0}, {}, {"other": 1.0}):
                assert await world.device().assignment(weights) is None
            device = world.device()
            assignment = await device.assignment({"heavy": 0.0, "light": 0.5})
            assert assignment.task_name == "light"
            await device.contribute(assignment)
            await world.result(light)

    asyncio.run(main())


def test_sessions_are_their_principals_and_no_one_elses(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit()
            mine, thief = world.device(principal="a"), world.device(principal="b")
            await mine.check_in()
            thief.session_id = mine.session_id
            for call in (thief.start, thief.report_eligibility, lambda: thief.ask("sum")):
                assert await kit.code_of(call()) is Code.PERMISSION_DENIED
            assignment = mine.answer(await mine.start()).task_assignment
            report = thief.report(assignment, Code.INTERNAL)
            assert await kit.code_of(report) is Code.PERMISSION_DENIED
            await mine.contribute(assignment)
            await world.result(task)

    asyncio.run(main())


def test_unknown_and_expired_sessions(kit):
    async def main():
        async with kit.world(session_timeout="60s") as world:
            task = await world.submit(goal=2)
            device = world.device()
            device.session_id = "00000000-0000-4000-8000-000000000000"
            assert await kit.code_of(device.start()) is Code.NOT_FOUND
            assert await kit.code_of(device.ask("sum")) is Code.NOT_FOUND
            assert await kit.code_of(device.report_eligibility()) is Code.NOT_FOUND
            late = world.device()
            await late.check_in()
            world.advance(60)
            assert await kit.code_of(late.start()) is Code.ABORTED
            assert await kit.code_of(late.ask("sum")) is Code.ABORTED
            world.advance(3600)
            assert (await world.status(task)).state is TaskState.CLOSING
            assert await kit.code_of(late.start()) is Code.ABORTED
            assert world.services.counts()["sessions"] == 0

    asyncio.run(main())


def test_a_failed_eligibility_evaluation_ends_the_session(kit):
    async def main():
        async with kit.world() as world:
            await world.submit()
            device = world.device()
            await device.check_in()
            await device.report_eligibility(Code.INTERNAL)
            await device.report_eligibility(Code.OK)
            assert await kit.code_of(device.start()) is Code.ABORTED
            other = world.device()
            await other.check_in()
            await other.report_eligibility(Code.OK)
            assert other.answer(await other.start()).HasField("task_assignment")

    asyncio.run(main())


def test_a_plugin_may_refuse_a_device_and_say_when_to_come_back(kit, caplog):
    caplog.set_level(logging.INFO, "fcp.services")

    class Gate:
        @hookimpl
        def fcp_admit_checkin(self, check_in):
            return Refusal("too old", RetryWindow(1000, 2000))

    async def main():
        async with kit.world(extra=[Gate()]) as world:
            await world.submit()
            response = await world.device().check_in()
            assert response.WhichOneof("result") == "rejection_info"
            assert response.retry_window_if_rejected.delay_max.seconds == 2000
            assert world.recorder.of("Rejected")[0].reason == "refused"
            assert not world.recorder.of("CheckedIn")

    asyncio.run(main())
    # What the operator reads says why, and nothing of the device.
    (line,) = [r.getMessage() for r in caplog.records if "turned away" in r.getMessage()]
    assert line.endswith(": a device is turned away: too old")


def test_policies_reach_devices_that_can_evaluate_them_and_only_those(kit):
    async def main():
        async with kit.world(eligibility="minimum_separation") as world:
            await world.submit(goal=3, options={"minimum_separation": {"current_index": 7}})
            able = world.device()
            spec = able.spec(await able.check_in())
            (policy,) = spec.eligibility_policies
            assert policy.min_sep_policy.current_index == 7
            assert list(spec.task_info[0].eligibility_policy_indices) == [0]
            # It did not say what came of it: it is not given what it had to evaluate.
            assert able.answer(await able.start()).HasField("rejection_info")
            assert await world.device().assignment({"sum": 1.0}) is not None
            unable = await world.device(native=False).check_in()
            assert unable.WhichOneof("result") == "rejection_info"

    asyncio.run(main())


def test_without_policies_a_plain_device_has_nothing_to_evaluate(kit):
    async def main():
        async with kit.world() as world:
            await world.submit()
            response = await world.device(native=False).check_in()
            assert response.WhichOneof("result") == "no_eligibility_eval_configured"
            prefix = response.task_assignment_forwarding_info.target_uri_prefix
            assert prefix == kit.url

    asyncio.run(main())
