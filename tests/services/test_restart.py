"""A server that is started again on the same storage."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.protocol import routes
from fcp_core.protocol.status import Code
from fcp_core.rounds.machine import ManualClock
from fcp_core.rounds.policies import SelectionPolicyFactory
from fcp_core.rounds.tasks import AssignmentMode, TaskState
from fcp_core.storage.records import BlobRecord
from fcp_core.testing import masked_sum
from fcp_plugins.selection import FifoPolicy
from tests.services.faulty_protocols import start


def test_a_task_of_durability_round_begins_again_with_nothing(kit, sqlite):
    async def main():
        async with sqlite(durability="round") as world:
            task = await world.submit(
                goal=2, slices={"s/1": {3: b"three"}}, options={"simple": {}}, over_selection=1.5
            )
            await world.device().run()
            before = await world.status(task)
            assert (before.contributed, before.durability) == (1, "round")
            waiting = asyncio.create_task(kit.code_of(world.services.tasks.wait(task)))
            await kit.settle()
        assert await waiting is Code.UNAVAILABLE
        # Whoever comes later hears the same, at once.
        late = kit.code_of(world.services.tasks.wait(task))
        assert await asyncio.wait_for(late, 60) is Code.UNAVAILABLE
        async with sqlite() as world:
            status = await world.status(task)
            assert (status.state, status.contributed) == (TaskState.OPEN, 0)
            assert (status.goal_count, status.created) == (2, before.created)
            devices = [world.device() for _ in range(2)]
            assert await asyncio.gather(*(device.run() for device in devices)) == [True, True]
            assert await world.result(task) == [0b11, 2]

    asyncio.run(main())


def test_a_finished_task_keeps_its_result_and_a_failed_one_its_reason(sqlite, kit):
    async def main():
        async with sqlite() as world:
            done = await world.submit(goal=1)
            await world.device().run()
            await world.result(done)
            cancelled = await world.submit(goal=1)
            await world.services.tasks.cancel(cancelled, "enough")
            await kit.settle()
            await kit.code_of(world.result(cancelled))
            before = list(await world.services.tasks.list())
        async with sqlite() as world:
            assert list(await world.services.tasks.list()) == before
            assert await world.result(done) == [1, 1]
            assert await kit.code_of(world.result(cancelled)) is Code.CANCELLED
            await world.services.tasks.forget(done)
        async with sqlite() as world:
            assert [s.task_id for s in await world.services.tasks.list()] == [cancelled]

    asyncio.run(main())


def test_only_the_result_of_a_finished_task_stays_in_the_storage(sqlite, kit):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=1, slices={"s": {0: b"x"}})
            await world.device().run()
            await world.result(task)
            names = await world.services._storage.transact(
                lambda tx: [blob.name for blob in tx.select(BlobRecord)]
            )
            assert names == [f"{task}/result"]

    asyncio.run(main())


def test_devices_go_on_after_a_restart_or_are_rejected_but_never_sent_away(sqlite, kit):
    async def main():
        async with sqlite(selection="uniform", selection__uniform__window="1h") as world:
            await world.submit(goal=9)
            many = await world.submit(name="many", goal=3, assignment_mode=AssignmentMode.MULTIPLE)
            waiting = world.device()
            await waiting.check_in()
            operation = await waiting.start()
            started, uploaded, fresh = (world.device(multiple=True) for _ in range(3))
            held = {}
            for device in (started, uploaded, fresh):
                await device.check_in()
                (held[device],) = await device.ask("many")
            tickets = {
                device: await device.start_upload(held[device]) for device in (started, uploaded)
            }
            await uploaded.upload(tickets[uploaded])
            assert (await world.status(many)).pending == 3
        async with sqlite() as world:
            for device in (waiting, started, uploaded, fresh):
                device.services = world.services
            # What was only in memory is lost: those devices come back in the window they have.
            for answer in (await waiting.poll(operation.name), await waiting.start()):
                assert waiting.answer(answer).HasField("rejection_info")
            await waiting.cancel(operation.name)
            await waiting.report_eligibility()
            assert await fresh.ask("many") == []
            # It cannot help that its upload is lost: a refusal would send it away for hours.
            await uploaded.submit(held[uploaded], tickets[uploaded])
            guess = fresh.start_upload(held[fresh], "guess")
            assert await kit.code_of(guess) is Code.UNAUTHENTICATED
            assert await kit.code_of(fresh.poll("operations/unknown")) is Code.NOT_FOUND
            # A token is good all the same: the device contributes with what it holds.
            await fresh.report(held[fresh])
            ticket = await fresh.start_upload(held[fresh])
            await fresh.upload(ticket)
            await fresh.submit(held[fresh], ticket)
            assert await started.start_upload(held[started]) == tickets[started]
            await started.upload(tickets[started])
            await started.submit(held[started], tickets[started])
            # The one whose upload is lost has left, and its place is free.
            assert await uploaded.start_upload(held[uploaded]) == tickets[uploaded]
            assert (await world.status(many)).surplus == 1
            other = world.device(multiple=True)
            await other.check_in()
            (given,) = await other.ask("many")
            await other.contribute(given)
            numbers = [started.number, other.number, fresh.number]
            assert await world.result(many) == [sum(1 << number for number in numbers), 3]

    asyncio.run(main())


@pytest.mark.parametrize("late", ["accept", "refuse"])
def test_a_token_of_before_the_restart_finds_no_place_where_there_is_none(sqlite, kit, late):
    wanted = Code.OK if late == "accept" else Code.ABORTED

    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=1, late_contributions=late)
            before = world.device()
            assignment = await before.assignment()
        async with sqlite() as world:
            before.services = world.services
            other = world.device()
            given = await other.assignment()

            async def go_on():
                ticket = await before.start_upload(assignment)
                await before.upload(ticket)
                await before.submit(assignment, ticket)

            for _ in range(2):
                assert await kit.code_of(go_on()) is wanted
            assert (await world.status(task)).contributed == 0
            await other.contribute(given)
            assert await kit.code_of(go_on()) is wanted
            assert await world.result(task) == [1 << other.number, 1]
            assert len(world.recorder.of("Surplus")) == (late == "accept")

    asyncio.run(main())


def test_a_token_of_before_the_restart_that_comes_after_the_end_is_surplus(sqlite):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=1)
            before = world.device()
            assignment = await before.assignment()
        async with sqlite() as world:
            before.services, other = world.services, world.device()
            await other.contribute(await other.assignment())
            assert await world.result(task) == [1 << other.number, 1]
            assert (await world.status(task)).surplus == 0
            for _ in range(2):
                await before.contribute(assignment)
            assert (await world.status(task)).surplus == 1

    asyncio.run(main())


def test_who_came_too_late_stays_counted_though_nothing_was_committed(sqlite):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=1)
            before = world.device()
            assignment = await before.assignment()
        async with sqlite() as world:
            before.services = world.services
            await world.device().assignment()
            await before.contribute(assignment)
            assert (await world.status(task)).surplus == 1
        async with sqlite() as world:
            status = await world.status(task)
            assert (status.assigned, status.surplus, status.contributed) == (1, 1, 0)

    asyncio.run(main())


def test_a_token_of_before_the_restart_keeps_to_the_cap_of_the_population(sqlite, kit):
    async def main():
        async with sqlite() as world:
            tasks = [await world.submit(goal=2, name=name) for name in "ab"]
            before = [world.device() for _ in range(4)]
            held = [await device.assignment() for device in before]
        async with sqlite(max_at_work=2) as world:
            for device in before:
                device.services = world.services
            codes = [
                await kit.code_of(device.start_upload(assignment))
                for device, assignment in zip(before, held, strict=True)
            ]
            assert codes == [Code.OK] * 4
            found = [await world.status(task) for task in tasks]
            assert sum(status.pending for status in found) == 2
            assert sum(status.surplus for status in found) == 2

    asyncio.run(main())


def test_what_a_device_was_to_fetch_is_where_it_was(sqlite, kit):
    async def main():
        async with sqlite() as world:
            await world.submit(goal=1, slices={"s": {3: b"three"}})
            held = await world.device().assignment()
        async with sqlite() as world:
            template = held.federated_select_uri_info.uri_template
            slice_ = template.replace("{served_at_id}", "s").replace("{key_base10}", "3")
            for address in (held.plan.uri, held.init_checkpoint.uri, slice_):
                assert await world.services.media.download(address.partition("/data/")[2])

    asyncio.run(main())


def test_a_report_of_before_the_restart_frees_the_place_of_the_device(sqlite, kit):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=1)
            before = world.device(principal="me")
            held = await before.assignment()
        async with sqlite() as world:
            before.services = world.services
            await before.start_upload(held)
            before.principal = "you"
            assert await kit.code_of(before.report(held, Code.INTERNAL)) is Code.PERMISSION_DENIED
            assert (await world.status(task)).pending == 1
            before.principal = "me"
            await before.report(held, Code.INTERNAL)
            assert (await world.status(task)).pending == 0
            await world.device().run()
            assert await world.result(task) == [1, 1]

    asyncio.run(main())


def test_a_storage_of_before_with_its_sessions_and_tokens_opens(sqlite, kit, tmp_path):
    """Version 0.1 wrote records of sessions and tokens, which mean nothing any more."""

    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=1)
        file = tmp_path / "fcp.sqlite"
        with closing(sqlite3.connect(file)) as database, database:
            for kind in ("device_session", "token", "partial"):
                database.execute("INSERT INTO records VALUES (?, 'x', x'80')", (kind,))
                database.execute("INSERT INTO entries VALUES (?, 'state', 'x', 'x')", (kind,))
            database.execute("PRAGMA user_version = 1")
        async with sqlite() as world:
            await world.device().run()
            assert await world.result(task) == [1, 1]
        with closing(sqlite3.connect(file)) as database:
            kinds = {kind for (kind,) in database.execute("SELECT kind FROM records")}
            assert kinds == {"task", "blob"}
            assert database.execute("SELECT * FROM entries WHERE kind = 'token'").fetchall() == []

    asyncio.run(main())


def test_a_deadline_that_passed_while_the_server_was_down_ends_the_task(sqlite, kit):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=1, deadline=60)
            late = ManualClock(world.clock.now() + 61)
        async with sqlite(clock=late) as world:
            world.services.ticker.run_due()
            assert await kit.code_of(world.result(task)) is Code.DEADLINE_EXCEEDED

    asyncio.run(main())


def test_a_clock_that_was_set_back_while_the_server_was_down_gives_a_task_no_more_time(sqlite):
    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=1, deadline=60)
            back = ManualClock(world.clock.now() - 10_800)
        async with sqlite(clock=back) as world:
            back.advance(59)
            world.services.ticker.run_due()
            assert (await world.status(task)).state is TaskState.OPEN
            back.advance(2)
            world.services.ticker.run_due()
            assert (await world.status(task)).state is not TaskState.OPEN

    asyncio.run(main())


def test_a_task_whose_plugin_is_gone_stops_the_start_with_its_name(sqlite, kit):
    class Patience:
        @hookimpl
        def fcp_register_selection_policies(self):
            return [SelectionPolicyFactory("patience", "as fifo", lambda options: FifoPolicy())]

    async def main():
        async with sqlite(extra=[Patience()]) as world:
            await world.submit(selection="patience")
        with pytest.raises(UsageError, match=r"task sum of an earlier run.*'patience'"):
            async with sqlite():
                pass

    asyncio.run(main())


class Masked:
    @hookimpl
    def fcp_add_options(self, options):
        masked_sum.add_options(options)

    @hookimpl
    def fcp_register_aggregation_protocols(self):
        return [masked_sum.MASKED_SUM]


async def join(services, assignment, sender=None):
    """Call the other protocol."""
    joins = routes.route(masked_sum.FILE.service, "Join")
    request = joins.request_class(
        aggregation_id=assignment.aggregation_id,
        authorization_token=assignment.authorization_token,
    )
    return await services.method(joins)(request, sender)


def test_an_operation_of_another_protocol_than_the_task_has_now_is_over(sqlite, kit):
    async def main():
        async with sqlite(extra=[Masked()]) as world:
            task = await world.submit(goal=3)
            device = world.device()
            operation = await start(world, device, await device.assignment())
        async with sqlite(extra=[Masked()], protocol="masked_sum") as world:
            assert (await world.status(task)).state is TaskState.OPEN
            device.services = world.services
            assert await kit.code_of(device.poll(operation.name)) is Code.ABORTED

    asyncio.run(main())


def test_a_device_of_another_protocol_than_the_task_has_now_comes_too_late(sqlite, kit):
    """What the operator changed is no fault of the device, which a refusal sends away for hours."""

    async def main():
        async with sqlite(extra=[Masked()]) as world:
            task = await world.submit(goal=3)
            devices = [world.device() for _ in range(3)]
            held = [await device.assignment() for device in devices]
            early = await devices[1].start_upload(held[1])
        async with sqlite(extra=[Masked()], protocol="masked_sum") as world:
            for device in devices:
                device.services = world.services
            await devices[0].contribute(held[0])
            await devices[1].upload(early)
            await devices[1].submit(held[1], early)
            await devices[2].abort(held[2], await devices[2].start_upload(held[2]))
            status = await world.status(task)
            assert (status.contributed, status.surplus, status.pending) == (0, 3, 0)
        async with sqlite(
            extra=[Masked()], protocol="masked_sum", late_contributions="refuse"
        ) as w:
            devices[0].services = w.services
            assert await kit.code_of(devices[0].start_upload(held[0])) is Code.ABORTED

    asyncio.run(main())


def test_a_protocol_that_says_nothing_of_late_calls_has_those_of_another_aborted(sqlite, kit):
    async def main():
        async with sqlite(extra=[Masked()], protocol="masked_sum") as world:
            task = await world.submit(goal=3)
            held = await world.device().assignment()
        async with sqlite(extra=[Masked()]) as world:
            assert await kit.code_of(join(world.services, held)) is Code.ABORTED
            status = await world.status(task)
            assert (status.contributed, status.surplus, status.pending) == (0, 1, 0)
            # Nothing was changed for this one: it speaks what nobody asked it to speak.
            mistaken = await world.device().assignment()
            assert await kit.code_of(join(world.services, mistaken)) is Code.INVALID_ARGUMENT

    asyncio.run(main())
