"""Devices that take a task and say nothing more: what they cost others, and who is to blame."""

import asyncio
from contextlib import contextmanager

import pytest

from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import AssignmentMode, TaskState
from fcp_core.server.services.eligibility import ADDRESS


@contextmanager
def at(address):
    """Call from an address."""
    token = ADDRESS.set(address)
    try:
        yield
    finally:
        ADDRESS.reset(token)


async def take_all(world, most=50):
    """Take places until there are none; return the devices and what they were given."""
    taken = []
    for _ in range(most):
        device = world.device()
        assignment = await device.assignment()
        if assignment is None:
            break
        taken.append((device, assignment))
    return taken


async def take(device):
    """Return what a device that checks in is given, or None."""
    if not device.multiple:
        return await device.assignment()
    response = await device.check_in()
    if response.WhichOneof("result") == "rejection_info":
        return None
    return next(iter(await device.ask("sum")), None)


def test_one_of_six_is_silent_and_nobody_waits_for_it(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=3)
            silent = world.device()
            assert await silent.assignment() is not None
            devices = [world.device() for _ in range(5)]
            assignments = [await device.assignment() for device in devices]
            at_work = [(d, a) for d, a in zip(devices, assignments, strict=True) if a is not None]
            for device, assignment in at_work:
                await device.contribute(assignment)
            # No time has passed.
            assert (await world.result(task))[1] == 3
            status = await world.status(task)
            assert (status.assigned, status.contributed, status.surplus) == (4, 3, 1)

    asyncio.run(main())


def test_one_of_three_vanishes_and_comes_back(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=3, deadline=60.0)
            devices = [world.device() for _ in range(3)]
            assignments = [await device.assignment() for device in devices]
            for device, assignment in list(zip(devices, assignments, strict=True))[:2]:
                world.advance(0.2)
                await device.contribute(assignment)
            # As soon as it has taken much longer than the others, there is a place.
            assert await devices[2].assignment() is None
            world.advance(2.0)
            status = await world.status(task)
            assert (status.pending, dict(status.silent)) == (1, {"1": 1})
            assert await devices[2].run()
            assert await world.result(task) == [0b111, 3]
            # The place that it had before is no place any more, and it is told nothing bad.
            await devices[2].contribute(assignments[2])
            (closed,) = world.recorder.of("TaskClosed")
            assert closed.message == (
                "4 devices were assigned: 3 contributed, 0 came too late, 0 dropped, 1 silent "
                "(client versions: 1 x 1)"
            )

    asyncio.run(main())


def test_a_device_that_takes_long_is_not_cut_off(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=1)
            slow = world.device()
            assignment = await slow.assignment()
            world.advance(119)
            assert await world.device().assignment() is None
            world.advance(6)
            # Those who were turned away since it was full are no reason to say that nobody came.
            waits_for = (await world.status(task)).waits_for
            assert (
                waits_for == "1 of 1 is missing: the last eligible device checked in 6 seconds ago"
            )
            other = world.device()
            assert await other.assignment() is not None
            world.advance(400)
            await slow.contribute(assignment)
            assert await world.result(task) == [1 << slow.number, 1]

    asyncio.run(main())


@pytest.mark.parametrize("mode", list(AssignmentMode))
def test_who_takes_all_places_and_does_nothing_has_them_once(kit, mode):
    async def main():
        async with kit.world(max_at_work="10") as world:
            task = await world.submit(goal=10, assignment_mode=mode)
            multiple = mode is AssignmentMode.MULTIPLE
            with at("203.0.113.9"):
                prepared = world.device(multiple=multiple)
                await prepared.check_in()
                taken = [await take(world.device(multiple=multiple)) for _ in range(12)]
                assert [given is not None for given in taken] == [True] * 10 + [False] * 2
            world.advance(121)
            # Those places are for others now, and not for the same again, however it asks.
            with at("203.0.113.9"):
                assert await take(world.device(multiple=multiple)) is None
                if multiple:
                    assert await prepared.ask("sum") == []
                else:
                    assert not prepared.answer(await prepared.start()).HasField("task_assignment")
            reasons = {event.reason for event in world.recorder.of("Rejected")}
            assert reasons == {"no_task", "silent"}
            devices = [world.device(multiple=multiple) for _ in range(10)]
            for number, device in enumerate(devices):
                with at(f"198.51.100.{number}"):
                    await device.contribute(await take(device))
            assert (await world.result(task))[1] == 10

    asyncio.run(main())


@pytest.mark.parametrize("mode", list(AssignmentMode))
def test_who_takes_all_places_shares_them_with_others_at_once(kit, mode):
    async def main():
        async with kit.world(max_at_work="10") as world:
            task = await world.submit(goal=10, assignment_mode=mode)
            devices = [world.device(multiple=mode is AssignmentMode.MULTIPLE) for _ in range(21)]
            with at("203.0.113.9"):
                given = [await take(device) for device in devices[:11]]
                assert [each is not None for each in given] == [True] * 10 + [False]
            # No time passes.
            for number, device in enumerate(devices[11:]):
                with at(f"198.51.100.{number}"):
                    await device.contribute(await take(device))
            assert (await world.result(task))[1] == 10
            # They are told nothing bad if they come after all.
            await devices[0].contribute(given[0])

    asyncio.run(main())


