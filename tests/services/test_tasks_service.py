"""Tasks as programs and operators handle them."""

import asyncio
import gc

import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import AssignmentMode, TaskState
from fcp_core.storage.records import TaskRecord
from tests.services.worlds import stored


def test_cancelling_a_task_ends_it_for_everybody(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=2)
            device = world.device()
            assignment = await device.assignment()
            waiting = asyncio.create_task(kit.code_of(world.result(task)))
            await kit.settle()
            await world.services.tasks.cancel(task, "the operator said so")
            assert await waiting is Code.CANCELLED
            status = await world.status(task)
            assert status.state is TaskState.CANCELLED
            assert status.error == (Code.CANCELLED, "the operator said so")
            await device.contribute(assignment)
            assert (await world.status(task)).surplus == 1
            await world.services.tasks.cancel(task)
            assert (await world.status(task)).error == (Code.CANCELLED, "the operator said so")

    asyncio.run(main())


@pytest.mark.parametrize("late", ["accept", "refuse"])
def test_a_forgotten_task_is_gone_but_its_late_devices_are_known(kit, late):
    wanted = Code.OK if late == "accept" else Code.ABORTED

    async def main():
        async with kit.world(late_contributions=late) as world:
            task = await world.submit(goal=1, over_selection=2)
            device, slow = world.device(), world.device()
            assignment, late_assignment = await device.assignment(), await slow.assignment()
            assert await kit.code_of(world.services.tasks.forget(task)) is Code.FAILED_PRECONDITION
            await device.contribute(assignment)
            await world.result(task)
            await world.services.tasks.forget(task)
            for call in (world.status, world.result, world.services.tasks.forget):
                assert await kit.code_of(call(task)) is Code.NOT_FOUND
            world.advance(601)
            for _ in range(2):
                assert await kit.code_of(slow.start_upload(late_assignment)) is wanted
            forged = slow.start_upload(late_assignment, "forged")
            assert await kit.code_of(forged) is Code.NOT_FOUND
            if late == "accept":
                ticket = await slow.start_upload(late_assignment)
                await slow.upload(ticket)
                await slow.submit(late_assignment, ticket)
                wrong = slow.submit(late_assignment, ticket, "another")
                assert await kit.code_of(wrong) is Code.INVALID_ARGUMENT
                slow.principal = "somebody else"
                assert await kit.code_of(slow.upload(ticket)) is Code.PERMISSION_DENIED

    asyncio.run(main())


def test_a_task_that_ended_is_forgotten_after_its_retention(kit):
    async def main():
        async with kit.world(task_retention="2h") as world:
            task = await world.submit(goal=1, over_selection=2)
            device, late = world.device(), world.device()
            assignment, late_assignment = await device.assignment(), await late.assignment()
            await device.contribute(assignment)
            await world.result(task)
            world.advance(7199)
            await kit.settle()
            assert await world.result(task) == [1, 1]
            world.advance(1)
            await kit.settle()
            assert await kit.code_of(world.result(task)) is Code.NOT_FOUND
            # A token says what it is for, even if nobody else knows of it any more.
            assert (await late.start_upload(late_assignment)).client_token
            assert world.services.tasks.next_tick() is None

    asyncio.run(main())


def test_a_task_that_cannot_run_is_refused_before_it_is_offered(kit):
    async def main():
        async with kit.world() as world:
            unknown = Intrinsic(
                "federated_nonsense",
                (TensorSpec("a", DataType.INT64, ()),),
                (TensorSpec("b", DataType.INT64, ()),),
            )
            bad = configuration_to_proto([unknown]).SerializeToString()
            for kwargs, code, hint in (
                ({"population": "no/such"}, Code.NOT_FOUND, "no/such"),
                ({"name": "a b"}, Code.INVALID_ARGUMENT, "name"),
                ({"goal": 0}, Code.INVALID_ARGUMENT, "goal_count"),
                ({"aggregation": bad}, Code.INVALID_ARGUMENT, "federated_nonsense"),
                ({"aggregation": b"\xff"}, Code.INVALID_ARGUMENT, "(?i)configuration"),
                ({"selection": "fifi"}, Code.INVALID_ARGUMENT, "fifo"),
                ({"protocol": "simpel"}, Code.INVALID_ARGUMENT, "simple"),
                ({"options": {"uniform": {"window": 1}}}, Code.INVALID_ARGUMENT, "uniform"),
                ({"deadline": float("nan")}, Code.INVALID_ARGUMENT, "deadline"),
            ):
                with pytest.raises(StatusError, match=hint) as caught:
                    await world.submit(**kwargs)
                assert caught.value.code is code
            assert await world.services.tasks.list() == []
            assert not world.recorder.of("TaskOpened")

    asyncio.run(main())


