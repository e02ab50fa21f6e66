"""What uploads hold, and when it is given back."""

import asyncio
from concurrent.futures import Future

import pytest

from fcp_core.aggregation.engine import EngineFactory
from fcp_core.aggregation.local import LocalEngine
from fcp_core.plugins import hookimpl
from fcp_core.protocol.status import Code


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
