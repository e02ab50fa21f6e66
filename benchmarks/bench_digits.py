"""How long ten rounds of federated averaging take, and how long it is until they can begin.

Runs ``examples/numpy_digits/run.py`` (30 devices in client processes, 10 of them in each round, 5
epochs each) in fresh processes and prints the median of some runs: the ten rounds, and everything
from the start of the interpreter to the end of the last process.

    python benchmarks/bench_digits.py [--runs 5]
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "numpy_digits" / "run.py"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("example", nargs="*", help="arguments for the example")
    given = parser.parse_args()
    rounds, whole, accuracy = [], [], []
    for _ in range(given.runs):
        started = time.perf_counter()
        output = subprocess.run(
            [sys.executable, str(EXAMPLE), *given.example],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        whole.append(time.perf_counter() - started)
        found = re.search(r"rounds in ([\d.]+) s", output)
        if found is None:
            raise RuntimeError(f"the example printed no time: {output!r}")
        rounds.append(float(found[1]))
        accuracy.append(float(re.findall(r"accuracy ([\d.]+)", output)[-1]))
    for what, values in (("ten rounds", rounds), ("cold start to end", whole)):
        print(
            f"{what}: median {statistics.median(values):.2f} s "
            f"({min(values):.2f} to {max(values):.2f})"
        )
    print(f"accuracy after the last round: {min(accuracy):.3f} to {max(accuracy):.3f}")


if __name__ == "__main__":
    main()
