"""How long a newcomer waits: for ``fcp --help``, for the server's module, for a first training.

Run ``python benchmarks/bench_start.py``. Each is a process of its own, as on a command line; the
first one, which fills the caches of files, does not count.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

from goals import Goal, main

HELP = ["-m", "fcp_core", "--help"]
SERVER = ["-c", "import fcp_core.server"]
DEMO = ["-m", "fcp_core", "demo", "--light"]


def seconds(arguments: list[str], times: int) -> float:
    """Return the median of the seconds that a Python takes for something, whole."""
    found = []
    for _ in range(times + 1):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            command = [sys.executable, *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
            found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def goals(quick: bool = False) -> list[Goal]:
    """Measure all goals."""
    times = 3 if quick else 11
    return [
        Goal("start", "fcp --help", seconds(HELP, times), 0.4, "s"),
        Goal("start", "import fcp_core.server", seconds(SERVER, times), 1.0, "s"),
        Goal("start", "fcp demo --light, to its end", seconds(DEMO, 1), 15.0, "s"),
    ]


if __name__ == "__main__":
    main(goals, __doc__)
