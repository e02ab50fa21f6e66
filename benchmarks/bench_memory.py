"""How much memory the server takes, beyond the idle one, while contributions of 4 MB come in.

16 virtual devices talk at a time, each contributes 1e6 float32. The figure is the most resident
memory that ``fcp serve``, in a process of its own, ever had (``VmHWM``), less what it had with the
task open and no device there. It is taken for one round of 500 contributions and one of 2,000.

    python benchmarks/bench_memory.py [--quick]
"""

from __future__ import annotations

from goals import Goal, main
from own_server import own_server

from fcp_core.bench.report import ServerCost

ELEMENTS = 1_000_000
CONNECTIONS = 16
COHORTS = (500, 2_000)
QUICK_COHORTS = (50, 200)
#: The most that is allowed beyond the idle server, in MB.
LIMIT_MB = 150
#: How much more than the small cohort the large one may take.
INDEPENDENT = 1.15


def growth(clients: int) -> float:
    """Return how many MB one round takes at most, beyond the idle server."""
    with own_server() as target:
        server = target.load(clients, connections=CONNECTIONS, elements=ELEMENTS).server
    assert isinstance(server, ServerCost)  # it is our own
    return server.peak_mb - server.idle_mb


def goals(quick: bool) -> list[Goal]:
    """Measure."""
    small, large = QUICK_COHORTS if quick else COHORTS
    few, many = growth(small), growth(large)
    what = f"{large:,} contributions of 4 MB at {CONNECTIONS} connections"
    return [
        Goal("memory", f"peak above the idle server, {what}", many, LIMIT_MB, "MB"),
        Goal("memory", f"the same to {small:,} contributions", many / few, INDEPENDENT),
    ]


if __name__ == "__main__":
    main(goals, __doc__)
