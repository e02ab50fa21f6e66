"""What devices get wrong, repeat or lose, and that the round does not mind."""

import asyncio

import pytest

from fcp_core.protocol.status import Code, StatusError
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
