"""Whole rounds, in process, without HTTP."""

import asyncio
import gzip

import numpy as np
import pytest

from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import task_assignments_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import SystemClock
from fcp_core.rounds.tasks import AssignmentMode, TaskState


def test_a_round_sums_what_its_devices_bring(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=5)
            devices = [world.device() for _ in range(5)]
            assert all(await asyncio.gather(*(device.run() for device in devices)))
            assert await world.result(task) == [0b11111, 5]
            status = await world.status(task)
            assert status.state is TaskState.COMPLETED
            assert (status.assigned, status.contributed, status.pending, status.dropped) == (
                5,
                5,
                0,
                0,
            )
            assert await world.result(task) == [0b11111, 5]
            kinds = [type(event).__name__ for event in world.recorder.events]
            assert kinds[0] == "TaskOpened"
            assert kinds[-1] == "TaskClosed"
            for kind in ("CheckedIn", "Assigned", "Contributed"):
                assert kinds.count(kind) == 5
            assert world.recorder.of("Contributed")[0].size == len(devices[0].body())

    asyncio.run(main())


def test_the_result_comes_without_a_tick_and_by_itself(kit):
    async def main():
        async with kit.world(clock=SystemClock()) as world:
            task = await world.submit(goal=1)
            waiting = asyncio.create_task(world.result(task))
            await world.device().run()
            assert await waiting == [1, 1]

    asyncio.run(main())


def test_the_assignment_says_where_everything_is(kit):
    async def main():
        async with kit.world() as world:
            await world.submit(slices={"served": {0: b"zero", 7: b"seven"}})
            device = world.device()
            assignment = await device.assignment()
            assert assignment.session_id == device.session_id
            assert assignment.task_name == "sum"
            assert assignment.WhichOneof("aggregation_type") == "aggregation_info"
            assert assignment.aggregation_data_forwarding_info.target_uri_prefix == kit.url
            wanted = {"plan": (b"plan", "application/x-protobuf+gzip")}
            wanted["checkpoint"] = (b"checkpoint", "application/octet-stream+gzip")
            uris = {"plan": assignment.plan.uri, "checkpoint": assignment.init_checkpoint.uri}
            for key, data in ((0, b"zero"), (7, b"seven")):
                template = assignment.federated_select_uri_info.uri_template
                uri = template.replace("{served_at_id}", "served")
                uris[str(key)] = uri.replace("{key_base10}", str(key))
                wanted[str(key)] = (data, "application/octet-stream+gzip")
            for name, (data, content_type) in wanted.items():
                prefix = kit.url + "data/"
                assert uris[name].startswith(prefix)
                download = await world.services.media.download(uris[name][len(prefix) :])
                assert gzip.decompress(download.data) == data
                assert download.content_type == content_type
            # A plan may be cached, since its id names the content; a checkpoint is used once.
            assert assignment.plan.client_cache_id
            assert not assignment.init_checkpoint.client_cache_id
            await device.contribute(assignment)
            await world.result((await world.services.tasks.list())[0].task_id)
            name = uris["plan"][len(prefix) :]
            assert (
                await kit.code_of(world.services.media.download(name)) is Code.FAILED_PRECONDITION
            )

    asyncio.run(main())


def test_an_empty_checkpoint_is_an_empty_resource(kit):
    async def main():
        async with kit.world() as world:
            await world.submit(checkpoint=b"")
            assignment = await world.device().assignment()
            assert assignment.init_checkpoint.WhichOneof("resource") is None
            assert not assignment.HasField("federated_select_uri_info")

    asyncio.run(main())


def test_check_in_without_a_task_is_rejected_with_the_configured_windows(kit):
    async def main():
        async with kit.world(retry_min="3s", retry_max="4s") as world:
            response = await world.device().check_in()
            assert response.WhichOneof("result") == "rejection_info"
            assert response.retry_window_if_rejected.delay_min.seconds == 3
            assert response.retry_window_if_rejected.delay_max.seconds == 4
            assert [e.reason for e in world.recorder.of("Rejected")] == ["no_task"]

    asyncio.run(main())


def test_a_device_that_comes_when_the_round_is_full_is_rejected_at_once(kit):
    async def main():
        async with kit.world() as world:
            await world.submit(goal=1)
            assert await world.device().assignment() is not None
            assert await world.device().assignment() is None

    asyncio.run(main())


def test_two_tasks_of_one_name_fill_one_after_the_other(kit):
    async def main():
        async with kit.world(over_selection="1") as world:
            first, second = await world.submit(goal=2), await world.submit(goal=2)
            devices = [world.device() for _ in range(4)]
            assignments = [await device.assignment() for device in devices]
            assert assignments[0].aggregation_id == assignments[1].aggregation_id
            assert assignments[2].aggregation_id == assignments[3].aggregation_id
            for device, assignment in reversed(list(zip(devices, assignments, strict=True))):
                await device.contribute(assignment)
            assert await world.result(first) == [0b0011, 2]
            assert await world.result(second) == [0b1100, 2]

    asyncio.run(main())


