"""What the policy lab costs: a million devices over a virtual day, time and memory.

Run ``python benchmarks/bench_simulation.py [POLICY...]``. Each policy runs in a process of its own
on one core: rounds of 1,000 contributions, one after the other, with an over-selection of 1.3. The
limits are 60 seconds of that core and 1 GB; the exit status is 1 if one is exceeded. With
``--devices`` and ``--hours`` smaller runs are possible.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time

from fcp_core.lab import DeviceModel, Scenario, TaskModel, simulate

MAX_SECONDS, MAX_BYTES = 60.0, 10**9
POLICIES = ("fifo", "uniform", "cohort", "fair_share", "weighted")


def measure(policy: str, devices: int, hours: float) -> dict[str, float]:
    """Run one policy on one core and return what it took and did."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    scenario = Scenario(
        devices=DeviceModel(count=devices), tasks=(TaskModel(goal_count=1000),), hours=hours
    )
    start, used = time.perf_counter(), time.process_time()
    (report,) = simulate(policy, scenario=scenario)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - used,
        "bytes": peak if sys.platform == "darwin" else peak * 1024,
        "rounds": len(report.completed),
        "assigned": report.assigned,
        "check_ins": int(report.check_ins.sum()),
    }


def main() -> int:
    """Print a line for each policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policies", nargs="*", default=POLICIES)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--hours", type=float, default=24.0)
    arguments = parser.parse_args()
    print(f"{arguments.devices:,} devices, {arguments.hours:g} virtual hours, one core")
    print(
        f"{'policy':<12}{'seconds':>9}{'CPU s':>8}{'MB':>7}{'rounds':>8}{'assigned':>10}"
        f"{'check-ins':>11}  limits"
    )
    good = True
    context = multiprocessing.get_context("spawn")
    for policy in arguments.policies:
        with context.Pool(1) as pool:
            got = pool.apply(measure, (policy, arguments.devices, arguments.hours))
        kept = got["cpu"] < MAX_SECONDS and got["bytes"] < MAX_BYTES
        good = good and kept
        print(
            f"{policy:<12}{got['seconds']:>9.1f}{got['cpu']:>8.1f}{got['bytes'] / 1e6:>7.0f}"
            f"{got['rounds']:>8.0f}{got['assigned']:>10.0f}{got['check_ins']:>11.0f}"
            f"  {'kept' if kept else 'EXCEEDED'}",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
