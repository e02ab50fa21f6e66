"""Devices that wait, ask again or give up, and those that nobody asks."""

import asyncio
import logging

from fcp_core.plugins import hookimpl
from fcp_core.protocol.status import Code
from fcp_core.rounds.policies import Refusal, RetryWindow
from fcp_core.rounds.tasks import TaskState


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
            # It may not have heard of its task: no fault of its own.
            assert device.answer(await device.start()).HasField("rejection_info")

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