def test_a_fleet_behind_one_address_is_not_shut_out(kit):
    async def main():
        async with kit.world(max_silent_per_sender="3") as world:
            with at("203.0.113.9"):
                for _ in range(4):
                    world.devices = 0  # numbers of 64 bits do not go further
                    task = await world.submit(goal=30)
                    silent = [await world.device().assignment() for _ in range(5)]
                    assert None not in silent
                    for _ in range(30):
                        device = world.device()
                        given = await device.assignment()
                        if given is None:
                            world.advance(1.1)  # the silent places are free now
                            given = await device.assignment()
                        world.advance(0.01)
                        await device.contribute(given)
                    assert (await world.result(task))[1] == 30

    asyncio.run(main())


def test_this_machine_and_whoever_lifts_the_limit_have_none(kit):
    async def main():
        for address, option in (("", "10"), ("203.0.113.9", "0")):
            async with kit.world(max_silent_per_sender=option) as world:
                await world.submit(goal=20)
                with at(address):
                    assert len(await take_all(world)) == 24
                    world.advance(121)
                    assert await world.device().assignment() is not None

    asyncio.run(main())


def test_who_waits_is_rejected_once_its_other_places_are_silent(kit, caplog):
    async def main():
        async with kit.world(max_silent_per_sender="2", selection__uniform__window="300s") as world:
            await world.submit(goal=2, name="first", over_selection=1.0)
            with at("203.0.113.9"):
                for _ in range(2):
                    await world.device().assignment()
                await world.submit(goal=2, name="second", selection="uniform")
                waits = world.device()
                await waits.check_in()
                operation = await waits.start()
            with at("198.51.100.1"):
                other = world.device()
                await other.check_in()
                fine = await other.start()
            world.advance(121)
            assert waits.answer(await waits.poll(operation.name)).HasField("rejection_info")
            with at("203.0.113.9"):
                response = await world.device().check_in()
                assert response.HasField("rejection_info")
            assert [m for m in caplog.messages if "max_silent_per_sender" in m] == [
                "a device is turned away: phones/all: its sender holds too many silent places "
                "(max_silent_per_sender)"
            ]
            # The other one was given a place that is free now.
            assert other.answer(await other.poll(fine.name)).HasField("task_assignment")

    asyncio.run(main())


def test_one_key_counts_whatever_the_address(kit):
    async def main():
        async with kit.world(max_silent_per_sender="3") as world:
            await world.submit(goal=3)
            for number in range(3):
                with at(f"203.0.113.{number}"):
                    assert await world.device(principal="fleet").assignment() is not None
            world.advance(121)
            with at("203.0.113.99"):
                assert await world.device(principal="fleet").assignment() is None
                assert await world.device(principal="another").assignment() is not None

    asyncio.run(main())


def query_plan():
    plan = plan_pb2.ClientOnlyPlan()
    router = plan.phase.federated_example_query
    router.aggregations["x"].federated_compute_checkpoint_aggregation.SetInParent()
    return plan.SerializeToString()


def test_silence_that_is_usual_is_noticed_soon_and_counted_by_version(kit):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=2, plan=query_plan())
            silent = 0
            for _ in range(5):
                # Most drop their results without a word; their places are soon free, all of them.
                taken = len(await take_all(world))
                assert taken >= 3
                silent += taken
                world.advance(31)
            status = await world.status(task)
            assert dict(status.silent) == {"1": silent}
            for _ in range(2):
                assert await world.device().run()
            assert (await world.result(task))[1] == 2
            dropped = world.recorder.of("Dropped")
            assert {(event.phase, event.client_version) for event in dropped} == {("silent", "1")}

    asyncio.run(main())


def test_devices_that_announce_an_upload_and_send_nothing_hold_no_room(kit):
    async def main():
        async with kit.world(max_in_flight="1KiB") as world:
            task = await world.submit(goal=3)
            names = []
            for device, assignment in await take_all(world):
                ticket = await device.start_upload(assignment)
                names.append(ticket.resource.resource_name)
                assert await world.services.media.begin_upload(names[-1])
            # No memory at all, and their places no longer than others need.
            assert world.services.media.held == 0
            assert await world.device().assignment() is None
            world.advance(121)
            status = await world.status(task)
            assert (status.pending, status.silent) == (len(names), {})
            for _ in range(3):
                assert await world.device().run()
            assert (await world.result(task))[1] == 3
            # They come too late, and did nothing wrong.
            for name in names:
                await world.services.media.finish_upload(name, world.device().body())

    asyncio.run(main())


def test_a_computation_that_fails_everywhere_ends_its_task(kit, caplog):
    async def main():
        async with kit.world() as world:
            task = await world.submit(goal=20)
            for number in range(10):
                assert (await world.status(task)).state is TaskState.OPEN
                device = world.device()
                with at(f"198.51.100.{number // 3}"):
                    await device.report(await device.assignment(), Code.INTERNAL)
            with pytest.raises(
                StatusError, match="its first 10 devices all failed alike"
            ) as caught:
                await world.result(task)
            assert caught.value.code is Code.INTERNAL
            assert "10 x computation INTERNAL" in caught.value.message
            (logged,) = [each for each in caplog.records if each.levelname == "WARNING"]
            assert "its first 10 devices all failed alike" in logged.getMessage()

            # Nobody alone can do that, and an operator may not want it.
            attacked = await world.submit(goal=20)
            with at("203.0.113.9"):
                for _ in range(20):
                    device = world.device()
                    await device.report(await device.assignment(), Code.INTERNAL)
            assert (await world.status(attacked)).state is TaskState.OPEN
        async with kit.world(alike_failures="0") as world:
            task = await world.submit(goal=20)
            for _ in range(20):
                device = world.device()
                await device.report(await device.assignment(), Code.INTERNAL)
            assert (await world.status(task)).state is TaskState.OPEN

    asyncio.run(main())