def test_multiple_assignment_gives_the_tasks_that_are_asked_for(kit):
    async def main():
        async with kit.world() as world:
            many = {"assignment_mode": AssignmentMode.MULTIPLE}
            one = await world.submit(name="one", goal=2, **many)
            two = await world.submit(name="two", goal=2, **many)
            single = await world.submit(name="single", goal=2)
            devices = [world.device(multiple=True) for _ in range(2)]
            for device in devices:
                spec = device.spec(await device.check_in())
                modes = {task.task_name: task.task_assignment_mode for task in spec.task_info}
                assert modes == {"one": 2, "two": 2, "single": 1}
                assert not spec.eligibility_policies
                assignments = await device.ask("two", "one", "unknown", "single")
                assert [a.task_name for a in assignments] == ["two", "one"]
                assert len({a.aggregation_id for a in assignments}) == 2
                then = device.answer(await device.start()).task_assignment
                assert then.task_name == "single"
                for assignment in [*assignments, then]:
                    await device.contribute(assignment)
            for task in (one, two, single):
                assert await world.result(task) == [0b11, 2]

    asyncio.run(main())


def test_a_repeated_multiple_request_brings_the_same_answer_and_no_second_assignment(kit):
    async def main():
        async with kit.world() as world:
            many = {"assignment_mode": AssignmentMode.MULTIPLE}
            task = await world.submit(name="one", goal=2, over_selection=2.0, **many)
            device = world.device(multiple=True)
            await device.check_in()
            (lost,) = await device.ask("one")
            (again,) = await device.ask("one")
            assert (await world.status(task)).assigned == 1
            assert again == lost
            await device.contribute(again)
            assert await device.ask("one") == [lost]
            # Another task of the name is for another session.
            newer = await world.submit(name="one", goal=2, **many)
            await world.services.tasks.cancel(task)
            await kit.settle()
            assert await device.ask("one") == []
            assert (await world.status(newer)).assigned == 0

    asyncio.run(main())


@pytest.mark.parametrize("late", ["accept", "refuse"])
def test_over_selection_takes_the_first_and_counts_the_rest_as_surplus(kit, late):
    wanted = Code.OK if late == "accept" else Code.ABORTED

    async def main():
        async with kit.world(late_contributions=late) as world:
            task = await world.submit(goal=2, over_selection=2.0)
            devices = [world.device() for _ in range(5)]
            assignments = [await device.assignment() for device in devices]
            assert [a is not None for a in assignments] == [True] * 4 + [False]
            tickets = [
                await d.start_upload(a) for d, a in zip(devices[:3], assignments, strict=False)
            ]
            await devices[2].upload(tickets[2])
            for index in (0, 1):
                await devices[index].upload(tickets[index])
                await devices[index].submit(assignments[index], tickets[index])
            assert await world.result(task) == [0b11, 2]
            for _ in range(2):
                submitted = devices[2].submit(assignments[2], tickets[2])
                assert await kit.code_of(submitted) is wanted
                assert await kit.code_of(devices[3].contribute(assignments[3])) is wanted
            assert world.services.media.held == 0
            status = await world.status(task)
            assert (status.contributed, status.dropped, status.pending) == (2, 0, 0)
            assert status.surplus == len(world.recorder.of("Surplus")) == 2

    asyncio.run(main())


def test_concurrent_submissions_beyond_the_goal_are_not_in_the_result(kit):
    async def main():
        async with kit.world(late_contributions="refuse") as world:
            task = await world.submit(goal=3, over_selection=3.0)
            devices = [world.device() for _ in range(9)]
            assignments = [await device.assignment() for device in devices]
            tickets = []
            for device, assignment in zip(devices, assignments, strict=True):
                tickets.append(await device.start_upload(assignment))
                await device.upload(tickets[-1])
            codes = await asyncio.gather(
                *(
                    kit.code_of(device.submit(assignment, ticket))
                    for device, assignment, ticket in zip(
                        devices, assignments, tickets, strict=True
                    )
                )
            )
            accepted = [d for d, code in zip(devices, codes, strict=True) if code is Code.OK]
            assert len(accepted) == 3
            assert set(codes) == {Code.OK, Code.ABORTED}
            assert await world.result(task) == [sum(1 << d.number for d in accepted), 3]

    asyncio.run(main())


