"""The crash simulation: it holds, is the same each time, and sees the faults that are planted."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.crashing import simulation
from benchmarks.crashing.faults import HOUR, SPAN, Fault, Plan, draw
from benchmarks.crashing.secure import history
from benchmarks.crashing.simulation import shrink, simulate
from fcp_core.aggregation.engine import Partial
from fcp_core.server.services.members import Members
from fcp_core.server.services.store import TaskStore
from fcp_core.server.services.tasks import Tasks
from fcp_core.storage import shards
from fcp_core.storage.records import ShardRecord

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def crash(*arguments, folder):
    """Run the command; return its status and what it prints."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "crash.py", *arguments, "--folder", folder],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done.returncode, done.stdout


def test_some_hundreds_of_faults_break_nothing(tmp_path):
    status, printed = crash("--faults", "200", "--seed", "1", folder=tmp_path)
    assert (status, list(tmp_path.iterdir())) == (0, []), printed
    counts = dict(line.rsplit(maxsplit=1) for line in printed.splitlines() if line[:2] == "  ")
    assert sum(map(int, counts.values())) >= 200
    assert len(counts) > 10


def test_a_run_follows_from_its_plan(tmp_path):
    file = tmp_path / "plan.json"
    plan = draw(12, 20)
    file.write_text(json.dumps(plan.to_json()), encoding="utf-8")
    assert Plan.from_json(json.loads(file.read_text())) == plan
    first, again = (crash("--replay", file, folder=tmp_path) for _ in range(2))
    assert first == again
    assert first[1].startswith("seed 12, ")


def test_a_failure_is_made_small():
    plan = Plan(1, 1, True, tuple(Fault(float(n), "kill", {"n": n}) for n in range(40)))

    def fails(smaller):
        return {3, 29} <= {fault.details["n"] for fault in smaller.faults}

    assert [fault.details["n"] for fault in shrink(plan, fails, tries=200).faults] == [3, 29]


# Faults of the server, each of which the simulation must see.


def answers_before_it_is_stored(patch):
    async def add_shard(self, shard, pieces, name, total=None):
        async def later():
            await asyncio.sleep(2.0)
            await kept(self, shard, pieces, name, total)

        asyncio.get_running_loop().create_task(later())
        return total is not None

    kept = TaskStore.add_shard
    patch.setattr(TaskStore, "add_shard", add_shard)


def writes_a_shard_under_a_new_name_each_time(patch):
    """What was written, and whose answer was lost, is written once more."""

    def add(tx, shard, **how):
        fresh = replace(shard, shard_id=f"{shard.shard_id}-{len(list(tx.select(ShardRecord)))}")
        return kept(tx, fresh, **how)

    kept = shards.add
    patch.setattr(shards, "add", add)


def writes_whoever_owns_the_population(patch):
    patch.setattr(Members, "fence", lambda self: shards.unfenced())


def forgets_who_has_contributed(patch):
    """After a restart the sum is there, and nobody knows whose it is."""

    def read(tx, task_id):
        found = kept(tx, task_id)
        partials = tuple(Partial(each.data, ()) for each in found.partials)
        return replace(found, contributions=(), partials=partials)

    kept = shards.read
    patch.setattr(shards, "read", read)


def never_ends(patch):
    async def ended(self, task, result):
        await asyncio.sleep(1e9)

    patch.setattr(Tasks, "ended", ended)


def usual(seed):
    return draw(seed, 60)


def two_owners(seed):
    """Two members act when the storage's clock jumps ahead; only the fence tells them apart."""
    rng = random.Random(seed)

    def at(kind, **details):
        return Fault(round(rng.uniform(0, SPAN), 3), kind, details)

    jumps = [at("clock", member=-1, by=HOUR) for _ in range(30)]
    late = [at("transaction", member=rng.randrange(3), fate="late", count=2) for _ in range(60)]
    return Plan(seed, 3, False, tuple(sorted(jumps + late, key=lambda fault: fault.at)))


MISSING = "was told OK and is missing"
PLANTED = [
    (answers_before_it_is_stored, MISSING, usual, 1),
    # What is there twice shows when it is read: the server does not start with it.
    (writes_a_shard_under_a_new_name_each_time, "already in the aggregate", usual, 1),
    # Few plans show it: the first seeds do not.
    (writes_whoever_owns_the_population, MISSING, two_owners, 62),
    (forgets_who_has_contributed, "its sum", usual, 1),
    (never_ends, "not every task has ended", usual, 1),
]


@pytest.mark.parametrize(
    ("plant", "expected", "plan", "first"), PLANTED, ids=[p[0].__name__ for p in PLANTED]
)
def test_a_planted_fault_is_seen(plant, expected, plan, first, monkeypatch):
    plant(monkeypatch)
    monkeypatch.setattr(simulation, "LIMIT", 1500.0)
    seen = []
    for seed in range(first, first + 30):
        seen = [text for text in simulate(plan(seed)).wrong if expected in text]
        if seen:
            break
    assert seen


def test_two_owners_do_no_harm():
    """With the seed that shows the fault, too."""
    assert not [text for text in simulate(two_owners(62)).wrong if MISSING in text]


def test_a_device_that_gave_up_after_its_masked_input_counts_and_is_not_waited_for():
    assert history(92758) > 0
