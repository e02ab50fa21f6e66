"""What a device costs the server in rounds of 100 to 10,000 devices.

Each round is one of ``fcp bench load``: devices with a 4-byte update and connections of their own,
64 of them at a time, against ``fcp serve`` in a process of its own. A size is compared with rounds
of 100 devices on the same server just before and just after, so that whatever else the machine does
meets both; the median of some servers counts. In the plot's second line all devices of a round wait
until the last is there (selection ``cohort``), and poll meanwhile.

    python benchmarks/bench_load.py [--quick] [--svg docs/images/load.svg]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from goals import Goal
from own_server import Target, own_server

from fcp_core.bench.report import ServerCost
from fcp_core.lab.charts import Lines, page

#: What all other sizes are compared with, and how often before and after each of them.
BASE, BASE_ROUNDS = 100, 5
SIZES = (1_000, 10_000)
PLOT_SIZES = (300, 1_000, 3_000, 10_000)
QUICK_SIZES = (800,)
#: How often each size is measured.
TURNS = 2
#: How much a device may cost in the dearest size, as a multiple of what it costs in the cheapest.
FLAT = 1.15


def cost(target: Target, size: int) -> float:
    """Return milliseconds of the server's processor time for each device of one round."""
    server = target.load(size).server
    assert isinstance(server, ServerCost)  # it is our own
    return server.cpu_ms_per_device


def measure(sizes: Sequence[int], turns: int, **settings: str) -> dict[int, float]:
    """Return the cost of a device for the base size and each of the others, in milliseconds."""
    ratios: dict[int, list[float]] = {size: [] for size in sizes}
    base: list[float] = []
    for _ in range(turns):
        for size in sizes:
            with own_server(size, max_connections=str(2 * size), **settings) as target:
                target.load(2 * BASE)  # to warm it up
                around = [cost(target, BASE) for _ in range(BASE_ROUNDS)]
                here = cost(target, size)
                around += [cost(target, BASE) for _ in range(BASE_ROUNDS)]
            base += around
            ratios[size].append(here / statistics.mean(around))
            print(
                f"{size:6d} devices: {here:.2f} ms each, x{ratios[size][-1]:.3f} of {BASE}",
                file=sys.stderr,
            )
    middle = statistics.median(base)
    return {BASE: middle} | {size: middle * statistics.median(ratios[size]) for size in sizes}


def goals(quick: bool) -> list[Goal]:
    """Measure."""
    return goals_of(measure(QUICK_SIZES if quick else SIZES, 1 if quick else TURNS))


def goals_of(costs: dict[int, float]) -> list[Goal]:
    """Return the goals for what was measured. A round that is not complete is an error before."""
    least, most = min(costs), max(costs)
    return [
        Goal("scale", "devices that complete one round", most, most, "devices", at_most=False),
        Goal(
            "scale",
            f"processor time a device, {least:,} to {most:,} devices in a round: dearest to "
            f"cheapest ({min(costs.values()):.2f} ms)",
            max(costs.values()) / min(costs.values()),
            FLAT,
        ),
    ]


def draw(costs: dict[int, float], waiting: dict[int, float]) -> str:
    """Return the plot."""
    series = [
        ("64 devices at a time", costs),
        ("all wait for the last", waiting),
    ]
    return page(
        "What a device costs the server",
        [name for name, _ in series],
        [
            Lines(
                "Processor time",
                "devices in one round",
                "ms a device",
                [(name, [(float(n), ms) for n, ms in found.items()]) for name, found in series],
                logarithmic=True,
            )
        ],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller rounds")
    parser.add_argument("--svg", type=Path, help="draw the cost by the size of the round")
    given = parser.parse_args()
    sizes: Sequence[int] = QUICK_SIZES if given.quick else SIZES
    turns = 1 if given.quick else TURNS
    if given.svg is not None:
        sizes = PLOT_SIZES
    costs = measure(sizes, turns)
    for goal in goals_of(costs):
        print("  ".join(goal.row()))
    if given.svg is not None:
        waiting = measure(sizes, 1, selection="cohort")
        given.svg.write_text(draw(costs, waiting), encoding="utf-8")


if __name__ == "__main__":
    main()
