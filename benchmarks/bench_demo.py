"""Where the demonstration's time goes.

Run ``python benchmarks/bench_demo.py``: it runs ``fcp demo`` with its defaults in a folder of its
own and prints the phases as the demonstration measured them. Wall times depend on the machine; the
shares are what to compare.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Run the demonstration and print its phases."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "fcp_core", "demo", "--folder", folder, *sys.argv[1:]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - began
        outcome = json.loads(Path(folder, "outcome.json").read_text())
    seconds = outcome["seconds"]
    print(f"{platform.machine()}, Python {platform.python_version()}")
    print(f"accuracy after the last round: {outcome['accuracy'][-1]:.3f}")
    print(f"{'whole process, wall':<34}{wall:8.1f} s")
    for name, value in seconds.items():
        print(f"{name:<34}{value:8.1f} s{value / wall:8.0%}")
    devices = outcome["devices"]
    print(f"{'sessions':<34}{devices['sessions']:8}")
    print(f"{'contributions':<34}{devices['contributed']:8}")


if __name__ == "__main__":
    main()
