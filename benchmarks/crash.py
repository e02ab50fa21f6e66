"""Kill a server very often, and hold it to what it promised.

    python benchmarks/crash.py [--faults 10000] [--kills 500] [--secure 1000] [--releases 1000]
                               [--release-kills 70]
    python benchmarks/crash.py --replay FILE

First a simulation: the server's own services and machines, one to three members, in one process and
in virtual time, with devices that use the published client's session and programs that wait for
their tasks. Members are killed, the storage fails before or after it has written, writes late, is
full or cut off, clocks are set an hour forth or back, calls and answers are lost or come twice, and
devices send with tokens that were used. A run follows from its seed; one that fails is made small
and written to a file, which ``--replay`` runs again.

With ``--secure`` so many histories of secure aggregation, in virtual time too: devices vanish at
any step, sums are refused, and whoever counts is in the sum.

With ``--releases`` runs in which results have noise, until so many of the transactions that release
one had a fault: a result is drawn once, booked if and only if it is released, and nothing else is.

With ``--release-kills`` a server process dies by SIGKILL so often, at each step of a release.

Then real kills: server processes with SQLite, and members with PostgreSQL if it is installed, are
killed with SIGKILL while devices contribute.

After each, every contribution that was told OK is in its sum and none is twice, counters fit,
tokens served once, what was final stays final after another restart, and every task has ended. Exit
status 0: all of that held.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

# Found however this file is run.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.crashing.faults import Plan, draw
from benchmarks.crashing.simulation import Outcome, shrink, simulate

#: Faults that are planned for one run.
IN_A_RUN = 60


def main() -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=10_000, help="simulated ones, at least")
    parser.add_argument("--kills", type=int, default=0, help="real ones")
    parser.add_argument("--secure", type=int, default=0, help="histories of secure aggregation")
    parser.add_argument("--releases", type=int, default=0, help="of results with noise")
    parser.add_argument("--release-kills", type=int, default=0, help="real ones, in releases")
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--minutes", type=float, default=60.0, help="no run begins after that")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this plan and no other")
    parser.add_argument("--folder", type=Path, default=Path(), help="where failures are written")
    given = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Or sets would have another order in each process, and no failure could be repeated.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    # Servers of real kills must not outlive this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # What devices go through here is not worth a line each.
    logging.getLogger("fcp_core.client").setLevel(logging.CRITICAL)
    if given.replay is not None:
        plan = Plan.from_json(json.loads(given.replay.read_text(encoding="utf-8")))
        return _say(plan, simulate(plan))
    end = time.monotonic() + given.minutes * 60
    wrong = _simulated(given.faults, given.seed, end, given.folder)
    if given.secure:
        from benchmarks.crashing.secure import simulate as simulate_secure

        wrong += simulate_secure(given.secure, given.seed)
    if given.releases:
        from benchmarks.crashing.releases import simulate_releases

        wrong += simulate_releases(given.releases, given.seed)
    if given.release_kills:
        from benchmarks.crashing.release_kills import kill_releases

        wrong += kill_releases(given.release_kills, given.seed, given.folder)
    if given.kills:
        from benchmarks.crashing.kills import kill_often

        wrong += kill_often(given.kills, given.seed, end, given.folder)
    return 1 if wrong else 0


def _simulated(faults: int, seed: int, end: float, folder: Path) -> int:
    """Simulate until there were enough faults; return how many runs failed."""
    effects: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    began, runs, failed, told, counted = time.monotonic(), 0, 0, 0, 0
    while effects.total() < faults and time.monotonic() < end:
        plan = draw(seed + runs, IN_A_RUN)
        outcome = simulate(plan)
        runs += 1
        effects += outcome.effects
        tasks += outcome.tasks
        told, counted = told + outcome.told_ok, counted + outcome.contributed
        if outcome.wrong:
            failed += 1
            _keep(plan, outcome, folder)
    print(f"simulated runs      {runs:,} in {time.monotonic() - began:.0f} s, {failed} failed")
    print(f"faults              {effects.total():,}")
    for kind, count in sorted(effects.items()):
        print(f"  {kind:<30} {count:,}")
    print(f"tasks               {', '.join(f'{n:,} {kind}' for kind, n in sorted(tasks.items()))}")
    print(f"contributions       {counted:,} counted, {told:,} told OK", flush=True)
    return failed


def _keep(plan: Plan, outcome: Outcome, folder: Path) -> None:
    """Make a failure small, and write it down."""
    _say(plan, outcome)
    kinds = {text.partition(":")[0] for text in outcome.wrong}

    def fails(smaller: Plan) -> bool:
        return bool(kinds & {text.partition(":")[0] for text in simulate(smaller).wrong})

    small = shrink(plan, fails)
    file = folder / f"crash-{plan.seed}.json"
    file.write_text(json.dumps(small.to_json(), indent=1), encoding="utf-8")
    print(
        f"{len(small.faults)} of its {len(plan.faults)} faults are enough: run it again with "
        f"--replay {file}",
        flush=True,
    )


def _say(plan: Plan, outcome: Outcome) -> int:
    print(
        f"seed {plan.seed}, {plan.members} members, {outcome.effects.total()} faults: "
        f"{'; '.join(outcome.wrong) or 'all is well'}"
    )
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
