"""What a run looks like."""

from __future__ import annotations

from fcp_core.bench.report import Report
from fcp_core.lab.charts import Bars, Lines, page


def draw(report: Report) -> str:
    """Return an SVG document: how the sessions went on, and how long the requests took."""
    timeline = [(float(second + 1), float(n)) for second, n in enumerate(report.timeline)]
    timeline[-1:] = [(report.seconds, float(report.contributed))]
    requests = [(name, times) for name, times in report.steps.items() if name not in ("session",)]
    return page(
        f"{report.clients:,} devices, {report.sessions_per_second:,.0f} sessions a second",
        ["median", "99 of 100 are faster"],
        [
            Lines(
                "Sessions that have contributed",
                "seconds",
                "sessions",
                [("contributed", [(0.0, 0.0), *timeline])],
                report.seconds,
            ),
            Bars(
                "Time of a request",
                "milliseconds",
                [(name, (times.p50, times.p99)) for name, times in requests],
            ),
        ],
    )
