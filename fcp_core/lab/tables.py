"""Reports as tables: a summary for people, CSV files for programs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import IO

from fcp_core.lab.report import Report

#: What a summary says of a policy.
COLUMNS = (
    "policy",
    "rounds",
    "failed",
    "median time",
    "90% time",
    "assigned",
    "waste",
    "gini",
    "reached",
    "slow quarter",
    "check-ins/s",
    "peak/s",
    "mean wait",
)

_REASONS = ("round_over", "computation", "assignment_timeout", "silent")


def summary(report: Report) -> list[str]:
    """Return a report's line, a cell for each of :data:`COLUMNS`."""
    asked = report.assigned + sum(
        count for reason, count in report.turned_away.items() if reason != "no_task"
    )
    return [
        report.policy,
        str(len(report.completed)),
        str(report.failed),
        _seconds(report.round_time(0.5)),
        _seconds(report.round_time(0.9)),
        str(report.assigned),
        f"{report.waste:.1%}",
        f"{report.gini:.3f}",
        f"{report.reached:.1%}",
        f"{report.slow_share:.1%}",
        f"{report.mean_load:.1f}",
        str(report.peak_load),
        _seconds(report.held / asked if asked else 0.0),
    ]


def write_rounds(reports: Sequence[Report], file: IO[str]) -> None:
    """Write one line for each round; times are in seconds after the start."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            "policy",
            "task",
            "opened",
            "closed",
            "duration",
            "state",
            "assigned",
            "contributed",
            "pending",
            *_REASONS,
            "other",
        ]
    )
    for report in reports:
        for round_ in report.rounds:
            known = [round_.reasons.get(reason, 0) for reason in _REASONS]
            writer.writerow(
                [
                    report.policy,
                    round_.task,
                    f"{round_.opened:.3f}",
                    "" if round_.closed is None else f"{round_.closed:.3f}",
                    "" if round_.duration is None else f"{round_.duration:.3f}",
                    round_.state.value,
                    round_.assigned,
                    round_.contributed,
                    round_.pending,
                    *known,
                    round_.dropped - sum(known),
                ]
            )


def write_timeline(reports: Sequence[Report], file: IO[str]) -> None:
    """Write one line for each minute: its check-ins, and the most in one of its seconds."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["policy", "minute", "check_ins", "peak"])
    for report in reports:
        for minute in range(0, len(report.check_ins), 60):
            seconds = report.check_ins[minute : minute + 60]
            writer.writerow([report.policy, minute // 60, int(seconds.sum()), int(seconds.max())])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}s"
