"""Give a server very many inputs that no device would send.

    python benchmarks/fuzz.py [--inputs 1000000] [--seed 1] [--sockets 0.02]

The server runs in this process. Most inputs go straight to its handlers, since a socket would take
most of the time; a share goes over sockets, as bytes that need not be HTTP, or that two readers may
cut into requests differently. Some inputs are bombs of size. A round of another population runs
meanwhile, each device with a power of two. Exit status 0: there was no 5xx but 501 (a service that
this server does not offer), nothing was logged as an error, that round's sum was right, the loop
never stood for more than 250 ms, and memory grew by 64 MiB at most.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

# Run as a file, it sees its own folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fuzzing.run import fuzz


def main() -> int:
    """Run, print, and return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sockets", type=float, default=0.02)
    arguments = parser.parse_args()
    report = asyncio.run(fuzz(arguments.inputs, arguments.seed, socket_share=arguments.sockets))
    rate = report.inputs / report.seconds
    over = f"{report.over_sockets:,} over sockets, {report.bombs:,} bombs"
    print(f"inputs              {report.inputs:,} ({over})")
    print(f"time                {report.seconds:.0f} s, {rate:,.0f} inputs a second")
    print(
        "statuses            "
        + ", ".join(f"{k}: {n:,}" for k, n in sorted(report.statuses.items()))
    )
    print(f"5xx but 501         {report.fault_count}")
    print(f"errors in the log   {len(report.logged)}")
    growth, peak = report.growth / 2**20, report.peak / 2**20
    print(f"memory growth       {growth:.1f} MiB, {peak:.1f} at most")
    outcome = "right" if report.honest_right else "WRONG"
    print(f"longest stall       {1000 * report.stall:.0f} ms")
    print(f"the honest round    {report.honest} devices, sum {outcome}")
    for status, sent in report.faults:
        print(f"{status} for {repr(sent)[:1000]}")
    for line in report.logged:
        print(line)
    return 0 if report.good and report.bounded else 1


if __name__ == "__main__":
    sys.exit(main())
