"""How long ten rounds of federated averaging take, and how long it is until they can begin.

Runs ``examples/numpy_digits/run.py`` (30 devices, each in a client process of its own, 10 of them
in each round, 5 epochs each) in fresh processes and prints the median of some runs: the ten rounds,
and everything from the start of the interpreter to the end of the last process. Before each run the
same training is timed in one process, without server, devices or framework: that says how fast the
machine is at the moment.

    python benchmarks/bench_digits.py [--runs 5] [-- --processes 2]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from goals import Goal

EXAMPLE = Path(__file__).parents[1] / "examples" / "numpy_digits" / "run.py"
#: A process for each device.
ARGUMENTS = ("--devices", "30", "--per-round", "10", "--processes", "30")
#: What the fastest server of the most used framework takes on two processors, in seconds: the ten
#: rounds, and everything from a cold start. One process without any framework takes ALONE there.
ROUNDS, WHOLE, ALONE = 0.38, 37.0, 0.097
#: What such networks reach, in percent of the held-out digits.
ACCURACY = 94.0

_ALONE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
from digits import initial, load, train
training, _ = load(1, 360)
parts = np.array_split(training, 30)
def run():
    network, rng = initial(1), np.random.default_rng(1)
    for _ in range(10):
        total, weight = None, 0
        for device in rng.choice(30, 10, replace=False):
            count = len(parts[device])
            trained = train(network, parts[device], 5, 0.1, 8)
            scaled = {name: count * value for name, value in trained.items()}
            total = scaled if total is None else {n: v + scaled[n] for n, v in total.items()}
            weight += count
        network = {name: value / weight for name, value in total.items()}
run()
began = time.perf_counter()
run()
print(time.perf_counter() - began)
"""


@dataclass
class Times:
    """What some runs took, in seconds, one element a run; the accuracies are shares."""

    alone: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


def measure(runs: int, arguments: Sequence[str] = ARGUMENTS) -> Times:
    """Run the example, and the training alone, in turns.

    :param arguments: for the example.
    """
    times = Times()
    single = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for _ in range(runs):
        alone = [sys.executable, "-c", _ALONE, str(EXAMPLE.parent)]
        times.alone.append(float(_output(alone, single)))
        began = time.perf_counter()
        output = _output([sys.executable, str(EXAMPLE), *arguments], dict(os.environ))
        times.whole.append(time.perf_counter() - began)
        found = re.search(r"rounds in ([\d.]+) s", output)
        if found is None:
            raise RuntimeError(f"the example printed no time: {output!r}")
        times.rounds.append(float(found[1]))
        times.accuracy.append(float(re.findall(r"accuracy ([\d.]+)", output)[-1]))
    return times


def _output(command: Sequence[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120, env=environment
    ).stdout


def goals(quick: bool) -> list[Goal]:
    """Return the ten rounds and the whole run against the fastest server of another framework.

    Its seconds were measured on one machine; the ratio to the training alone, on any.
    """
    times = measure(3 if quick else 9)
    rounds, alone = statistics.median(times.rounds), statistics.median(times.alone)
    return [
        Goal("digits", "ten rounds, 30 client processes, 10 a round", rounds, ROUNDS, "s"),
        Goal("digits", "the same, to the training alone", rounds / alone, round(ROUNDS / ALONE, 2)),
        Goal(
            "digits", "cold start to the end of all processes", statistics.median(times.whole),
            WHOLE, "s",
        ),
        Goal(
            "digits", "held-out digits that are classified correctly",
            100 * statistics.median(times.accuracy), ACCURACY, "%", at_most=False,
        ),
    ]  # fmt: skip


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("example", nargs="*", help="arguments for the example")
    given = parser.parse_args()
    times = measure(given.runs, given.example or ARGUMENTS)
    for what, values in (
        ("training alone, one process", times.alone),
        ("ten rounds", times.rounds),
        ("cold start to end", times.whole),
    ):
        print(
            f"{what}: median {statistics.median(values):.3f} s "
            f"({min(values):.3f} to {max(values):.3f})"
        )
    ratio = statistics.median(times.rounds) / statistics.median(times.alone)
    print(f"ten rounds to training alone: {ratio:.1f} (the limit: {round(ROUNDS / ALONE, 2):.1f})")
    print(f"accuracy after the last round: {min(times.accuracy):.3f} to {max(times.accuracy):.3f}")


if __name__ == "__main__":
    main()
