"""One run of the simulation, what must hold after it, and how a failure is made small."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.crashing import releases
from benchmarks.crashing.devices import Accounts, Device, Ended, Program, ended_of, places
from benchmarks.crashing.faults import HOUR, SPAN, Fault, Plan
from benchmarks.crashing.member import POPULATIONS
from benchmarks.crashing.virtual import NothingHappensError, VirtualLoop
from benchmarks.crashing.world import FaultLog, World
from fcp_core.rounds.tasks import TaskState
from fcp_core.storage.records import BlobRecord, ShardRecord, TaskRecord

DEVICES = 24
TASKS = 3
#: Until when every task must have ended: each has a deadline, and ten minutes to close after it.
LIMIT = SPAN + TASKS * 1500.0 + HOUR


@dataclass
class Outcome:
    """What came of a run.

    :param wrong: what must not be, a sentence each.
    :param effects: the faults that had an effect, by kind.
    """

    wrong: list[str]
    effects: Counter[str]
    contributed: int
    told_ok: int
    tasks: Counter[str]
    seconds: float


def simulate(plan: Plan) -> Outcome:
    """Run a plan from its beginning to its end."""
    loop = VirtualLoop()
    world = World(plan, loop)
    accounts = Accounts()
    log = FaultLog(world.broken)
    loggers = [logging.getLogger("fcp"), logging.getLogger("fcp_core")]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(log)
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(lambda _, context: world.broken.append(_unhandled(context)))
    try:
        wrong = loop.run_until_complete(_run(world, accounts))
    except NothingHappensError:
        wrong = ["everything waits for something that never comes"]
    finally:
        for logger in loggers:
            logger.propagate = True
            logger.removeHandler(log)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.set_exception_handler(lambda *_: None)
        asyncio.set_event_loop(None)
        loop.close()
    wrong += [f"the server's log has: {text}" for text in dict.fromkeys(world.broken)]
    tasks = Counter(ended.status.state.value for ended in accounts.ended.values())
    contributed = sum(ended.status.contributed for ended in accounts.ended.values())
    told = sum(each.ok is True for each in accounts.contributions)
    return Outcome(wrong, world.effects, contributed, told, tasks, loop.time())


def _unhandled(context: dict[str, Any]) -> str:
    error = context.get("exception")
    where = f" ({context['future']!r:.200})" if "future" in context else ""
    return f"{context['message']}: {type(error).__name__}: {error}{where}"


async def _run(world: World, accounts: Accounts) -> list[str]:
    loop = world.loop
    for number in range(world.plan.members):
        world.start(number)
    for fault in world.plan.faults:
        loop.call_at(fault.at, world.inflict, fault, context=Context())
    devices = [Device(world, accounts, world.plan.seed * 1000 + n) for n in range(DEVICES)]
    going = [loop.create_task(device.run()) for device in devices]
    programs = [
        loop.create_task(Program(world, accounts, name, TASKS).run()) for name in POPULATIONS
    ]
    done, late = await asyncio.wait(programs, timeout=LIMIT)
    for task in done:
        task.result()
    if loop.time() < SPAN + 1.0:
        # What is over must stay as it is whatever happens now.
        await asyncio.sleep(SPAN + 1.0 - loop.time())
    for task in (*going, *late):
        task.cancel()
    await asyncio.wait(going)
    if late:
        open_ = {record.name: record.state for record in world.disk.read(TaskRecord)}
        return [f"after {loop.time():.0f} s not every task has ended: {open_}"]
    for device in going:
        if not device.cancelled():
            device.result()
    wrong = [*_check(world, accounts), *await _check_again(world, accounts)]
    return [*wrong, *releases.check(world)] if world.plan.releases else wrong


def _check(world: World, accounts: Accounts) -> list[str]:
    """Hold what everybody saw to what was promised."""
    records = {record.task_id: record for record in world.disk.read(TaskRecord)}
    wrong = []
    for task_id, ended in accounts.ended.items():
        name = f"task {ended.status.population}/{ended.status.name}"
        if ended.status.state is not TaskState.COMPLETED:
            continue
        assert ended.result is not None  # it was read with the status
        found = places(ended.result)
        group = records[task_id].aggregation_id
        wrong += [f"{name}: contribution {n} counts {k} times" for n, k in found.items() if k != 1]
        for place in found:
            known = accounts.contributions[place]
            if known.aggregation_id != group:
                wrong.append(f"{name}: contribution {place} belongs to another task")
            if known.twin is not None and known.twin in found:
                wrong.append(f"{name}: contributions {place} and {known.twin} share their tokens")
        if not world.plan.late:
            missing = [
                place
                for place, each in enumerate(accounts.contributions)
                if each.ok and each.aggregation_id == group and place not in found
                and not _twin_counts(accounts, place, found)
            ]  # fmt: skip
            wrong += [f"{name}: contribution {n} was told OK and is missing" for n in missing]
        status = ended.status
        if status.contributed != sum(found.values()):
            wrong.append(f"{name}: it counts {status.contributed}, its sum {sum(found.values())}")
        if status.contributed < status.goal_count:
            wrong.append(f"{name}: it completed with {status.contributed} of {status.goal_count}")
        if status.pending or status.assigned < status.contributed + status.dropped:
            wrong.append(f"{name}: its counters do not fit: {status}")
    if not any(f.kind == "clock" and f.details["member"] < 0 for f in world.plan.faults):
        # When the storage's clock jumps ahead, all leases run out at once: for a while two members
        # act for a population, and a device may have called both. What is stored is right.
        wrong += [f"a device was told: {text}" for text in sorted(accounts.sent_away)]
    if len(set(accounts.submitted.values())) != len(accounts.submitted):
        wrong.append("two keys have one task")
    if len(records) != len(accounts.submitted):
        wrong.append(f"{len(accounts.submitted)} tasks were submitted, {len(records)} are stored")
    return wrong


def _twin_counts(accounts: Accounts, place: int, found: Any) -> bool:
    """Whether what was sent again with the same tokens counts instead."""
    return any(
        each.twin == place and number in found for number, each in enumerate(accounts.contributions)
    )


async def _check_again(world: World, accounts: Accounts) -> list[str]:
    """Restart everything: what was final is as it was, and nothing is left over."""
    wrong = []
    world.disk.full_until = 0.0
    for number in range(world.plan.members):
        world.kill(number, 0.1)
        member = world.members[number]
        if member is not None:
            member.handle.fates.clear()
    await asyncio.sleep(60.0)
    for task_id, before in accounts.ended.items():
        after = await _ended(world, before.status.population, task_id)
        same = (before.status.state, before.status.error, before.status.contributed, before.result)
        if after is None:
            wrong.append(f"task {before.status.name} cannot be read after a restart")
        elif same != (
            after.status.state,
            after.status.error,
            after.status.contributed,
            after.result,
        ):
            wrong.append(
                f"task {before.status.name} was {before.status}, and is {after.status} after a "
                f"restart; the results are {'the same' if before.result == after.result else 'not'}"
            )
    shards = world.disk.read(ShardRecord)
    if shards:
        wrong.append(f"{len(shards)} shards are left over: {shards[0]}")
    extra = [b.name for b in world.disk.read(BlobRecord) if not b.name.endswith("/result")]
    if extra:
        wrong.append(f"{len(extra)} blobs are left over: {extra[0]}")
    return wrong


async def _ended(world: World, population: str, task_id: str) -> Ended | None:
    for _ in range(100):
        try:
            found = await world.at_owner(population, lambda services: ended_of(services, task_id))
        except Exception:
            await asyncio.sleep(1.0)
        else:
            return found  # type: ignore[no-any-return]
    return None


def shrink(plan: Plan, fails: Callable[[Plan], bool], tries: int = 60) -> Plan:
    """Return a plan with fewer faults that fails too: halves, quarters and so on are left out."""
    faults: tuple[Fault, ...] = plan.faults
    pieces = 2
    while tries > 0 and len(faults) > 1:
        size = max(1, len(faults) // pieces)
        for begin in range(0, len(faults), size):
            rest = faults[:begin] + faults[begin + size :]
            tries -= 1
            if fails(replace(plan, faults=rest)):
                faults, pieces = rest, max(2, pieces - 1)
                break
            if tries <= 0:
                break
        else:
            if size == 1:
                break
            pieces = min(len(faults), 2 * pieces)
    return replace(plan, faults=faults)
