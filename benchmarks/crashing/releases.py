"""Runs in which results have noise: each is drawn once, and booked, whatever fails.

Faults are aimed at the transactions that end a task: each fate there is, at each of them.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.crashing.disk import FATES
from benchmarks.crashing.faults import Plan, draw
from fcp_core.rounds.tasks import TaskState
from fcp_core.storage.records import AccountRecord, EntryRecord, TaskRecord

if TYPE_CHECKING:
    from benchmarks.crashing.world import World

_SOURCE = Path(__file__).parents[2] / "aggregators" / "privacy" / "src"

#: Noise that no count is changed by, and that shows in a number of its own.
AGGREGATOR = "dp_tree"
OPTIONS = {
    f"aggregator.{AGGREGATOR}.clip": 2.0,
    f"aggregator.{AGGREGATOR}.noise_multiplier": 0.01,
    f"aggregator.{AGGREGATOR}.series": "all",
    "privacy.rho": 1e9,
}
#: Other faults of a run, beside those of the releases.
OTHERS = 15
#: How many releases of a run have a fault; some of them several.
AIMED = 12


def plugin() -> Any:
    """Return the plugin, wherever this runs."""
    if str(_SOURCE) not in sys.path:
        sys.path.insert(0, str(_SOURCE))
    module: Any = importlib.import_module("fcp_privacy.plugin")
    return module.PrivacyPlugin()


def plan_of(seed: int) -> Plan:
    """Return the run of a seed: some faults at any time, and one at most releases."""
    rng = random.Random(f"release {seed}")
    usual = draw(seed, OTHERS)
    fates = tuple(rng.choice(("", *FATES)) for _ in range(AIMED))
    return Plan(seed, usual.members, usual.late, usual.faults, releases=fates)


def check(world: World) -> list[str]:
    """Hold what is stored to what was promised."""
    wrong = [
        f"{len(results)} results of {name} were stored one after the other"
        for name, results in world.disk.results.items()
        if len(results) != 1
    ]
    entries = {entry.task_id: entry for entry in world.disk.read(EntryRecord)}
    booked: Counter[str] = Counter()
    for task in world.disk.read(TaskRecord):
        completed = task.state == TaskState.COMPLETED.value
        if completed != (task.task_id in entries):
            wrong.append(f"task {task.name} is {task.state}; its entry: {task.task_id in entries}")
        elif completed and entries[task.task_id].release != task.release:
            wrong.append(f"task {task.name} and its entry disagree on what it cost")
        booked[task.population] += completed
    wrong += [
        f"account {account.account} is at {account.version}, and "
        f"{booked[account.population]} results were released"
        for account in world.disk.read(AccountRecord)
        if account.version != booked[account.population]
    ]
    return wrong


def simulate_releases(releases: int, seed: int) -> int:
    """Run until so many releases had a fault; return how many runs failed."""
    from benchmarks.crashing.simulation import simulate

    effects: Counter[str] = Counter()
    failed = runs = drawn = 0
    while sum(effects.values()) < releases:
        outcome = simulate(plan_of(seed + runs))
        runs += 1
        effects += Counter({k: n for k, n in outcome.effects.items() if k.startswith("release:")})
        drawn += outcome.tasks["completed"]
        if outcome.wrong:
            failed += 1
            for text in outcome.wrong:
                print(f"releases, run {seed + runs - 1}: {text}", flush=True)
    print(f"releases            {drawn:,} in {runs:,} runs, {failed} runs failed")
    for kind, count in sorted(effects.items()):
        print(f"  {kind:<30} {count:,}")
    return failed
