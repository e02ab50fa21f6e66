"""Where the demonstration's time goes.

Run ``python benchmarks/bench_demo.py``: it runs ``fcp demo`` with its defaults in a folder of its
own and prints the phases as the demonstration measured them: start-up, compiling, rounds. Wall
times depend on the machine and on what else it does; the processor time of all processes together
does so less. The second run finds the first one's compiled plan.

With ``--masks`` it runs ``fcp demo --protocol secagg --drop 0.2`` instead, and compares how well
that learns with TFF's own simulation of the same in the clear.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from goals import Goal

#: What the ten rounds took before devices kept plans, sessions and functions, in seconds.
ROUNDS = 11.0
LOWERING = "TFF: lowering to a plan"
#: How far the accuracy under masks may be from that in the clear, in percent of the digits.
MASKED = 2.0
SECAGG = Path(__file__).parents[1] / "aggregators" / "secure_aggregation" / "src"


def run(cache: str, arguments: list[str]) -> tuple[float, float, Mapping[str, Any]]:
    """Run the demonstration.

    :param cache: where programs keep what they compiled.
    :returns: its wall time, its processor time, both in seconds, and what it wrote of itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        command = [sys.executable, "-m", "fcp_core", "demo", "--folder", folder, *arguments]
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        if "--protocol" in arguments:
            environment |= {"PYTHONPATH": str(SECAGG), "FCP_PLUGINS": "fcp_secagg.plugin"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        wall = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        outcome = json.loads(Path(folder, "outcome.json").read_text())
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, processor, outcome


def main() -> None:
    """Run the demonstration twice and print its phases."""
    if sys.argv[1:] == ["--masks"]:
        print("  ".join(masked().row()))
        return
    with tempfile.TemporaryDirectory() as cache:
        runs = [run(cache, sys.argv[1:]) for _ in range(2)]
    print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    print(f"{'':<34}{'first run':>14}{'second run':>14}")
    rows = {
        "whole process, wall": [wall for wall, _, _ in runs],
        "whole process, processor time": [processor for _, processor, _ in runs],
        **{
            name: [outcome["seconds"][name] for _, _, outcome in runs]
            for name in runs[0][2]["seconds"]
        },
    }
    for name, values in rows.items():
        print(f"{name:<34}" + "".join(f"{value:12.1f} s" for value in values))
    for name in ("sessions", "contributed"):
        print(f"{name:<34}" + "".join(f"{o['devices'][name]:14}" for _, _, o in runs))
    last = [outcome["accuracy"][-1] for _, _, outcome in runs]
    print(f"{'accuracy after the last round':<34}" + "".join(f"{value:14.3f}" for value in last))


def masked() -> Goal:
    """Return how far the accuracy is from that in the clear while a fifth of the devices vanishes.

    Of the last three rounds: who takes part in one is chance, and moves the last by a percent.
    """
    with tempfile.TemporaryDirectory() as cache:
        _, _, outcome = run(cache, ["--protocol", "secagg", "--drop", "0.2"])
    found, clear = (statistics.mean(outcome[name][-3:]) for name in ("accuracy", "in_the_clear"))
    print(f"  accuracy under masks {found:.3f}, in the clear {clear:.3f}")
    what = "fcp demo --protocol secagg --drop 0.2: accuracy, less that in the clear"
    return Goal("TFF program", what, 100 * abs(found - clear), MASKED, "%")


def goals(quick: bool) -> list[Goal]:
    """Return the rounds, compiling with and without a kept plan, and learning under masks."""
    with tempfile.TemporaryDirectory() as cache:
        (_, _, first), (_, _, second) = (run(cache, []) for _ in range(2))
    seconds = [outcome["seconds"] for outcome in (first, second)]
    return [
        Goal("TFF program", "ten rounds, 10 devices a round", seconds[1]["rounds"], ROUNDS, "s"),
        Goal(
            "TFF program",
            "compiling the second time, to the first",
            seconds[1][LOWERING] / seconds[0][LOWERING],
            0.5,
        ),
        masked(),
    ]


if __name__ == "__main__":
    main()