def test_a_bad_contribution_is_told_why_and_leaves_the_round_as_it_was(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=1)
            wrong = [
                (b"no checkpoint", "checkpoint"),
                (write_checkpoint({"other": np.array([1, 2])}, "tf_v1"), "update/0"),
                (write_checkpoint({kit.input: np.array([1.0, 2.0])}, "tf_v1"), "update/0"),
                (write_checkpoint({kit.input: np.array([1, 2, 3])}, "tf_v1"), "update/0"),
                (b"", "empty"),
            ]
            for body, hint in wrong:
                device = world.device()
                assignment = await device.assignment()
                with pytest.raises(StatusError, match=hint) as caught:
                    await device.contribute(assignment, body)
                assert caught.value.code is Code.INVALID_ARGUMENT
            status = await world.status(task)
            assert (status.state, status.dropped) == (TaskState.OPEN, len(wrong))
            good = world.device()
            await good.run()
            assert await world.result(task) == [1 << good.number, 1]

    asyncio.run(main())


def test_a_failed_computation_makes_room_for_another_device(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=1)
            first = world.device()
            assignment = await first.assignment()
            assert await world.device().assignment() is None
            await first.report(assignment, Code.INTERNAL)
            await first.report(assignment, Code.INTERNAL)
            second = world.device()
            await second.run()
            assert await world.result(task) == [1 << second.number, 1]
            assert (await world.status(task)).dropped == 1
            assert await kit.code_of(first.start_upload(assignment)) is Code.ABORTED

    asyncio.run(main())


def test_a_report_of_success_may_come_before_or_after_everything_else(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=1)
            device = world.device()
            assignment = await device.assignment()
            await device.report(assignment)
            ticket = await device.start_upload(assignment)
            await device.upload(ticket)
            await device.submit(assignment, ticket)
            await device.report(assignment)
            await world.result(task)
            await device.report(assignment)
            assert (await world.status(task)).contributed == 1

    asyncio.run(main())


def test_a_round_whose_devices_all_fail_ends_at_its_deadline_and_says_so(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=3, minimum_count=2, deadline=100)
            good = world.device()
            await good.run()
            for _ in range(4):
                device = world.device()
                await device.report(await device.assignment(), Code.INTERNAL)
            silent = world.device()
            await silent.assignment()
            world.advance(99.9)
            assert (await world.status(task)).state is TaskState.OPEN
            world.advance(0.1)
            with pytest.raises(StatusError) as caught:
                await world.result(task)
            assert caught.value.code is Code.DEADLINE_EXCEEDED
            message = caught.value.message
            assert "1 of 2 contributions" in message
            assert message.endswith(
                "; 6 devices were assigned: 1 contributed, 0 came too late, 4 dropped (4 x "
                "computation INTERNAL), 1 silent (client versions: 1 x 1)"
            )
            status = await world.status(task)
            assert status.state is TaskState.FAILED
            assert status.error == (Code.DEADLINE_EXCEEDED, message)
            assert await silent.services.tasks.list() == [status]

    asyncio.run(main())


def test_the_deadline_with_enough_contributions_completes_the_round(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=5, minimum_count=2, deadline=100)
            for _ in range(2):
                await world.device().run()
            world.advance(100)
            assert await world.result(task) == [0b11, 2]

    asyncio.run(main())


def test_the_server_keeps_the_deadline_by_itself(kit):
    async def main():
        async with kit.world(clock=SystemClock()) as world:
            task = await world.submit(deadline=0.05)
            assert await kit.code_of(world.result(task)) is Code.DEADLINE_EXCEEDED

    asyncio.run(main())


def test_a_silent_device_gives_its_place_back_after_the_assignment_timeout(kit):
    async def main():
        async with kit.world(assignment_timeout="30s") as world:
            task = await world.submit(goal=1)
            silent = world.device()
            assignment = await silent.assignment()
            ticket = await silent.start_upload(assignment)
            world.advance(30)
            dropped = world.recorder.of("Dropped")
            assert [(d.phase, d.code) for d in dropped] == [
                ("assignment_timeout", Code.DEADLINE_EXCEEDED)
            ]
            assert await kit.code_of(silent.upload(ticket)) is Code.ABORTED
            assert await kit.code_of(silent.submit(assignment, ticket)) is Code.ABORTED
            other = world.device()
            await other.run()
            assert await world.result(task) == [1 << other.number, 1]

    asyncio.run(main())


def test_operations_of_every_kind_carry_what_devices_need(kit):
    async def main():
        async with kit.world(polling_interval="250ms") as world:
            await world.submit()
            device = world.device()
            await device.check_in()
            operation = await device.start()
            assert operation.name.startswith("operations/")
            metadata = task_assignments_pb2.StartTaskAssignmentMetadata()
            assert operation.metadata.Unpack(metadata)
            assert metadata.polling_interval.nanos == 250_000_000
            assert await device.poll(operation.name) == operation
            assert await device.poll(operation.name) == operation
            missing = device.poll("operations/00000000-0000-4000-8000-000000000000")
            assert await kit.code_of(missing) is Code.NOT_FOUND

    asyncio.run(main())
