"""How long something that is due waits for the event loop while contributions of 4 MB are folded.

The figure is the server's own, ``fcp_loop_lag_seconds`` of ``/metrics``: the bucket that 99 of 100
measurements are in. The contributions come from 16 virtual devices at a time, once as they are, and
once gzipped by devices that also download a checkpoint of 4 MB.

    python benchmarks/bench_loop.py [--quick]
"""

from __future__ import annotations

from goals import Goal, main
from own_server import own_server

from fcp_core.bench.report import ServerCost

ELEMENTS = 1_000_000
CONNECTIONS = 16
LIMIT_MS = 20
#: Contributions of each kind: with them, a run lasts some ten seconds, two hundred measurements.
PLAIN, COMPRESSED = 2_000, 500


def lag(clients: int, *, gzip: bool) -> float:
    """Return the 99th percentile of the loop's lag over one round, in milliseconds."""
    with own_server() as target:
        report = target.load(
            clients, connections=CONNECTIONS, elements=ELEMENTS, gzip=gzip, broadcast=gzip
        )
    assert isinstance(report.server, ServerCost)  # it is our own
    measured = report.server.loop_lag_p99_ms
    if measured is None:
        raise RuntimeError("the run was too short for a measurement")
    return measured


def goals(quick: bool) -> list[Goal]:
    """Measure."""
    share = 2 if quick else 1
    what = "99th percentile of the event loop's lag, 4 MB contributions"
    return [
        Goal("loop", f"{what}", lag(PLAIN // share, gzip=False), LIMIT_MS, "ms"),
        Goal(
            "loop",
            f"{what}, gzipped, with downloads of 4 MB",
            lag(COMPRESSED // share, gzip=True),
            LIMIT_MS,
            "ms",
        ),
    ]


if __name__ == "__main__":
    main(goals, __doc__)
