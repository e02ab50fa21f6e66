"""Devices that wait or answer late are given only tasks that they were asked about."""

import asyncio

from fcp_core.rounds.policies import EligibilityPolicy, EligibilityPolicyFactory, Refusal
from tests.services.eligibility_plans import DATA, asked


def test_policies_of_a_task_survive_a_restart(kit, tmp_path):
    storage = {"storage": "sqlite", "storage__sqlite__path": str(tmp_path / "fcp.sqlite")}

    async def main():
        async with kit.world(**storage) as world:
            await world.submit(
                name="picky", eligibility=["data_availability"], options={"data_availability": DATA}
            )
        async with kit.world(**storage) as world:
            device = world.device()
            assert asked(device, await device.check_in()) == {"picky": {"data_availability"}}

    asyncio.run(main())


def test_a_device_that_waits_is_not_given_a_task_that_it_was_not_asked_about(kit):
    async def main():
        async with kit.world() as world:
            await world.submit(1, name="full")
            waiting, first = world.device(), world.device()
            await waiting.check_in()
            assert (await first.assignment()).task_name == "full"
            # It may take what opens later, but for what it would have to be asked about.
            picky = {"eligibility": ["data_availability"], "options": {"data_availability": DATA}}
            await world.submit(5, name="picky", **picky)
            assert waiting.answer(await waiting.start()).HasField("rejection_info")

    async def held():
        window = {"selection": "uniform", "selection__uniform__window": "10s"}
        async with kit.world(**window) as world:
            await world.submit(1, name="full")
            waiting = world.device()
            await waiting.check_in()
            operation = await waiting.start()
            picky = {"eligibility": ["data_availability"], "options": {"data_availability": DATA}}
            oldest = await world.submit(5, name="picky", **picky)
            world.advance(11)
            found = waiting.answer(await waiting.poll(operation.name))
            assert found.task_assignment.task_name == "full"
            assert (await world.status(oldest)).assigned == 0

    asyncio.run(main())
    asyncio.run(held())


class Late(EligibilityPolicy):
    """Refuses everybody, and says so with its name."""

    def admit(self, check_in, now):
        return Refusal("not for you")


def test_a_verdict_withholds_the_tasks_that_it_is_for(kit):
    from fcp_core.plugins import hookimpl

    class Plugin:
        @hookimpl
        def fcp_register_eligibility_policies(self):
            return [EligibilityPolicyFactory("late", "refuses", lambda options: Late())]

    async def main():
        async with kit.world(extra=[Plugin()]) as world:
            await world.submit(2, name="picky", eligibility=["late"])
            assert (await world.device().check_in()).HasField("rejection_info")
            (rejected,) = world.recorder.of("Rejected")
            assert rejected.reason == "refused"
            await world.submit(2, name="plain")
            device = world.device()
            response = await device.check_in()
            assert not response.HasField("rejection_info")
            found = device.answer(await device.start({"picky": 1.0, "plain": 1.0}))
            assert found.task_assignment.task_name == "plain"

    asyncio.run(main())
