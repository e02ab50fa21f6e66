"""How long a population is nobody's after its owner died, in the virtual time of a simulation."""

from __future__ import annotations

import asyncio
import logging

import pytest

from benchmarks.crashing.faults import Plan
from benchmarks.crashing.member import LEASE, POPULATIONS
from benchmarks.crashing.virtual import VirtualLoop
from benchmarks.crashing.world import World

#: What the look takes with which a member finds that a lease is over, and reads what it takes.
LOOK = 0.5


def owner(world, population):
    """Return the member that acts for a population, or None."""
    for member in world.members:
        if member is not None and member.ready and population in member.services.members.owned:
            return member
    return None


async def time_without_owner(world):
    """Kill an owner at some moment, for good; return when each of its populations has another."""
    loop = world.loop
    for number in range(len(world.members)):
        world.start(number)
    while not all(owner(world, population) for population in POPULATIONS):
        await asyncio.sleep(0.1)
    await asyncio.sleep(world.rng.uniform(0.0, 2 * LEASE))
    dead = owner(world, POPULATIONS[0])
    left = [population for population in POPULATIONS if owner(world, population) is dead]
    began = loop.time()
    world.kill(dead.number, 1e6)
    times = {}
    while len(times) < len(left):
        assert loop.time() < began + 10 * LEASE, f"nobody takes {set(left) - set(times)}"
        await asyncio.sleep(0.01)
        for population in left:
            if owner(world, population):
                times.setdefault(population, loop.time() - began)
    return times


@pytest.mark.parametrize("seed", range(8))
def test_another_member_acts_within_a_lease(seed):
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    logging.getLogger("fcp").setLevel(logging.CRITICAL)
    try:
        world = World(Plan(seed, 3, True, ()), loop)
        times = loop.run_until_complete(time_without_owner(world))
        assert world.broken == []
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.set_exception_handler(lambda *_: None)
        asyncio.set_event_loop(None)
        loop.close()
    assert times
    assert max(times.values()) <= LEASE + LOOK