def test_one_name_has_one_mode_at_a_time(kit):
    async def main():
        async with kit.world() as world:
            await world.submit(name="one")
            many = world.submit(name="one", assignment_mode=AssignmentMode.MULTIPLE)
            assert await kit.code_of(many) is Code.INVALID_ARGUMENT

    asyncio.run(main())


def test_populations_are_apart_and_can_be_added(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit()
            assert await kit.code_of(world.device(population="b").check_in()) is Code.NOT_FOUND
            world.services.add_population("b")
            stranger = world.device(population="b")
            assert (await stranger.check_in()).WhichOneof("result") == "rejection_info"
            device = world.device()
            await device.check_in()
            stranger.session_id = device.session_id
            assert await kit.code_of(stranger.start()) is Code.NOT_FOUND
            await device.contribute(device.answer(await device.start()).task_assignment)
            await world.result(task)

    asyncio.run(main())


def test_without_given_populations_tasks_bring_theirs(kit):
    async def main():
        async with kit.world(populations=None) as world:
            device = world.device()
            assert await kit.code_of(device.check_in()) is Code.NOT_FOUND
            task = await world.submit()
            await device.run()
            assert await world.result(task) == [1, 1]

    asyncio.run(main())


def test_the_result_comes_in_the_format_that_was_asked_for(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(result_format="federated_compute")
            await world.device().run()
            data = await world.services.tasks.wait(task)
            assert data.startswith(b"FCv1")
            assert await world.result(task) == [1, 1]

    asyncio.run(main())


def test_a_plan_by_privacy_id_is_refused_when_it_is_submitted(kit):
    """Its devices would bring several contributions with one token; all but one would be lost."""

    async def main():
        plan = plan_pb2.ClientOnlyPlan()
        query = plan.phase.example_query_spec.example_queries.add()
        query.example_selector.collection_uri = "app:/x"
        async with kit.world() as world:
            assert await world.submit(plan=plan.SerializeToString())
            plan.phase.example_query_spec.privacy_id_config.SetInParent()
            with pytest.raises(StatusError, match="privacy_id_config") as caught:
                await world.submit(plan=plan.SerializeToString())
            assert caught.value.code is Code.INVALID_ARGUMENT

    asyncio.run(main())


def test_a_result_is_kept_by_the_storage_only(kit):
    """A large one would be in memory for as long as late devices are answered."""

    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=1)
            runner = world.services.tasks._running[task]
            waiting = [asyncio.create_task(world.result(task)) for _ in range(2)]
            gives_up = asyncio.create_task(world.result(task))
            device = world.device()
            assignment = await device.assignment()
            gives_up.cancel()
            await device.contribute(assignment)
            first, second = await asyncio.gather(*waiting)
            assert first == second == await world.result(task)
            assert not [kept for kept in gc.get_referents(runner.__dict__) if kept == first]

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("when", ["after", "with the last write"])
def test_a_task_that_was_left_is_ended_by_who_has_it(kit, sqlite, monkeypatch, when):
    """Seen in the simulation: its end came when another member had the population."""

    async def leave():
        async with sqlite() as world:
            task = await world.submit(goal=2, durability="contribution")
            (left,) = world.services.tasks._running.values()
            flush = left._fold.flush

            async def flush_and_end():
                await flush()
                left.cancel(Code.CANCELLED, "the operator said so")

            if when != "after":
                monkeypatch.setattr(left._fold, "flush", flush_and_end)
            await world.services.tasks.leave(left.spec.population)
            world.services._populations.remove(left.spec.population)
            if when == "after":
                left.cancel(Code.CANCELLED, "the operator said so")
            await kit.settle()
            (record,) = await stored(world, TaskRecord)
            assert record.task_id == task
            assert record.state == ("open" if when == "after" else "cancelled")
        monkeypatch.undo()

    async def main():
        faults = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        await leave()
        gc.collect()  # so that what failed, and nobody asked for, is told
        assert faults == []

    asyncio.run(main())
