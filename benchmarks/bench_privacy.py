"""Noise for a million numbers, with the compiled loop and without, on one core.

Times are processor times, the best of several.

    python benchmarks/bench_privacy.py [--quick]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from goals import Goal, main

sys.path.insert(0, str(Path(__file__).parents[1] / "aggregators" / "privacy" / "src"))

from fcp_privacy import noise
from fcp_privacy.clipped import STEPS
from fcp_privacy.randomness import Randomness

COUNT = 1_000_000
#: Milliseconds.
COMPILED, PLAIN = 30.0, 200.0


def milliseconds(draw: Callable[[], object], repeats: int) -> float:
    """Return the least processor time that a call takes."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        draw()
        times.append(time.process_time() - began)
    return 1000 * min(times)


def goals(quick: bool = False) -> list[Goal]:
    """Return how long it takes to draw, for both distributions."""
    repeats, found = 5 if quick else 15, []
    loops = noise.LOOPS
    ways = [("without the compiled loop", None, PLAIN)]
    if loops is not None:
        ways.insert(0, ("with the compiled loop", loops, COMPILED))
    for words, used, limit in ways:
        noise.LOOPS = used
        for name, draw in (
            ("Gaussian", noise.discrete_gaussian),
            ("Laplace", noise.discrete_laplace),
        ):
            took = milliseconds(lambda draw=draw: draw(STEPS, COUNT, Randomness()), repeats)  # type: ignore[misc]
            found.append(
                Goal("privacy", f"{name} noise for 1e6 numbers, {words}", took, limit, "ms")
            )
    noise.LOOPS = loops
    return found


if __name__ == "__main__":
    main(goals, __doc__)
