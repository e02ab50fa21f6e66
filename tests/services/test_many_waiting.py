"""Many devices that wait for a task: what they cost a server does not grow with their number."""

import asyncio

import pytest

from fcp_core.plugins import hookimpl
from fcp_core.protocol.protos import task_assignments_pb2
from fcp_core.rounds.policies import Assign, Selection, SelectionPolicy, SelectionPolicyFactory
from fcp_core.server.services import population

MANY = 150


class Counting(SelectionPolicy):
    """Starts a round with all of its devices at once, and counts how often it is asked."""

    def __init__(self):
        self.shown = []

    def select(self, view):
        self.shown.append(len(view.candidates))
        (task,) = view.tasks
        if len(view.candidates) < task.capacity:
            return Selection()
        return Selection([Assign(candidate.id, task.task_id) for candidate in view.candidates])


class SettableClock:
    """A machine's clock: it may be set back."""

    time = 1_000_000.0

    def now(self):
        return self.time

    def advance(self, seconds):
        self.time += seconds

    def set_back(self, seconds):
        self.time -= seconds


class Plugin:
    def __init__(self):
        self.policy = Counting()

    @hookimpl
    def fcp_register_selection_policies(self):
        return [SelectionPolicyFactory("counting", "counts", lambda options: self.policy)]


async def ask(world):
    """Let one more device ask for a task; return it and its operation."""
    world.devices = 0  # what it would contribute does not matter here
    device = world.device()
    await device.check_in()
    return device, await device.start()


def interval(operation):
    metadata = task_assignments_pb2.StartTaskAssignmentMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata.polling_interval.ToNanoseconds() / 1e9


def test_policies_hear_of_many_arrivals_together(kit):
    async def main():
        plugin = Plugin()
        async with kit.world(extra=[plugin], selection="counting", over_selection="1") as world:
            await world.submit(goal=MANY)
            asked = [await ask(world) for _ in range(MANY)]
            shown = plugin.policy.shown
            # Time stands still here: the first hundred are looked at one by one, then none is.
            assert shown == list(range(1, 101))
            assert not any([(await d.poll(o.name)).done for d, o in asked])
            world.advance(0.001)
            assert len(shown) == 100
            world.advance(0.001)
            assert shown[100:] == [MANY]
            assert all([(await d.poll(o.name)).done for d, o in asked])

    asyncio.run(main())


def test_an_arrival_a_moment_later_is_heard_of_at_once(kit):
    async def main():
        plugin = Plugin()
        clock = SettableClock()
        async with kit.world(extra=[plugin], selection="counting", clock=clock) as world:
            await world.submit(goal=MANY)
            for _ in range(100):
                await ask(world)
            world.clock.advance(0.01)
            await ask(world)
            assert plugin.policy.shown[100:] == [101]
            # Also if the clock was set back meanwhile.
            world.clock.set_back(3600.0)
            await ask(world)
            assert plugin.policy.shown[101:] == [102]

    asyncio.run(main())


def test_one_that_leaves_meanwhile_is_not_shown(kit):
    async def main():
        plugin = Plugin()
        async with kit.world(extra=[plugin], selection="counting") as world:
            await world.submit(goal=MANY)
            asked = [await ask(world) for _ in range(101)]
            for device, operation in asked:
                await device.cancel(operation.name)
            world.advance(1.0)
            assert len(plugin.policy.shown) == 100

    asyncio.run(main())


@pytest.mark.parametrize(
    ("rate", "waiting", "expected", "alone"),
    [(10, 4, 0.5, 0.5), (10, 20, 2.0, 0.5), (0.01, 20, 60.0, 60.0)],
)
def test_the_more_wait_the_less_often_each_asks(kit, monkeypatch, rate, waiting, expected, alone):
    monkeypatch.setattr(population, "MOST_POLLS", rate)

    async def main():
        async with kit.world(
            selection="cohort", polling_interval="500ms", over_selection="1"
        ) as world:
            await world.submit(goal=waiting + 1)
            asked = [await ask(world) for _ in range(waiting)]
            for device, operation in asked:
                assert interval(await device.poll(operation.name)) == expected
            # Once they are served, nobody has to wait so long any more.
            await ask(world)
            await world.submit(goal=2, name="other")
            device, operation = await ask(world)
            assert interval(await device.poll(operation.name)) == alone

    asyncio.run(main())
