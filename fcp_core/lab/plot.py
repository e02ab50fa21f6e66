"""Draws reports next to each other."""

from __future__ import annotations

from collections.abc import Sequence

from fcp_core.lab.charts import Bars, Lines, page
from fcp_core.lab.report import Report, lorenz

#: Seconds over which check-ins are averaged.
_BIN = 600


def draw(reports: Sequence[Report], title: str) -> str:
    """Return an SVG document: times of rounds, load, fairness and waste of each policy."""
    names = [report.policy for report in reports]
    times = [report.round_time(0.99) for report in reports]
    hours = max((report.seconds / 3600 for report in reports), default=1.0)
    return page(
        title,
        names,
        [
            Lines(
                "Time to complete a round",
                "seconds",
                "share of rounds",
                [(report.policy, _durations(report)) for report in reports],
                max((time for time in times if time), default=None),
            ),
            Lines(
                "Load at the server",
                "hours",
                "check-ins a second",
                [(report.policy, _load(report)) for report in reports],
                hours,
            ),
            Lines(
                "Who contributes (a straight line: all the same)",
                "share of devices",
                "share of contributions",
                [(report.policy, lorenz(report.contributions)) for report in reports],
                1.0,
            ),
            Bars(
                "Waste and fairness",
                "",
                [
                    ("wasted work", [report.waste for report in reports]),
                    ("Gini coefficient", [report.gini for report in reports]),
                    ("slowest quarter's share", [report.slow_share for report in reports]),
                ],
            ),
        ],
    )


def _durations(report: Report) -> list[tuple[float, float]]:
    durations = sorted(r.duration for r in report.completed if r.duration is not None)
    points = [(0.0, 0.0)]
    for number, duration in enumerate(durations):
        points += [(duration, number / len(durations)), (duration, (number + 1) / len(durations))]
    return points


def _load(report: Report) -> list[tuple[float, float]]:
    return [
        (second / 3600, float(report.check_ins[second : second + _BIN].mean()))
        for second in range(0, len(report.check_ins), _BIN)
    ]
